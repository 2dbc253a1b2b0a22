"""Panels on a page."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from sharespace.compare.figures import Panel, picture
from sharespace.errors import OptionError


def pixels(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_panels_stand_in_rows_and_spare_places_stay_empty(tmp_path: Path) -> None:
    seen: list[Any] = []
    panels = [Panel(f"panel {i}", seen.append) for i in range(5)]
    picture(tmp_path / "x.png", "five", panels, columns=3, width=2, height=1.5)
    assert pixels(tmp_path / "x.png") == (150 * 6, 150 * 3)
    assert [axes.get_title("left") for axes in seen] == [panel.title for panel in panels]
    assert [axes.get_visible() for axes in seen[0].figure.axes] == [True] * 5 + [False]


def test_a_panel_may_be_wider(tmp_path: Path) -> None:
    panels = [Panel("a", lambda _: None, width=2), Panel("b", lambda _: None)]
    picture(tmp_path / "x.png", "", panels, width=1, height=1)
    assert pixels(tmp_path / "x.png") == (450, 150)


def test_no_panels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no panels"):
        picture(tmp_path / "x.png", "", [])
    assert not list(tmp_path.iterdir())
