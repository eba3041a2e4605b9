"""The page tells everything the record holds, in words and numbers a person reads."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from auditorch.reports.html import render_html
from auditorch.reports.matrices import shades
from auditorch.reports.record import AuditRecord, Chart, Evidence, Gallery, Item, Line, Matrix, Picture, Result, Table
from auditorch.reports.writing import metric_text, number

from .example import CLASSES, empty, example
from .pages import Element, read_page


@pytest.fixture(scope="module")
def tree(page: str) -> Element:
    return read_page(page)


def classed(root: Element, name: str, tag: str = "") -> list[Element]:
    return [e for e in root.all(tag) if name in e.attributes.get("class", "").split()]


def with_id(root: Element, identity: str) -> Element:
    return next(e for e in root.all() if e.attributes.get("id") == identity)


def heads_of(tree: Element) -> list[str]:
    """The headings of chapters, without their links."""
    return [e.text().removesuffix(" #") for e in tree.all("h2")]


def one_result(result: Result) -> AuditRecord:
    """The smallest audit with one check."""
    variant = {"id": "base", "kind": "base", "results": (result,)}
    return AuditRecord.model_validate({**empty().model_dump(), "variants": (variant,)})


def test_first_screen_leads_with_verdict_gates_and_identity(tree: Element, record: AuditRecord) -> None:
    assert record.name in with_id(tree, "verdict").text()
    assert "1 failed, 1 is inconclusive, 1 could not be judged and 1 passed" in with_id(tree, "verdict").text()
    [gates] = classed(tree, "gates", "table")
    rows = gates.all("tr")[1:]
    assert [row.all("td")[0].text().split()[-1] for row in rows] == [
        "Incomplete", "Failed", "Inconclusive", "Passed",
    ]  # fmt: skip
    assert "6.2 % (4.9–7.9)" in rows[1].text()
    assert "threshold 40.0 %" in rows[1].text()
    assert record.gates[1].reason in rows[1].text()
    assert record.model.sha256 in tree.text()
    assert record.data.sha256 in tree.text()


def test_gate_bars_draw_value_and_threshold_in_place(tree: Element) -> None:
    bars = classed(tree, "gatebar")
    assert len(bars) == 3
    failed = next(bar for bar in bars if "fail" in bar.attributes["class"])
    value = float(failed.all("circle")[0].attributes["cx"])
    threshold = float(classed(failed, "threshold")[0].attributes["d"].split(",")[0][1:])
    good = failed.all("rect")[0].attributes
    assert value < threshold
    assert float(good["x"]) == threshold


def test_worst_findings_are_told_once_and_worst_first(tree: Element) -> None:
    [worst] = classed(tree, "worst", "ol")
    items = [item.text() for item in worst.all("li")]
    assert ["critical" in items[0], "medium" in items[1]] == [True, True]
    assert sum("Imperceptible changes" in item for item in items) == 1


def test_findings_of_several_variants_stand_together(tree: Element) -> None:
    heads = [e.text() for e in classed(classed(tree, "chapter")[-4], "head")]
    assert [head.split()[0] for head in heads] == ["critical", "medium", "low", "info"]
    [critical] = [e for e in classed(tree, "chapter")[-4].all("li") if "critical" in e.text()]
    assert critical.text().count("Robust accuracy at 8/255") == 4
    assert critical.text().count("Train on adversarial examples") == 1


def test_chapters_are_questions_in_order(tree: Element) -> None:
    asked = [head for head in heads_of(tree) if head.endswith("?")]
    assert asked == [
        "Is it accurate?", "Can it be fooled?", "Why does it decide so?", "What does it leak?",
        "What do the defenses buy?", "What else was examined?",
    ]  # fmt: skip


def test_a_check_may_bring_its_own_question(tmp_path: Path) -> None:
    result = Result(check="rust", id="rust", title="Rust", question="Does it rust?", status="ok")
    tree = read_page(render_html(one_result(result), tmp_path))
    assert "What else was examined?" in heads_of(tree)
    assert [e.text() for e in classed(tree, "asks")] == ["Does it rust?"]


@pytest.mark.parametrize(
    ("check", "standards", "chapter"),
    [
        ("text_evasion", (), "Can it be fooled?"),
        ("their_own", ("OWASP ML04:2023", "NISTAML.033"), "What does it leak?"),
        ("their_own", ("EU AI Act Art. 15(5)", "NISTAML.05"), "Can the file be trusted?"),
        ("shift", (), "Does it survive wear?"),
    ],
)
def test_checks_find_their_chapter(tmp_path: Path, check: str, standards: tuple[str, ...], chapter: str) -> None:
    result = Result(check=check, id="x", title="X", status="ok", standards=standards)
    tree = read_page(render_html(one_result(result), tmp_path))
    assert chapter in heads_of(tree)


def test_questions_that_nothing_answers_are_named(tmp_path: Path) -> None:
    result = Result(check="performance", id="p", title="P", status="ok")
    tree = read_page(render_html(one_result(result), tmp_path))
    assert len(classed(tree, "unasked")) == 5


def test_every_metric_of_every_variant_is_there(tree: Element, record: AuditRecord) -> None:
    text = tree.text()
    cells = {" ".join(value.text().split()) for value in classed(tree, "v", "span")}
    for variant in record.variants:
        for result in variant.results:
            for metric in result.metrics:
                assert number(metric.value, metric.unit) in cells
                assert f"{result.id}.{metric.name}" in text
        for metric in variant.metrics:
            assert metric_text(metric) in text


def test_variants_stand_side_by_side(tree: Element, record: AuditRecord) -> None:
    table = next(t for t in classed(tree, "metrics", "table") if "Headline metrics of every" in t.text())
    head = [cell.text() for cell in table.all("tr")[0].all("th")]
    assert head == ["Metric", *(variant.title for variant in record.variants)]
    robust = next(row for row in table.all("tr") if row.text().startswith("robust accuracy"))
    assert "better" in robust.all("td")[1].text()
    assert "better" not in robust.all("td")[0].text()
    assert "worse" in next(r for r in table.all("tr") if r.text().startswith("accuracy")).all("td")[3].text()


def test_trade_off_has_a_point_and_both_error_bars_for_each_variant(tree: Element, record: AuditRecord) -> None:
    chart = with_id(tree, "trade-off-linf")
    assert len(classed(chart, "whisker")) == len(record.variants)
    assert all("H" in w.attributes["d"] and "V" in w.attributes["d"] for w in classed(chart, "whisker"))
    labels = {e.text() for e in classed(chart, "point")}
    assert labels == {variant.title for variant in record.variants}
    assert "64.1 (61.1–67" in chart.text()


def test_every_chart_has_title_description_and_table(tree: Element) -> None:
    figures = classed(tree, "chart", "figure")
    assert len(figures) > 15
    for figure in figures:
        [svg] = classed(figure, "chart", "svg")
        assert svg.all("title")[0].text()
        assert svg.all("desc")[0].text()
        [numbers] = classed(figure, "numbers", "details")
        assert len(numbers.all("tr")) > 1


def test_every_table_has_a_caption_and_scoped_heads(tree: Element) -> None:
    for table in tree.all("table"):
        assert table.all("caption")[0].text().strip()
        assert all(head.attributes.get("scope") for head in table.all("th"))


def test_headings_do_not_skip_levels(tree: Element) -> None:
    levels = [int(e.tag[1]) for e in tree.all() if e.tag in ("h1", "h2", "h3", "h4", "h5")]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_base_gallery_is_open_and_variants_are_folded(tree: Element) -> None:
    section = with_id(tree, "check-linf")
    direct = [child for child in section.children if child.attributes.get("class") == "gallery"]
    assert len(direct) == 1
    assert len(direct[0].all("img")) == 18
    folded = [g for details in classed(section, "variant", "details") for g in classed(details, "gallery")]
    assert len(folded) == 4
    assert "2 more in evidence/dp_sgd/linf.safetensors" in folded[2].text()


def test_gallery_states_magnification_and_predictions(tree: Element) -> None:
    gallery = classed(with_id(tree, "check-linf"), "gallery")[0].text()
    assert "×31.9" in gallery
    assert "±0.0314" in gallery
    assert "Sneaker 87.1 %" in gallery


def test_statuses_and_reasons_are_stated(tree: Element) -> None:
    text = tree.text()
    assert "Adversarial training: this check did not finish." in text
    assert "CUDA out of memory at batch size 1" in text
    assert "DP-SGD (ε = 8): this check was skipped." in text


def test_limits_provenance_and_verification(tree: Element, record: AuditRecord) -> None:
    text = tree.text()
    assert all(limit in text for limit in record.not_covered)
    assert "Drift: all samples come from one source." in text
    assert "auditorch verify DIR" in text
    assert "auditorch reproduce DIR linf" in text
    assert "auditorch reproduce DIR linf --variant adversarial_training" in text
    assert "checks:\n- performance\n- evasion:\n    id: linf" in text
    for variant in record.variants:
        for evidence in (*variant.evidence, *(e for r in variant.results for e in r.evidence)):
            assert evidence.sha256 in text


def test_standards_and_references_are_named(tree: Element) -> None:
    assert "MITRE ATLAS AML.T0015" in tree.text()
    assert "arXiv:2003.01690" in tree.text()


def test_unknown_kinds_of_check_render_with_their_own_figures(tree: Element) -> None:
    section = with_id(tree, "check-energy")
    assert "0.8 mJ" in section.text()
    assert "Cloud of points" in section.text()


def test_empty_audit_renders(tmp_path: Path) -> None:
    text = read_page(render_html(empty(), tmp_path)).text()
    assert "No gates were set" in text
    assert "No check ran." in text
    assert "No limits were recorded" in text


def test_one_variant_has_no_comparison(tmp_path: Path) -> None:
    assert "What do the defenses buy?" not in render_html(example(tmp_path, variants=1), tmp_path)


@pytest.mark.parametrize("trouble", ["missing", "changed", "truncated", "outside", "unlisted", "no tensor", "no row"])
def test_gallery_that_cannot_be_drawn_says_why(trouble: str, tmp_path: Path) -> None:
    record = example(tmp_path, variants=1, items=1)
    result = record.variants[0].results[1]
    [gallery] = [f for f in result.figures if isinstance(f, Gallery)]
    file = tmp_path / result.evidence[0].path
    evidence = result.evidence
    said = {"missing": "is missing", "changed": "changed after the audit", "truncated": "cannot be read",
            "outside": "outside the output folder", "unlisted": "not among the evidence",
            "no tensor": "no tensor", "no row": "no picture 9"}  # fmt: skip
    if trouble == "missing":
        file.unlink()
    if trouble == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    if trouble == "truncated":
        data = file.read_bytes()[:40]
        file.write_bytes(data)
        evidence = (Evidence(path=evidence[0].path, sha256=hashlib.sha256(data).hexdigest(), kind="x"),)
    if trouble == "outside":
        outside = tmp_path.parent / "outside.safetensors"
        outside.write_bytes(file.read_bytes())
        evidence = (evidence[0].model_copy(update={"path": "../outside.safetensors"}),)
        gallery = gallery.model_copy(update={"evidence": "../outside.safetensors"})
    if trouble == "unlisted":
        evidence = ()
    if trouble == "no tensor":
        gallery = gallery.model_copy(update={"pictures": (Picture(tensor="absent", title="a"),)})
    if trouble == "no row":
        gallery = gallery.model_copy(update={"items": (Item(index=9, sample_id="s", captions=("told anyway",)),)})
    page = render_html(one_result(result.model_copy(update={"figures": (gallery,), "evidence": evidence})), tmp_path)
    assert said[trouble] in read_page(page).text()
    assert "<img" not in page
    assert gallery.items[0].captions[0] in page


def test_symlinked_evidence_is_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    record = example(folder, variants=1, items=1)
    file = folder / record.variants[0].results[1].evidence[0].path
    file.rename(tmp_path / "elsewhere.safetensors")
    file.symlink_to(tmp_path / "elsewhere.safetensors")
    assert "outside the output folder" in render_html(record, folder)


def test_odd_numbers_do_not_break_charts(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    charts = tuple(
        Chart.model_validate(
            {"id": f"c{style}{scale}", "title": "t", "style": style, "x_label": "x", "y_label": "y",
             "x_scale": scale, "y_scale": scale, "diagonal": True,
             "lines": ({"name": "a", "x": (0, 1, nan, 3, inf), "y": (None, -1, 2, nan, inf),
                        "low": (0, nan, None), "high": (1e308, -inf)},
                       {"name": "b", "x": (), "y": ()}, {"name": "c", "x": (5e-324,), "y": (1e308,)})}
        )
        for style in ("line", "step", "scatter", "bar")
        for scale in ("linear", "log")
    )  # fmt: skip
    bare = Chart(id="bare", title="t", x_label="x", y_label="y", lines=())
    result = Result(check="c", id="c", title="c", status="ok", figures=(*charts, bare))
    tree = read_page(render_html(one_result(result), tmp_path))
    drawn = [e.attributes.get("d", "") for e in tree.all("path")]
    assert drawn
    assert not any("nan" in d or "inf" in d for d in drawn)


def test_long_tables_say_what_they_leave_out(tmp_path: Path) -> None:
    table = Table(id="t", title="T", columns=("i",), rows=tuple((i,) for i in range(1500)))
    result = Result(check="c", id="c", title="c", status="ok", figures=(table,))
    tree = read_page(render_html(one_result(result), tmp_path))
    assert "The first 200 of 1,500 rows; audit.json has all." in tree.text()
    assert len(tree.all("tr")) < 210


def test_page_is_the_same_from_the_record_on_disk(record: AuditRecord, folder: Path, page: str) -> None:
    assert render_html(AuditRecord.model_validate_json(record.model_dump_json()), folder) == page


@pytest.mark.parametrize("labels", [(), ("a",), ("a", "b", "c"), tuple(f"l{i}" for i in range(30))])
def test_ragged_figures_render(labels: tuple[str, ...], tmp_path: Path) -> None:
    figures = (
        Matrix(id="m", title="M", row_label="r", column_label="c", labels=labels, values=((1, -2), (float("nan"),))),
        Matrix(id="n", title="N", row_label="r", column_label="c", labels=labels, values=()),
        Table(id="t", title="T", columns=labels, rows=((1, None), ("x",), ())),
        Chart(id="c", title="C", style="bar", x_label="x", y_label="y", categories=labels,
              lines=(Line(name="a", x=(0, 7, 2), y=(1,), low=(0, 0)), Line(name="b", x=(1.5,), y=(1,)))),
    )  # fmt: skip
    result = Result(check="c", id="c", title="", status="ok", figures=figures)
    tree = read_page(render_html(one_result(result), tmp_path))
    assert {"M", "N", "C"} <= {e.text().strip() for e in tree.all()}
    assert "T (3 rows)" in tree.text() or "T" in [e.text() for e in tree.all("caption")]


def test_large_matrix_is_a_picture_with_its_largest_entries(tmp_path: Path) -> None:
    k = 60
    values = np.full((k, k), 1.0)
    values[3, 7] = 99
    labels = tuple(f"class {i}" for i in range(k))
    matrix = Matrix(id="m", title="M", row_label="true", column_label="predicted", labels=labels,
                    values=tuple(map(tuple, values.tolist())))  # fmt: skip
    result = Result(check="c", id="c", title="c", status="ok", figures=(matrix,))
    page = render_html(one_result(result), tmp_path)
    rows = [row.text() for row in read_page(page).all("tr")]
    assert "class 3class 799" in rows[1]
    assert len(page) < 60_000


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e308])
def test_shades_do_not_depend_on_the_size_of_the_numbers(size: float) -> None:
    def shaded(*values: tuple[float, ...]) -> list[list[int]]:
        return shades(Matrix(id="m", title="M", row_label="", column_label="", labels=("a", "b"), values=values))

    assert shaded((size, size), (0.0, size)) == [[50, 50], [0, 100]]
    assert shaded((size, -size / 2), (0.0, float("inf"))) == [[100, 50], [0, 0]]


def test_confusion_matrix_has_every_count(tree: Element, record: AuditRecord) -> None:
    [matrix] = [f for f in record.variants[0].results[0].figures if isinstance(f, Matrix)]
    [table] = list(classed(with_id(tree, "check-performance"), "heat", "table"))[:1]
    assert [cell.text() for cell in table.all("tr")[1].all("td")] == [number(v) for v in matrix.values[0]]
    assert all(name in table.text() for name in CLASSES)


def test_large_audit_stays_under_five_megabytes(tmp_path: Path) -> None:
    record = example(tmp_path, variants=5, items=8, side=224, channels=3)
    page = render_html(record, tmp_path)
    assert len(page.encode()) < 5_000_000
    assert page.count("<img") == 8 * 7 + 4 * (4 * 3) + 3 * (4 * 4)
    assert "pixels; the evidence has full size" in page
