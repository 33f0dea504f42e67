"""The page in a real browser, opened from the disk: it asks for nothing, breaks nowhere, and obeys the keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench.report.example import HOSTILE, result, store
from torchstone.bench.report import write_report

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium")

CHECKS = """() => {
  const wrong = [];
  const name = (e) => e.getAttribute("aria-label") || e.textContent.trim()
    || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent.trim();
  for (const svg of document.querySelectorAll("svg")) {
    const figure = svg.getAttribute("role") === "img" && svg.querySelector("title")?.textContent.trim()
      && svg.querySelector("desc")?.textContent.trim();
    if (!figure && svg.getAttribute("aria-hidden") !== "true") wrong.push("a figure has no words");
  }
  for (const e of document.querySelectorAll("button, a, summary, section, article, nav, [role=region]"))
    if (!name(e)) wrong.push(`${e.tagName} ${e.className} has no name`);
  for (const e of document.querySelectorAll("input, select"))
    if (!e.labels.length || !e.labels[0].textContent.trim()) wrong.push(`${e.tagName} has no label`);
  for (const e of document.querySelectorAll("table")) {
    if (!e.caption?.textContent.trim()) wrong.push("a table has no caption");
    for (const head of e.querySelectorAll("th")) if (!head.scope) wrong.push("a head has no scope");
    for (const row of e.tBodies[0].rows)
      if (row.cells.length !== e.tHead.rows[0].cells.length) wrong.push("a row has other columns than its head");
  }
  let level = 0;
  for (const e of document.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    if (+e.tagName[1] > level + 1) wrong.push(`${e.tagName} follows h${level}`);
    level = +e.tagName[1];
  }
  if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1");
  for (const tag of ["main", "header", "footer"])
    if (document.querySelectorAll(`body > ${tag}`).length !== 1) wrong.push(`not one ${tag}`);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) wrong.push("an id is there twice");
  for (const a of document.querySelectorAll("a[href^='#']"))
    if (!document.getElementById(decodeURIComponent(a.hash.slice(1)))) wrong.push(`${a.hash} leads nowhere`);
  return wrong;
}"""

CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const low = new Set();
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), text = e.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const [a, b] = [light(parse(text)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.add(`${e.tagName} ${e.getAttribute("class")} ${ratio.toFixed(2)}`);
  }
  return [...low];
}"""


@dataclass
class Heard:
    """What a page said and asked for while it was open."""

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.messages.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests here."""
    assert CHROMIUM is not None, "TORCHSTONE_REQUIRE names browser, but there is no Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of one study, of several, of an unfinished one, and one whose names are all hostile."""
    folder = tmp_path_factory.mktemp("pages")
    one, bad = result(), result(lambda name: f"{name} {' '.join(HOSTILE)}")
    other = replace(one, study=replace(one.study, name="zebra"), variance={"main": {"base": {"init": [1.0, 2.0, 4.0]}}})
    found = {"one": [one], "several": [one, other, result(replicates=3)], "hostile": [bad, one], "honest": [one, one]}
    return {
        name: write_report(results, folder / f"{name}.html", store=store(*results)) for name, results in found.items()
    }


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """``open_page(path, width, scheme)`` gives what is heard of a fresh page."""
    opened: list[Any] = []

    def visit(path: Path, width: int = 1280, scheme: Any = "light") -> Heard:
        heard = Heard(browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme))
        opened.append(heard.page)
        heard.page.goto(path.as_uri())
        return heard

    yield visit
    for page in opened:
        page.close()


@pytest.mark.parametrize("name", ["one", "several", "hostile"])
def test_the_page_is_sound_and_asks_for_nothing(name: str, files: dict[str, Path], open_page: Any):
    heard = open_page(files[name])
    assert heard.page.evaluate(CHECKS) == []
    assert heard.messages == []
    assert heard.requests == [files[name].as_uri()]


