"""Nothing that a model, a data set or a spec says can act in the page, and nothing leaves it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from auditorch.reports.escaping import visible
from auditorch.reports.html import render_html
from auditorch.reports.record import AuditRecord

from .example import HOSTILE, empty
from .pages import Element, read_page

LOADING = ("src", "srcset", "data", "poster", "action", "formaction", "background", "xlink:href", "manifest", "ping")


@pytest.fixture(scope="module")
def tree(hostile_page: str) -> Element:
    return read_page(hostile_page)


def test_one_script_and_one_style_and_both_are_ours(tree: Element, page: str) -> None:
    ours = read_page(page)
    for tag in ("script", "style"):
        assert [e.text() for e in tree.all(tag)] == [e.text() for e in ours.all(tag)]
        assert len(tree.all(tag)) == 1


def test_no_element_can_be_smuggled_in(tree: Element, page: str) -> None:
    assert {e.tag for e in tree.all()} <= {e.tag for e in read_page(page).all()}
    assert not {"iframe", "object", "embed", "link", "base", "form", "animate", "foreignobject"} & {
        e.tag for e in tree.all()
    }


def test_no_attribute_acts(tree: Element) -> None:
    for element in tree.all():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            assert "javascript:" not in value.lower() or name in ("alt", "aria-label", "title", "content")


def test_links_stay_in_the_page_and_lead_somewhere(tree: Element) -> None:
    ids = {e.attributes["id"] for e in tree.all() if "id" in e.attributes}
    hrefs = [e.attributes["href"] for e in tree.all() if "href" in e.attributes]
    assert len(hrefs) > 20
    assert all(re.fullmatch(r"#[a-z0-9-]+", href) for href in hrefs)
    assert {href[1:] for href in hrefs} <= ids


def test_nothing_is_loaded_but_embedded_pictures(tree: Element, hostile_page: str) -> None:
    loads = [e.attributes[name] for e in tree.all() for name in LOADING if name in e.attributes]
    assert all(load.startswith("data:image/png;base64,") for load in loads)
    style = tree.all("style")[0].text()
    assert "url(" not in style
    assert "@import" not in style


def test_every_payload_is_shown_as_text(tree: Element) -> None:
    text = tree.text()
    for payload in HOSTILE:
        assert visible(payload) in text
    assert len(HOSTILE) > 60
    assert "a␀b␛[31mred" in text
    assert "[U+202E]gnp.exe[U+202C]" in text


def test_control_characters_do_not_survive(hostile_page: str) -> None:
    assert not set(hostile_page) & {*map(chr, range(9)), "\x1b", "\u202e", "\u202c"}


def test_templates_in_names_are_not_evaluated(hostile_page: str) -> None:
    assert "{{7*7}}" in hostile_page
    assert "49{% raw" not in hostile_page


def test_policy_allows_only_the_one_script(page: str) -> None:
    tree = read_page(page)
    policy = next(e for e in tree.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(tree.all("script")[0].text().encode()).digest()).decode()
    rules = policy.attributes["content"].split("; ")
    assert "default-src 'none'" in rules
    assert f"script-src 'sha256-{digest}'" in rules
    assert "img-src data:" in rules


def test_ids_are_unique(tree: Element, page: str) -> None:
    for root in (tree, read_page(page)):
        ids = [e.attributes["id"] for e in root.all() if "id" in e.attributes]
        assert len(ids) == len(set(ids))


def test_references_between_elements_resolve(tree: Element) -> None:
    ids = {e.attributes["id"] for e in tree.all() if "id" in e.attributes}
    for element in tree.all():
        assert set(element.attributes.get("aria-labelledby", "").split()) <= ids


@pytest.mark.parametrize("text", ["\ud800", "\ufffe", "\x0b"])
def test_what_utf8_or_xml_cannot_hold_is_replaced(text: str, tmp_path: Path) -> None:
    record = empty().model_copy(update={"name": f"a{text}b"})
    page = render_html(record, tmp_path)
    assert text not in page
    assert page.encode("utf-8")


def test_same_record_same_bytes(record: AuditRecord, folder: Path, page: str) -> None:
    assert render_html(record, folder) == page
