"""The report as a person opens it: a file from the disk, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from i2e_pipeline.report.page import write_page
from tests.report.conftest import Output, image

HOSTILE = "<script>document.title = 'taken'</script>\"'><img src=x onerror=\"document.title='taken'\">"


def test_the_page_opens_without_an_error_and_shows_its_pictures(published: Callable[..., Output], browser: Any) -> None:
    """Catches: pictures that no browser decodes, scripts that die, and alt-text that becomes markup."""
    output = published(images=[image("apple one", (89, 0, 0.95), alt_text=HOSTILE), image("pear", (434, 1, 0.9))])
    browser.get(Path(write_page(output.pipeline)).resolve().as_uri())
    assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
    assert "taken" not in browser.title
    shown = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2')].map(h => [h.innerText.trim(), h.getClientRects().length])"
    )
    assert len(shown) > 3
    assert all(text and boxes for text, boxes in shown)
    # Pictures further down are decoded when they are scrolled to.
    pictures = browser.execute_async_script(
        "const done = arguments[0], all = [...document.images];"
        "all.forEach(i => { i.loading = 'eager'; i.closest('details')?.setAttribute('open', ''); });"
        "Promise.allSettled(all.map(i => i.decode())).then(() => done(all.map(i => [i.naturalWidth, i.clientWidth])))"
    )
    assert pictures
    assert all(natural and wide for natural, wide in pictures)
    # Links of the contents lead to what they name.
    for link in browser.find_elements("css selector", "nav a[href^='#'], header a[href^='#']"):
        assert browser.find_elements("id", link.get_attribute("href").partition("#")[2])
