"""Read a report as a browser would: elements, attributes, text."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "input", "wbr"}


class Page(HTMLParser):
    """Fails where elements are not closed in order; keeps what the tests ask for."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.ids: set[str] = set()
        self._open: list[str] = []
        self._broken = False
        self.feed(source)
        self.close()
        if self._open:
            raise ValueError(f"not closed: {self._open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._see(tag, attrs)
        self._broken = tag == "wbr"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._see(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        opened = self._open.pop()
        if opened != tag:
            raise ValueError(f"</{tag}> closes <{opened}>")

    def handle_data(self, data: str) -> None:
        if self._broken:  # a place where a line may break is no space
            self.texts[-1] += data
        else:
            self.texts.append(data)
        self._broken = False

    def _see(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if name := found.get("id"):
            if name in self.ids:
                raise ValueError(f"id {name} twice")
            self.ids.add(name)

    def attributes(self, name: str) -> list[str]:
        """All values of an attribute."""
        return [
            value or "" for _, found in self.elements for k, value in found.items() if k == name
        ]

    def tags(self, name: str) -> int:
        """How many elements have that name."""
        return sum(tag == name for tag, _ in self.elements)

    @property
    def text(self) -> str:
        return " ".join(self.texts)
