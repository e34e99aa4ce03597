"""The report and the comparison in a real browser, where one is installed: light, dark, on a phone, printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from longrope_export.report import write_comparison, write_report
from tests.browser import AXE, CHROMIUM, Page
from tests.runs import explain, fail, run_documents, with_quality, write_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH")
PHONE, DESK = 390, 1200


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    room = tmp_path_factory.mktemp("pages")
    good, bad = run_documents(), run_documents(dual=False)
    for documents in (good, bad):
        with_quality(documents)
    explain(bad, 1)
    fail(bad, 1, "gguf.factors.long", message="8 of 8 factors differ")
    one, other = write_run(room / "one", good), write_run(room / "other", bad)
    return [write_report(one), write_report(other), write_comparison(one, other)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_the_pages_load_nothing_say_nothing_and_fit(browser: Page, pages: list[Path], width: int, dark: bool) -> None:
    for path in pages:
        browser.events.clear()
        browser.show(path, width=width, dark=dark)
        browser.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        assert browser.run("document.documentElement.scrollWidth") <= width
        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert asked == [path.resolve().as_uri()]
        assert not [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
        shown = "[...document.querySelectorAll('svg.chart')].map(e => e.checkVisibility() && e.classList[1])"
        assert set(browser.run(shown)) == {False, "wide" if width == DESK else "narrow"}
        if AXE.is_file():
            assert browser.accessibility() == []


def test_the_keyboard_stops_where_there_is_something_to_scroll(browser: Page, pages: list[Path]) -> None:
    stops = "[...document.querySelectorAll('.scroll, pre')].filter(e => e.checkVisibility() && e.tabIndex === 0).length"
    browser.show(pages[0], width=DESK)
    assert browser.run(stops) == 0
    browser.show(pages[0], width=PHONE)
    assert browser.run(stops) > 0


def test_dark_and_print_are_themes_of_their_own(browser: Page, pages: list[Path]) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    browser.show(pages[0], width=DESK)
    light = browser.run(colour)
    browser.show(pages[0], width=DESK, dark=True)
    assert browser.run(colour) != light
    browser.do("Emulation.setEmulatedMedia", media="print")
    assert browser.run(colour) == light, "nobody prints a dark page"
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.do("Emulation.setEmulatedMedia", media="")
    assert browser.pdf().startswith(b"%PDF")


def test_values_show_under_the_pointer_and_code_is_copied_by_a_button(browser: Page, pages: list[Path]) -> None:
    browser.show(pages[0], width=DESK)
    area = "document.querySelectorAll('svg.wide .at')[1]"
    x, y = browser.run(
        f"(() => {{ {area}.scrollIntoView({{block: 'center'}}); const box = {area}.querySelector('.area')"
        ".getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    visible = f"getComputedStyle({area}.querySelector('.readout')).visibility"
    assert browser.run(visible) == "hidden"
    browser.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.run(visible) == "visible"
    assert browser.run("document.querySelectorAll('pre').length === document.querySelectorAll('.code button').length")
    browser.run("document.querySelector('.code button').click()")
    copied = "new Promise(done => setTimeout(() => done(document.getElementById('status').textContent), 200))"
    assert browser.run(copied) in ("Copied", "Selected: press Ctrl+C")
