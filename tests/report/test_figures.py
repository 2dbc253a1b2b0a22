"""The pictures: what is in them, read back from matplotlib's own objects."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from sharespace.errors import MissingExtraError
from sharespace.report import SizePoint, demo_picture, draw_matrix, draw_sizes
from sharespace.report.figures import Rows

STEPS: Rows = {"build": [91.25, 84.0, None], "+ c": [91.0, 84.5, 88.0]}
REFERENCES: Rows = {"own LoRA": [92.0, 85.0, 89.0], "head only": [50.0, 61.0, 70.0]}
TASKS = ["a", "b", "c"]
SIZES = [
    SizePoint(1, 1000, 3000, measured=True),
    SizePoint(2, 2000, 3100, measured=True),
    SizePoint(20, 20000, 4000, measured=False),
]


def test_the_matrix_says_every_score_and_what_is_not_yet_learned() -> None:
    axes: Any = Figure().subplots()
    draw_matrix(axes, STEPS, REFERENCES, TASKS)
    written = [text.get_text() for text in axes.texts]
    expected = ["91.2", "84.0", "not yet\nlearned", "91.0", "84.5", "88.0"]
    assert written[:6] == expected
    assert [t.get_text() for t in axes.get_yticklabels()] == [*STEPS, *REFERENCES]
    assert [t.get_text() for t in axes.get_xticklabels()] == TASKS


def test_the_colours_begin_below_the_lowest_score_of_a_step() -> None:
    axes: Any = Figure().subplots()
    draw_matrix(axes, STEPS, REFERENCES, TASKS)
    assert axes.images[0].get_clim() == (80.0, 100.0)


def test_sizes_mark_what_was_measured_and_dash_the_rest() -> None:
    axes: Any = Figure().subplots()
    draw_sizes(axes, SIZES, "k stays")
    lines = {line.get_color(): line for line in axes.lines if line.get_marker() != "None"}
    assert [list(line.get_xdata()) for line in lines.values()] == [[1, 2], [1, 2]]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in dashed] == [[2, 20], [2, 20]]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[-1] == "extrapolated: k stays"
    assert axes.texts[0].get_text() == "5.0 times smaller at 20 tasks"


def test_writes_a_png_without_touching_pyplot(tmp_path: Path) -> None:
    loaded = "matplotlib.pyplot" in sys.modules
    path = tmp_path / "picture.png"
    demo_picture(path, STEPS, REFERENCES, TASKS, SIZES, "k stays", ("title", "left", "right"))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_a_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sharespace\[report\]'"):
        demo_picture(tmp_path / "x.png", STEPS, REFERENCES, TASKS, SIZES, "", ("", "", ""))
    assert not list(tmp_path.iterdir())
