"""A small reader of pages: elements with attributes, and text, as a browser's parser would see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"meta", "img", "br", "link", "input", "hr", "base", "embed", "source"})


@dataclass
class Element:
    """One element with what is in it, in order: elements and text."""

    tag: str
    attributes: dict[str, str]
    content: list[Element | str] = field(default_factory=list)

    @property
    def children(self) -> list[Element]:
        return [part for part in self.content if isinstance(part, Element)]

    def all(self, tag: str = "") -> list[Element]:
        found = [self] if tag in ("", self.tag) else []
        return found + [match for child in self.children for match in child.all(tag)]

    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text() for part in self.content)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self.open = [self.root]
        self.unmatched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].content.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].content.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1].tag == tag:
            self.open.pop()
        else:
            self.unmatched.append(tag)

    def handle_data(self, data: str) -> None:
        self.open[-1].content.append(data)


def read_page(page: str) -> Element:
    """The page as a tree; fails when tags do not match."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert not reader.unmatched
    assert len(reader.open) == 1
    return reader.root
