"""The pages in a real Chromium: hostile names stay text, nothing is requested, nothing breaks, anyone can read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from auditorch.audit.compare import compare
from auditorch.reports.comparison_page import render_comparison_html
from auditorch.reports.html import render_html
from auditorch.reports.record import AuditRecord

from .browser import Browser, binaries, chromium
from .example import HOSTILE

pytestmark = pytest.mark.skipif(binaries() is None, reason="Chromium and chromedriver are not installed")

TOUCH = """
for (const element of document.querySelectorAll("body *")) {
  for (const kind of ["mouseover", "mouseenter", "focus", "error", "load", "toggle", "begin"])
    element.dispatchEvent(new Event(kind, { bubbles: true }));
  if (element.tagName === "DETAILS") element.open = true;
  if (element.tagName === "BUTTON") element.click();
}
"""
"""What a reader's hands would do."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory,
    page: str,
    hostile_page: str,
    record: AuditRecord,
    hostile_record: AuditRecord,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    texts = {
        "report": page,
        "hostile": hostile_page,
        "comparison": render_comparison_html(compare(record, record)),
        "hostile comparison": render_comparison_html(compare(record, hostile_record)),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("policy", [True, False], ids=["with policy", "by escaping alone"])
@pytest.mark.parametrize("name", ["hostile", "hostile comparison"])
def test_no_payload_runs_loads_or_leaves(browser: Browser, pages: dict[str, Path], name: str, policy: bool) -> None:
    browser.open(pages[name], policy=policy)
    where = browser.run("return location.href")
    browser.run(TOUCH)
    assert browser.run("return witnessed") == []
    assert browser.run("return location.href.split('#')[0]") == where.split("#")[0]
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run(
        "return [...document.images].every((i) => i.src.startsWith('data:image/png') && i.naturalWidth > 0)"
    )
    assert browser.run("return document.scripts.length") == 1
    assert browser.run("return document.querySelectorAll('iframe, object, embed, form, base, link, video').length") == 0


def test_payloads_are_read_as_text(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["hostile"])
    text = browser.run("return document.body.textContent")
    assert len(HOSTILE) >= 60
    plain = [payload for payload in HOSTILE if payload.isprintable() and "\u202e" not in payload]
    assert len(plain) >= 58
    assert [payload for payload in plain if payload not in text] == []


@pytest.mark.parametrize("width", [400, 900, 1400])
@pytest.mark.parametrize("name", ["report", "hostile", "hostile comparison"])
def test_the_layout_holds(browser: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    browser.resize(width)
    browser.open(pages[name])
    found = browser.run(
        """
        const main = document.querySelector("body > .page > main"), box = main.getBoundingClientRect();
        for (const details of document.querySelectorAll("details")) details.open = true;
        return { wide: document.documentElement.scrollWidth, main: box.width, tall: main.scrollHeight,
                 heads: document.querySelectorAll("h1").length, left: box.left }"""
    )
    assert found["wide"] <= width
    assert found["main"] > 0.6 * width
    assert found["left"] >= 0
    assert found["tall"] > 1000
    assert found["heads"] == 1


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("report", "light"),
        ("comparison", "dark"),
        pytest.param("report", "dark", marks=pytest.mark.slow),
        pytest.param("comparison", "light", marks=pytest.mark.slow),
    ],
)
def test_no_serious_barrier(browser: Browser, pages: dict[str, Path], name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_core_python")
    browser.resize(1200)
    browser.emulate(prefers_color_scheme=scheme)
    browser.open(pages[name])
    browser.run("for (const details of document.querySelectorAll('details')) details.open = true;")
    browser.run((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = browser.run_async(
        "const done = arguments[0]; axe.run(document, { resultTypes: ['violations'] }).then((r) => done(r.violations))"
    )
    serious: list[Any] = [
        (v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_without_scripts_everything_is_there(browser: Browser, pages: dict[str, Path]) -> None:
    browser.scripts(on=False)
    try:
        browser.open(pages["report"])
    finally:
        browser.scripts(on=True)
    assert browser.run("return document.querySelectorAll('button, input').length") == 0
    assert browser.run("return document.querySelectorAll('svg.chart').length") > 5
    assert browser.run("return document.querySelectorAll('details summary').length") > 10


def test_tables_sort_and_filter(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    found = browser.run(
        """
        const fits = (t) => t.querySelector("td[data-v]") && t.tBodies[0].rows.length > 3;
        const table = [...document.querySelectorAll("table.sortable")].find(fits), rows = table.tBodies[0].rows;
        const column = [...rows[0].cells].findIndex((cell) => cell.dataset.v !== undefined);
        const values = () => [...rows].map((row) => Number(row.cells[column].dataset.v));
        const head = table.querySelectorAll("thead th")[column], button = head.querySelector("button");
        button.click(); const up = values(), told = head.getAttribute("aria-sort");
        button.click(); return { up, told, down: values() }"""
    )
    assert found["told"] == "ascending"
    assert found["up"] == sorted(found["up"])
    assert found["down"] == found["up"][::-1]
    filtered = browser.run(
        """
        const field = document.querySelector("input.filter");
        const all = [...field.nextElementSibling.querySelectorAll("tbody tr")];
        field.value = all[0].textContent.trim().slice(0, 6); field.dispatchEvent(new Event("input"));
        return [all.length, all.filter((row) => !row.hidden).length, all[0].hidden]"""
    )
    assert filtered[0] > filtered[1] >= 1
    assert filtered[2] is False


def test_the_keyboard_walks_from_part_to_part(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    visited = browser.run(
        """
        const press = (key) => dispatchEvent(new KeyboardEvent("keydown", { key, altKey: true, bubbles: true }));
        document.documentElement.style.scrollBehavior = "auto"; scrollTo(0, 0);
        const tops = []; for (let i = 0; i < 3; i += 1) { press("ArrowDown"); tops.push(scrollY); }
        press("ArrowUp"); return [...tops, scrollY]"""
    )
    assert visited[0] < visited[1] < visited[2]
    assert visited[3] < visited[2]


def test_a_link_opens_what_it_leads_to(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    target = browser.run("return document.querySelector('details.variant').id")
    browser.run("location.hash = arguments[0]", target)
    browser.run_async("setTimeout(arguments[0], 50)")
    assert browser.run("return document.getElementById(arguments[0]).open", target) is True


def test_print_leaves_out_what_only_a_screen_can_use(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    pdf = browser.command("Page.printToPDF", preferCSSPageSize=True)
    assert len(pdf["data"]) > 20_000
    browser.command("Emulation.setEmulatedMedia", media="print")
    shown = "(s) => [...document.querySelectorAll(s)].some((e) => e.offsetParent)"
    left = browser.run(f"return ['nav.contents', '.filter', '.deep', '.skip'].filter({shown})")
    browser.command("Emulation.setEmulatedMedia", media="")
    assert left == []


def test_a_thousand_samples_and_five_variants_are_small_and_quick(
    browser: Browser, tmp_path: Path, record: AuditRecord, folder: Path
) -> None:
    text = render_html(record, folder)
    assert record.data.n == 1000
    assert len(record.variants) == 5
    assert len(text.encode()) < 5_000_000
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    browser.open(tmp_path / "page.html")
    assert browser.run("return document.readyState") == "complete"
