"""Explore as a person uses it, in a real browser: find, scroll, ask why, mark by keyboard; on phones, in the dark."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="i2e explore is not installed: the extra [explore]")

import uvicorn

from i2e_pipeline.explore.app import Explored, app
from i2e_pipeline.inputs import marks
from tests.explore.test_app import hostile, label_of

assert hostile


@pytest.fixture
def served(browser: Any) -> Iterator[Callable[[Explored], str]]:
    """Serves what is explored on a free port; returns its address."""
    servers: list[uvicorn.Server] = []

    def serve(of: Explored) -> str:
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app(of), log_level="warning", lifespan="off"))
        threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True).start()
        servers.append(server)
        wait(lambda: server.started)
        return f"http://127.0.0.1:{bound.getsockname()[1]}"

    browser.get_log("browser")  # what earlier pages said
    yield serve
    browser.get("about:blank")
    for server in servers:
        server.should_exit = True


def wait(what: Callable[[], Any], seconds: float = 20) -> Any:
    """Until it is true, or the last it was."""
    until = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def keys(browser: Any, *pressed: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*pressed).perform()


def loud(browser: Any) -> list[str]:
    return [line["message"] for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]


def places(row: dict[str, Any]) -> list[str]:
    return ["/", "/entities", f"/entities/Q{row['entity_id']}", "/images", f"/images/{row['image_id']}", "/mark"]


def texts(browser: Any, query: str) -> list[str]:
    return [e.text for e in browser.find_elements("css selector", query)]


def test_an_entity_is_found_while_typing_and_by_keyboard(
    alone: Explored, served: Callable[[Explored], str], browser: Any
) -> None:
    from selenium.webdriver import Keys

    entity = alone.queries.entities({}, most=1)["rows"][0]
    browser.get(served(alone))
    keys(browser, "/")
    field = browser.switch_to.active_element
    assert (field.get_attribute("id"), field.get_attribute("aria-expanded")) == ("find", "false")
    field.send_keys(f"q{entity['entity_id']}")
    assert wait(lambda: texts(browser, "#hits [role=option]"))
    assert field.get_attribute("aria-expanded") == "true"
    field.send_keys(Keys.ARROW_DOWN)
    chosen = browser.find_element("id", field.get_attribute("aria-activedescendant"))
    assert chosen.get_attribute("aria-selected") == "true"
    field.send_keys(Keys.ENTER)
    assert wait(lambda: browser.current_url.endswith(f"/entities/Q{entity['entity_id']}"))
    assert browser.find_element("tag name", "h1").text.startswith(entity["name"])
    assert loud(browser) == []


def test_a_long_list_holds_what_is_seen_and_no_more(
    alone: Explored, served: Callable[[Explored], str], browser: Any
) -> None:
    """Catches: ten thousand pictures at once, and rows that stand twice or are missing when a list is scrolled."""
    browser.set_window_size(1280, 900)
    browser.get(served(alone) + "/images?sort=score")
    assert wait(lambda: browser.execute_script("return document.querySelector('ul.grid').style.minHeight"))
    total = alone.queries.facts["labels"]
    seen: dict[int, str] = {}
    for share in (0, 0.02, 0.3, 0.31, 0.999, 0.5, 0):
        browser.execute_script(
            f"scrollTo({{top: document.documentElement.scrollHeight * {share}, behavior: 'instant'}})"
        )
        time.sleep(0.4)
        cards = browser.execute_script(
            "return [...document.querySelectorAll('ul.grid > li')].map((li) => [Number(li.dataset.n),"
            "li.querySelector('a').pathname, li.getAttribute('aria-posinset'), li.getAttribute('aria-setsize')])"
        )
        assert 0 < len(cards) < 150
        assert [n for n, *_ in cards] == list(range(cards[0][0], cards[0][0] + len(cards)))
        assert all((place, size) == (str(n + 1), str(total)) for n, _, place, size in cards)
        for n, path, *_ in cards:
            assert seen.setdefault(n, path) == path
    rows = alone.queries.images({"sort": "score"}, most=total)["rows"]
    assert all(path == f"/images/{rows[n]['image_id']}" for n, path in seen.items())
    assert max(seen) == total - 1
    assert loud(browser) == []


@pytest.mark.parametrize("width", [360, 390, 412, 768, 1100, 1310, 1680])
def test_a_list_is_as_long_as_its_rows_at_any_width(
    alone: Explored, served: Callable[[Explored], str], browser: Any, width: int
) -> None:
    """Catches: another number of columns than the browser lays out, at first and after a turn of the phone."""
    base, total = served(alone), alone.queries.facts["labels"]
    laid_out = (
        "const list = document.querySelector('ul.grid'), li = [...list.children];"
        "const columns = li.filter((one) => one.offsetTop === li[0].offsetTop).length;"
        "return [columns, Math.round(parseFloat(list.style.minHeight) / (li[0].offsetHeight + 12))]"
    )
    try:
        for at in (width, 2 * width):
            metrics = {"width": at, "height": 844, "deviceScaleFactor": 1, "mobile": at < 800}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            if at == width:
                browser.get(base + "/images?sort=score")
            wait(lambda: (found := browser.execute_script(laid_out)) and found[1] == -(-total // found[0]))
            columns, lines = browser.execute_script(laid_out)
            assert lines == -(-total // columns), at
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_who_types_fast_marks_what_is_shown(alone: Explored, served: Callable[[Explored], str], browser: Any) -> None:
    """Catches: a second key that hits the label of the first, whose mark is still on its way."""
    drawn = alone.marking.next_drawn(10, set())["rows"]
    browser.get(served(alone) + "/mark")
    assert wait(lambda: texts(browser, "#marking h2"))
    typed = "rwuurwwrr"  # as many as are at hand: while labels are fetched, none is shown, and keys mean nothing
    keys(browser, typed)
    said = {"r": "right", "w": "wrong", "u": "unsure"}
    assert wait(lambda: len(alone.marking) == len(typed))
    found = {(m["image_id"].hex(), m["entity_id"]): m["mark"] for m in marks.read(alone.marking.path).to_pylist()}
    shown = [(row["image_id"], row["entity_id"]) for row in drawn[: len(typed)]]
    assert found == {key: said[k] for key, k in zip(shown, typed, strict=True)}
    assert wait(lambda: f"{len(typed)} marked" in browser.find_element("id", "marking").text)
    keys(browser, "z")
    assert wait(lambda: len(alone.marking) == len(typed) - 1)
    assert wait(lambda: f"{len(typed) - 1} marked" in browser.find_element("id", "marking").text)
    assert loud(browser) == []
    for image_id, entity_id in shown:
        alone.marking.add(image_id, entity_id, "cleared", None, "")


def test_arrows_go_from_image_to_image_beyond_what_is_drawn(
    alone: Explored, served: Callable[[Explored], str], browser: Any
) -> None:
    from selenium.webdriver import Keys

    browser.set_window_size(1280, 900)
    browser.get(served(alone) + "/images?sort=score")
    wait(lambda: browser.execute_script("return document.querySelector('ul.grid').style.minHeight"))
    browser.execute_script("document.querySelector('ul.grid > li a').focus()")
    columns = browser.execute_script(
        "const all = [...document.querySelectorAll('ul.grid > li')];"
        "return all.filter((li) => li.offsetTop === all[0].offsetTop).length"
    )

    def at() -> int:
        found: int = browser.execute_script("return Number(document.activeElement.closest('li')?.dataset.n ?? -1)")
        return found

    for n in range(1, 8):
        keys(browser, Keys.ARROW_DOWN)
        wait(lambda n=n: at() == n * columns)
        assert at() == n * columns
    keys(browser, Keys.ARROW_LEFT)
    assert wait(lambda: at() == 7 * columns - 1)


def test_labels_are_marked_by_keyboard_and_taken_back(
    hostile: Explored, served: Callable[[Explored], str], browser: Any
) -> None:
    from selenium.webdriver import Keys

    base, row = served(hostile), label_of(hostile)
    browser.get(f"{base}/mark")
    assert wait(lambda: texts(browser, "#marking h2"))
    keys(browser, "o")
    browser.switch_to.active_element.send_keys("q3")
    assert wait(lambda: texts(browser, "#marking [role=option]"))
    field = browser.switch_to.active_element
    field.clear()
    field.send_keys("Q925", Keys.ENTER)
    assert wait(lambda: "All drawn labels are marked" in browser.find_element("id", "marking").text)
    (mark,) = marks.read(hostile.marking.path).to_pylist()
    assert (mark["mark"], mark["other"], mark["entity_id"]) == ("other", 925, row["entity_id"])
    assert mark["weight"] is not None
    assert wait(lambda: "1 drawn label" in browser.find_element("id", "implied").text)
    # On the image's own page.
    browser.get(f"{base}/images/{row['image_id']}")
    pressed = '.marks [aria-pressed="true"]'
    assert texts(browser, pressed)[0].startswith("other")
    keys(browser, "r")
    assert wait(lambda: (found := texts(browser, pressed)) and found[0].startswith("right"))
    keys(browser, "z")
    assert wait(lambda: texts(browser, pressed) == [])
    assert marks.read(hostile.marking.path).num_rows == 0
    assert [line for line in loud(browser) if "/story" not in line] == []


def test_hostile_captions_stay_text(hostile: Explored, served: Callable[[Explored], str], browser: Any) -> None:
    """In what scripts build, too: hits, scrolled lists, the label to be marked."""
    base, row = served(hostile), label_of(hostile)
    for path in ("/", "/images", f"/images/{row['image_id']}", "/entities/Q308", "/mark", "/rejects"):
        browser.get(base + path)
        browser.find_element("id", "find").send_keys("merc")
        wait(lambda: texts(browser, "#hits [role=option]"))
        time.sleep(0.3)
        assert browser.title != "taken", path
        assert browser.execute_script("return document.querySelectorAll('img[onerror], main script').length") == 0
        # The tables that a story is told from are not there.
        assert [line for line in loud(browser) if "/story" not in line] == [], path


def test_the_story_of_an_image_is_asked_for_by_its_page(
    with_run: Explored, served: Callable[[Explored], str], browser: Any
) -> None:
    row = label_of(with_run)
    browser.get(f"{served(with_run)}/images/{row['image_id']}")
    assert wait(lambda: "What the image said" in browser.find_element("id", "story").text)
    assert browser.execute_script("return document.querySelectorAll('#story mark').length") > 0
    assert loud(browser) == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (390, "light"), (1280, "dark"), (2200, "light")])
def test_pages_fit_phones_and_wide_screens_by_day_and_by_night(
    alone: Explored, served: Callable[[Explored], str], browser: Any, width: int, scheme: str
) -> None:
    """Catches: a body that scrolls sideways, text that cannot be read on its ground, and targets that fingers miss."""
    base, row = served(alone), label_of(alone)
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        for path in (
            "/",
            "/entities",
            f"/entities/Q{row['entity_id']}",
            "/images",
            f"/images/{row['image_id']}",
            "/mark",
        ):
            browser.get(base + path)
            wait(lambda: browser.execute_script("return document.readyState") == "complete")
            inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
            assert inner[0] <= inner[1], path
            assert browser.execute_script(CONTRAST) == [], path
            if width < 600:
                small = browser.execute_script(
                    "return [...document.querySelectorAll('button, input, select, nav a, .card a')].filter((e) =>"
                    "e.offsetParent && e.getBoundingClientRect().height < 24).map((e) => e.outerHTML.slice(0, 80))"
                )
                assert small == [], path
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


CONTRAST = """
const light = (c) => c.map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const parts = (c) => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const ground = (e) => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
return [...document.querySelectorAll('main *, header *, footer *')].filter((e) => e.offsetParent
  && !e.matches(':disabled, :disabled *, mark, mark *')
  && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
  const a = light(parts(getComputedStyle(e).color).slice(0, 3)), b = light(ground(e));
  return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 90)];
}).filter(([ratio]) => ratio < 4.5);
"""
"""Texts whose contrast is below WCAG 2.2's 4.5."""


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_what_texts_and_sources_say_of_an_entity_stands_on_its_page(
    detailed: Explored, served: Callable[[Explored], str], browser: Any, width: int, scheme: str
) -> None:
    ids = [row["entity_id"] for row in detailed.queries.entities({}, most=2)["rows"]]
    first, other = (detailed.queries.entity(number) or {} for number in ids)
    told = detailed.queries.about(first)["of_pairs"]
    assert detailed.queries.about(other)["of_pairs"] is None
    base = served(detailed)
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        browser.get(f"{base}/entities/Q{first['entity_id']}")
        section = browser.find_element("id", "pairs").find_element("xpath", "..").text
        for said in ("12,345", "15,000 75", "<b>word 0</b>", "host4.example.org", "Latin", "678"):
            assert said in section, said
        assert "host5.example.org" not in section, "no more than the first five are shown"
        cells = texts(browser, "table.quantiles td")
        assert cells == ["0.110", "0.210", "0.260", "0.310", "0.355", "0.120", "0.220", "0.270", "0.320", "0.365"]
        links = browser.find_elements("css selector", f"#pairs ~ .columns a[href='/entities/Q{other['entity_id']}']")
        assert [link.text for link in links] == [other["name"]]
        assert told["confusions"][0] == {"entity_id": other["entity_id"], "won": 9, "lost": 0}
        inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert inner[0] <= inner[1]
        assert browser.execute_script(CONTRAST) == []
        assert loud(browser) == []
        links[0].click()
        assert wait(lambda: browser.current_url.endswith(f"/entities/Q{other['entity_id']}"))
        assert not browser.find_elements("id", "pairs"), "of an entity without such statistics nothing is said"
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_every_control_has_a_name_and_headings_go_down_in_order(
    alone: Explored, served: Callable[[Explored], str], browser: Any
) -> None:
    """What a screen reader says."""
    base, row = served(alone), label_of(alone)
    for path in places(row):
        browser.get(base + path)
        nameless = browser.execute_script(
            "return [...document.querySelectorAll('a[href], button, input:not([type=hidden]), select')].filter((e) =>"
            "!(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.querySelector('img[alt]')))"
            ".map((e) => e.outerHTML.slice(0, 90))"
        )
        assert nameless == [], path
        levels = browser.execute_script(
            "return [...document.querySelectorAll('h1, h2, h3, h4, h5')].map((h) => +h.tagName[1])"
        )
        assert levels[0] == 1, path
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), (path, levels)
        assert browser.execute_script("return document.querySelectorAll('img:not([alt])').length") == 0, path
        assert browser.execute_script("return document.documentElement.lang") == "en"