@pytest.mark.parametrize("name", ["several", "hostile"])
def test_no_page_scrolls_sideways(name: str, files: dict[str, Path], open_page: Any):
    page = open_page(files[name]).page
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    for width in (320, 768, 1025, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(scheme: str, files: dict[str, Path], open_page: Any):
    page = open_page(files["several"], scheme=scheme).page
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert page.evaluate(CONTRAST) == []


def test_hostile_names_add_no_element_and_run_nothing(files: dict[str, Path], open_page: Any):
    heard = open_page(files["hostile"])
    count = "[...document.querySelectorAll('*')].map((e) => e.tagName)"
    honest = open_page(files["honest"]).page.evaluate(count)
    assert heard.page.evaluate(count) == honest
    assert heard.messages == []
    names = heard.page.evaluate("[...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames())")
    assert not [name for name in names if name.startswith("on")]
    targets = heard.page.evaluate("[...document.querySelectorAll('[href]')].map((e) => e.getAttribute('href'))")
    assert all(target.startswith("#") for target in targets)


def focus(page: Any, text: str) -> None:
    """Press Tab until the focus is on the element with that text, as somebody without a mouse would."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(document.activeElement.ariaLabel || document.activeElement.textContent).trim()") == text:
            return
    raise AssertionError(f"the focus never came to {text!r}")


def first_cells(page: Any) -> list[str]:
    return page.evaluate("[...document.querySelector('.claims').tBodies[0].rows].map((row) => row.cells[0].innerText)")


def test_sorting_by_the_keyboard_alone(files: dict[str, Path], open_page: Any):
    page = open_page(files["several"]).page
    before = first_cells(page)
    focus(page, "Study")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    state = "document.activeElement.parentElement.getAttribute('aria-sort')"
    orders = []
    for key in ("Enter", "Space", "Enter"):
        page.keyboard.press(key)
        orders.append((page.evaluate(state), first_cells(page)))
    assert [order for order, _ in orders] == ["ascending", "descending", "none"]
    assert orders[0][1] == sorted(before)
    assert orders[1][1][0].startswith("zebra")
    assert orders[2][1] == before


def test_numbers_sort_as_numbers_and_missing_ones_come_last(files: dict[str, Path], open_page: Any):
    page = open_page(files["one"]).page
    focus(page, "Effect [95 %]")
    values = "[...document.querySelector('.claims').tBodies[0].rows].map((row) => row.cells[3].dataset.value)"
    for direction in (1, -1):
        page.keyboard.press("Enter")
        shown = page.evaluate(values)
        numbers = [float(value) for value in shown if value]
        assert numbers == sorted(numbers, reverse=direction < 0)
        assert shown == [value for value in shown if value] + [""] * shown.count("")


def test_filtering_by_the_keyboard_alone(files: dict[str, Path], open_page: Any):
    page = open_page(files["several"]).page
    visible = "[...document.querySelectorAll('.claims')][0].querySelectorAll('tbody tr:not([hidden])').length"
    everything = page.evaluate(visible)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "INPUT":
            break
    page.keyboard.type("EQUALS that")
    assert page.evaluate(visible) == 3
    assert page.inner_text("[role=status]") == f"3 of {everything} claims"
    for _ in range(len("EQUALS that")):
        page.keyboard.press("Backspace")
    assert page.evaluate(visible) == everything
    page.keyboard.press("Tab")
    page.keyboard.type("refuted")
    assert (
        page.evaluate("[...document.querySelectorAll('.claims tbody tr:not([hidden])')][0].dataset.verdict")
        == "refuted"
    )
    assert page.evaluate(visible) == 2
    page.keyboard.press("Tab")
    page.keyboard.type("zebra")
    assert page.evaluate(visible) == 1


def test_every_control_is_reached_and_seen(files: dict[str, Path], open_page: Any):
    page = open_page(files["one"]).page
    wanted = page.evaluate("document.querySelectorAll('a, button, input, select, summary, [tabindex=\"0\"]').length")
    reached = set()
    for _ in range(wanted + 2):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e);
            const index = [...document.querySelectorAll('*')].indexOf(e);
            return [index, s.outlineStyle, parseFloat(s.outlineWidth), e.tagName] }"""
        )
        if seen[3] != "BODY":
            assert seen[1:3] == ["solid", 3], seen
            reached.add(seen[0])
    closed = page.evaluate("document.querySelectorAll('details:not([open]) :is(button, [tabindex=\"0\"])').length")
    assert len(reached) == wanted - closed


def test_paper_shows_what_is_folded_and_needs_no_colour(files: dict[str, Path], open_page: Any, tmp_path: Path):
    page = open_page(files["one"], 794).page
    folded = "document.querySelector('details:not([open]) table').checkVisibility()"
    assert not page.evaluate(folded)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 794
    assert page.evaluate("document.querySelector('.filter').getClientRects().length") == 0
    assert page.evaluate(folded)
    edges = page.evaluate("[...document.querySelectorAll('.badge')].map((e) => getComputedStyle(e).borderStyle)")
    assert set(edges) == {"solid", "double", "dotted"}
    assert len(page.pdf(path=str(tmp_path / "page.pdf"))) > 10_000


def test_without_scripts_everything_is_there(browser: Any, files: dict[str, Path]):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(files["several"].as_uri())
    assert page.locator("th button").count() == 0
    assert page.locator(".claims tbody tr:visible").count() == page.locator(".claims tbody tr").count() > 10
    context.close()
