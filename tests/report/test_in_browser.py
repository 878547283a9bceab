"""The report as a person opens it: a file from the disk, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.report import search
from i2e_pipeline.report.page import write_page
from tests.report.conftest import Output, entity, image, judgement, key

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


MANY = [
    entity(308, "Mercury", 8, aliases=["☿", "Hermes' Stern"], description="first planet"),
    entity(925, "mercury", 9, aliases=["quicksilver", "Hg"]),
    entity(23, "George Washington", 7),
    entity(64, "Straße ÅNGSTRÖM", 6, aliases=["ΟΔΟΣ", "İzmir", "Ⅷ", "ｆｕｌｌ"]),
    entity(7, HOSTILE, 5, description=HOSTILE, aliases=[HOSTILE, "</script>"]),
    entity(99, "no image", 0),
    *(entity(1_000 + n, f"common {n:02}", 1) for n in range(40)),
]
INSIDE, BESIDE = 10_000_000, 0


def asked(browser: Any, text: str) -> list[str]:
    """What the list shows for a text that is typed: name and Q-id of each hit."""
    box = browser.find_element("id", "find")
    browser.execute_script("arguments[0].focus(); arguments[0].value = ''", box)
    box.send_keys(text)
    # A list of before may stand there while pages load: what is said changes last.
    browser.execute_async_script(
        "const done = arguments[0]; const wait = (n) => n ? setTimeout(wait, 20, n - 1) : done(); wait(8)"
    )
    return [hit.text.splitlines()[0] for hit in browser.find_elements("css selector", "#find-hits:not([hidden]) li")]


def opened(browser: Any, output: Output) -> None:
    browser.get_log("browser")
    browser.get(Path(write_page(output.pipeline)).resolve().as_uri())


@pytest.mark.parametrize("inline", [INSIDE, BESIDE])
def test_every_entity_is_found_by_name_word_alias_and_id(
    published: Callable[..., Output], browser: Any, monkeypatch: pytest.MonkeyPatch, inline: int
) -> None:
    """Catches: a search over the first hundred; names that Python and the browser fold differently; hits of the page
    and of the folder beside it that are not the same."""
    monkeypatch.setattr(search, "INLINE_BYTES", inline)
    monkeypatch.setattr(search, "PAGE_KEYS", 6)
    opened(browser, published(entities=MANY))
    hits = {text: asked(browser, text) for text in (
        "mercury", "Q308", "HG", "hermes’ st", "☿", "washing", "strasse", "straße angstrom", "οδος", "izmir", "viii",
        "full", "no image", "common 39", "c", "</scr",
    )}  # fmt: skip
    # Chrome's driver types what is in the basic plane; all of these are.
    assert hits["mercury"] == ["mercury Q925", "Mercury Q308"]
    assert hits["Q308"] == ["Mercury Q308"]
    assert hits["HG"] == ["mercury Q925 · also Hg"]
    assert hits["hermes’ st"] == ["Mercury Q308 · also Hermes' Stern"]
    assert hits["☿"] == ["Mercury Q308 · also ☿"]
    assert hits["washing"] == ["George Washington Q23"]
    assert hits["strasse"] == []
    angstrom = "Straße ÅNGSTRÖM Q64"
    assert hits["straße angstrom"] == [angstrom]
    assert [hits[text] for text in ("οδος", "izmir", "viii", "full")] == [
        [f"{angstrom} · also {alias}"] for alias in ("ΟΔΟΣ", "İzmir", "Ⅷ", "ｆｕｌｌ")
    ]
    assert hits["no image"] == []
    assert hits["common 39"] == ["common 39 Q1039"]
    assert hits["c"] == [f"common {n:02} Q{1_000 + n}" for n in range(search.SHOWN)]
    assert hits["</scr"][0].startswith("<script>document.title")
    assert "taken" not in browser.title
    assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []


def test_the_search_is_used_by_keyboard(published: Callable[..., Output], browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, published(entities=MANY))
    assert len(asked(browser, "mercury")) == 2
    box = browser.find_element("id", "find")
    assert box.get_attribute("aria-expanded") == "true"
    box.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    chosen = browser.find_element("css selector", '#find-hits [aria-selected="true"]')
    assert box.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    box.send_keys(Keys.ENTER)
    assert box.get_attribute("aria-expanded") == "false"
    found = browser.find_element("id", "found")
    said = found.text
    for told in ("Mercury Q308", "first planet", "images\n8", "mean probability\n0.900", "mean CLIP score\n0.300"):
        assert told in said
    assert "i2e entity Q308 --config" in said
    # It leads to the entity's images, further down the page.
    link = found.find_element("css selector", ".here a").get_attribute("href").partition("#")[2]
    assert "Mercury" in browser.find_element("id", link).text
    asked(browser, "merc")
    box.send_keys(Keys.ESCAPE)
    assert box.get_attribute("aria-expanded") == "false"


def test_a_page_without_its_folder_says_what_is_missing(
    published: Callable[..., Output], browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "INLINE_BYTES", BESIDE)
    output = published()
    write_page(output.pipeline)
    (output.root / "report.html").rename(moved := output.root.parent / "moved.html")
    browser.get(moved.resolve().as_uri())
    assert asked(browser, "apple") == []
    said = browser.find_element("id", "find-said").text
    assert "needs the folder report_entities" in said
    browser.get_log("browser")


def test_tables_are_sorted_by_keyboard(published: Callable[..., Output], browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, published(entities=MANY))

    def names() -> list[str]:
        return [cell.text for cell in browser.find_elements("css selector", "#figures tbody td:first-child")][:3]

    heads = browser.find_elements("css selector", "#figures th")
    buttons = [head.find_element("tag name", "button") for head in heads]
    assert [head.get_attribute("aria-sort") for head in heads] == [None] * len(heads)
    for pressed, order, first in ((Keys.ENTER, "descending", "mercury"), (Keys.SPACE, "ascending", "common 00")):
        buttons[2].send_keys(pressed)
        assert heads[2].get_attribute("aria-sort") == order
        assert names()[0] == first
    buttons[0].send_keys(Keys.ENTER)
    assert heads[0].get_attribute("aria-sort") == "ascending"
    assert heads[2].get_attribute("aria-sort") is None


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(published: Callable[..., Output], browser: Any, width: int) -> None:
    """Catches: a chart or a name that makes a telephone's page scroll sideways, and links too small to be met."""
    long = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
    quality = [
        {"stage": s, "slice": part, "pairs": 90, "precision": 0.9, "recall": 0.8, "precision_of": 90, "recall_of": 80,
         "counted": long}
        for s in ("extract", "published") for part in ("all", long)
    ]  # fmt: skip
    output = published(
        images=[image(long, (89, 0, 0.95), (434, 1, 0.9))],
        entities=[entity(89, long, 1, description=long * 3, aliases=[long]), entity(434, "pear", 1)],
        quality=quality,
        judged=[judgement(long, 89, 434, False)],
        rejects=[{"reason": "below_bar", "id": key("x"), "detail": f"best is Q89 {long}"}],
    )
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(browser, output)
        browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        asked(browser, "donau")
        wide = browser.execute_script(
            "return [...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll') && !e.closest('svg')"
            " && e.getBoundingClientRect().right > innerWidth + 1)"
            ".map((e) => `${e.tagName} ${e.textContent.slice(0, 40)}`)"
        )
        assert wide == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        small = browser.execute_script(
            "return [...document.querySelectorAll('nav a, main a, button, summary, input')].filter((e) =>"
            "e.getClientRects().length && e.getBoundingClientRect().height < 24).map((e) => e.textContent)"
        )
        assert width > 500 or small == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
