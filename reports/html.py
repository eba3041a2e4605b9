"""The report as one self-contained HTML file: no request leaves it, no script is needed to read it."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from . import writing
from .category_charts import MOST_CATEGORIES
from .chapters import Chapter, chapters, ordered_variants
from .charts import chart_svg, legend_key
from .comparison import own_rows, trade_offs, variant_title
from .escaping import Anchors, shorten, visible
from .excerpts import marked_pieces
from .findings import OWN, collect, limits, together, worst
from .gates import gate_rows, gates_note
from .matrices import matrix_picture, shades
from .pictures import data_uri, png
from .questions import ORDER, unanswered
from .record import AuditRecord, Matrix
from .tables import cell_texts, chart_table, confusions_table, is_numeric

_LARGEST_MATRIX = 25
_MOST_ROWS = 200


def render_html(record: AuditRecord, directory: Path) -> str:
    """The report. ``directory`` is the output folder that evidence paths are relative to."""
    anchors = Anchors()
    for fixed in ("main", "verdict", "findings", "defenses", "limits", "provenance", "verify"):
        anchors.new(fixed)
    parts = chapters(record, directory, anchors)
    found = collect(record)
    variants = ordered_variants(record)
    return page(
        "report.html.jinja",
        title=f"{record.name}: {writing.verdict_word(record.verdict)} – audit report",
        record=record,
        chapters=parts,
        brief=_in_brief(record, parts),
        check_anchors=_check_anchors(parts),
        gates=gate_rows(record),
        gates_note=gates_note(record),
        findings=found,
        worst=worst(found, base=variants[0].id if variants else ""),
        limits=limits(record),
        variants=variants,
        trade_offs=trade_offs(record, variants),
        own_rows=own_rows(variants),
        spec=_yaml(record.model_dump(mode="json")["spec"]),
        reproduce=_reproduce,
        uid=anchors.new,
    )


def page(template: str, **content: Any) -> str:
    """A page of ``templates/`` with our style and our one script in it."""
    dress = {"csp": _content_policy(), "style": Markup(_asset("report.css")), "script": Markup(_asset("report.js"))}  # noqa: S704 - our own files
    return _environment().get_template(template).render(**content, **dress)


def _in_brief(record: AuditRecord, parts: list[Chapter]) -> list[tuple[str, Chapter | None]]:
    """Each question with its chapter, or None where nothing was examined."""
    answered = {chapter.question: chapter for chapter in parts}
    open_ = unanswered(record)
    return [(question, answered.get(question)) for question in ORDER if question in (*answered, *open_)]


def _check_anchors(parts: list[Chapter]) -> dict[str, str]:
    return {OWN: "defenses"} | {group.check: group.anchor for chapter in parts for group in chapter.groups}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bounds": writing.bounds_text,
        "duration": writing.duration,
        "metric": writing.metric_text,
        "moment": writing.moment,
        "number": writing.number,
        "parameters": _parameters,
        "plural": writing.plural,
        "shorten": shorten,
        "size": writing.size,
        "value": _value,
        "variant_title": variant_title,
        "yaml": _yaml,
    }
    environment.globals |= {
        "cell_texts": cell_texts,
        "chart_svg": chart_svg,
        "chart_table": chart_table,
        "confusions": confusions_table,
        "is_numeric": is_numeric,
        "legend_key": legend_key,
        "marked_pieces": marked_pieces,
        "matrix_image": _matrix_image,
        "matrix_is_large": lambda matrix: len(matrix.labels) > _LARGEST_MATRIX,
        "most_categories": MOST_CATEGORIES,
        "most_rows": _MOST_ROWS,
        "shades": shades,
        "together": together,
        "verdict_sentence": writing.verdict_sentence,
        "verdict_word": writing.verdict_word,
    }
    return environment


def _shown(value: Any) -> Any:
    """Everything a template prints passes here: hostile characters are made visible before autoescape."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _content_policy() -> str:
    """No request of any kind; the one script is known by its hash."""
    digest = base64.b64encode(hashlib.sha256(_asset("report.js").encode()).digest()).decode()
    return (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


@cache
def _asset(name: str) -> str:
    return (files(__package__ or "") / "templates" / name).read_text(encoding="utf-8")


def _value(value: Any) -> str:
    """A parameter on one line."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: writing.DASH}[value]
    if isinstance(value, int | float):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(_value(part) for part in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_value(part)}" for key, part in value.items())
    return str(value)


def _parameters(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, _value(value)) for key, value in values.items()]


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip() if value else ""


def _reproduce(check: str, variant: str = "base") -> str:
    """The command that runs one check again, exactly as it was run."""
    on = "" if variant == "base" else f" --variant {shlex.quote(variant)}"
    return f"auditorch reproduce DIR {shlex.quote(check)}{on}"


def _matrix_image(matrix: Matrix) -> Markup:
    return Markup(data_uri(png(matrix_picture(matrix), 480, smooth=False)))  # noqa: S704 - base64
