"""The report as a reader meets it: in a browser, by keyboard, wide and narrow, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Tab, browser, find
from PIL import Image
from report_run import foreign_run

from villa_dist.config import Config
from villa_dist.report import compare
from villa_dist.report.build import build

FIND = "document.getElementById('found').textContent"
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def pages(measured_runs: tuple[Config, Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {"report": build(measured_runs[0]), "foreign": build(foreign_run(folder / "foreign"))}
    found["comparison"] = compare.build(measured_runs, f"{folder}/comparison.html")
    return {name: Path(path) for name, path in found.items()}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = find()
    if program is None:
        pytest.skip("no chromium or google-chrome on PATH, none of playwright's; install Debian's chromium to run this")
    with browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("name", ["report", "foreign", "comparison"])
def test_the_page_asks_for_nothing_and_fits(pages: dict[str, Path], tab: Tab, tmp_path: Path, name: str) -> None:
    tab.open(pages[name].as_uri(), width=1280)
    for width in (1280, 400):
        tab.width(width)
        assert tab.value(OVERFLOW) <= 0, f"{name} is wider than {width} pixels"
    tab.call("Emulation.setEmulatedMedia", media="print")
    tab.width(760)  # a page of A4 or letter, within its margins
    assert tab.value(OVERFLOW) <= 0
    tab.call("Emulation.setEmulatedMedia", media="")
    assert tab.requests == [pages[name].as_uri()] and tab.complaints == []
    tab.screenshot(tmp_path / "shot.png", 1200)
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_the_gallery_is_asked_by_keyboard(pages: dict[str, Path], tab: Tab) -> None:
    tab.open(pages["report"].as_uri())
    reach(tab, "document.activeElement.id == 'phrase'")
    tab.value("document.activeElement.select()")
    tab.type("SEV")
    tab.press("Enter")
    assert tab.value("document.activeElement.value") == "seven"
    first = tab.value(FIND)
    assert first.startswith("“seven”: the 12 best regions by ViLLA") and "R-Precision" in first
    assert tab.value("document.querySelectorAll('.hit').length") == 12
    reach(tab, "document.activeElement.name == 'ranking'")
    tab.press("ArrowRight")
    assert "by One-to-one VLM" in tab.value(FIND)
    reach(tab, "document.activeElement.classList.contains('hit')")
    tab.press("Enter")
    assert tab.value("document.getElementById('image').open")
    assert tab.value("document.querySelectorAll('#image-regions > li').length") >= 1
    tab.press("Escape")
    assert not tab.value("document.getElementById('image').open")
    assert tab.value("document.activeElement.classList.contains('hit')"), "focus must come back to where it was"
    assert tab.complaints == []


def test_what_no_attribute_holds_is_said(pages: dict[str, Path], tab: Tab) -> None:
    tab.open(pages["report"].as_uri())
    tab.value("document.getElementById('phrase').focus()")
    tab.value("document.activeElement.select()")
    tab.type("umbrella <b>")
    tab.press("Enter")
    assert tab.value(FIND) == "No attribute holds “umbrella <b>”; pick one of the list."


def test_pictures_and_figures_have_words(pages: dict[str, Path], tab: Tab) -> None:
    tab.open(pages["report"].as_uri())
    parts = "img, svg[role=img], [role=region], .hit, dialog"
    named = "e.alt || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')"
    nameless = f"[...document.querySelectorAll('{parts}')].filter(e => !({named})).map(e => e.outerHTML.slice(0, 80))"
    tab.value("document.querySelector('.hit').click()")
    assert tab.value(nameless) == []
    tab.press("Escape")


def test_hostile_texts_do_nothing(pages: dict[str, Path], tab: Tab) -> None:
    tab.open(pages["foreign"].as_uri())
    assert tab.value("document.querySelectorAll('.hit').length") >= 1
    tab.value("document.querySelector('.hit').click()")
    assert "<script>alert(1)</script>" in tab.value("document.getElementById('image-text').textContent")
    assert tab.value("document.scripts.length") == 2 and tab.complaints == []
    assert not [e for e in tab.events if e["method"] == "Page.javascriptDialogOpening"]


def reach(tab: Tab, wanted: str) -> None:
    """Press Tab until the focus is there."""
    for _ in range(60):
        if tab.value(wanted):
            return
        tab.press("Tab")
    raise AssertionError(f"60 presses of Tab did not reach {wanted}")
