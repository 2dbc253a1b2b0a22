"""What all sections look like."""

from __future__ import annotations

from sharespace.page.markup import Child, Html, tag


def section(name: str, title: str, *children: Child) -> Html:
    """A part of the page.

    Args:
        name: where links lead (``#name``).
        title: its heading.
    """
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def figure(caption: Child, *children: Child, style: str | None = None) -> Html:
    """A picture with what it says below; ``style`` is a class of the style sheet."""
    return tag("figure", *children, tag("figcaption", caption), class_=style)


def details(title: str, *children: Child) -> Html:
    """Shown when it is asked for, and in print."""
    return tag("details", tag("summary", title), *children)


def read(*children: Child) -> Html:
    """A sentence on how to read what follows."""
    return tag("p", *children, class_="read")


def readout() -> Html:
    """Where the script writes what the pointer is at."""
    return tag("p", "Point at a cell to read it.", class_="readout js", aria_live="polite")
