"""The pictures: what is in them, read back from matplotlib's own objects."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from sharespace.compare.figures import Panel, ScoreRows, draw_matrix, matrix_panels, picture
from sharespace.compare.size import CountedPoint, SizePoint, draw_counts, draw_sizes
from sharespace.errors import MissingExtraError

STEPS: ScoreRows = {"build": [91.25, 84.0, None], "+ c": [91.0, 84.5, 88.0]}
REFERENCES: ScoreRows = {"own LoRA": [92.0, 85.0, 89.0], "head only": [50.0, 61.0, 70.0]}
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


def test_methods_side_by_side_share_one_scale_and_one_bar() -> None:
    figure = Figure()
    worse: ScoreRows = {"build": [41.0, 50.0, None], "+ c": [33.0, 45.0, 60.0]}
    panels = matrix_panels({"Share": STEPS, "other": worse}, TASKS)
    assert [panel.title for panel in panels] == ["Share", "other"]
    both: Any = figure.subplots(1, 2)
    for panel, axes in zip(panels, both, strict=True):
        panel.draw(axes)
    assert [axes.images[0].get_clim() for axes in both] == [(30.0, 100.0)] * 2
    assert len(figure.axes) == 3


def test_a_long_stream_stays_readable() -> None:
    axes: Any = Figure().subplots()
    tasks = [f"task{i}" for i in range(15)]
    rows: ScoreRows = {f"s{t}": [50.0 if i <= t else None for i in range(15)] for t in range(15)}
    draw_matrix(axes, rows, {}, tasks, colour_bar=False)
    assert "not yet\nlearned" not in {text.get_text() for text in axes.texts}
    assert max(text.get_fontsize() for text in axes.texts if text.get_text()) < 8
    assert axes.get_xticklabels()[0].get_rotation() == 40
    assert len(axes.figure.axes) == 1


POINTS = [CountedPoint(t, 110 * t, 1000 + 3 * t, 100 * t, t) for t in (1, 10, 100)]


def test_both_counts_are_drawn_with_their_ratios_and_the_line() -> None:
    axes: Any = Figure().subplots()
    draw_counts(axes, POINTS, ratio=50)
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines["Share, every byte"] == [1003, 1030, 1300]
    assert lines["Share, paper's count"] == [1, 10, 100]
    assert lines["LoRA, every byte / 50"] == pytest.approx([2.2, 22, 220])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.texts] == ["8.5x", "100x"]
    assert axes.yaxis.get_major_formatter()(20_000_000) == "20 MB"


def test_equal_counts_of_lora_are_one_line() -> None:
    axes: Any = Figure().subplots()
    draw_counts(axes, [CountedPoint(t, 100 * t, 1000 + 3 * t, 100 * t, t) for t in (1, 10)])
    assert "LoRA adapters, factors only" not in {line.get_label() for line in axes.lines}


def panels() -> list[Panel]:
    matrix = partial(draw_matrix, steps=STEPS, references=REFERENCES, tasks=TASKS)
    return [Panel("left", matrix), Panel("right", partial(draw_sizes, points=SIZES, assumption=""))]


def test_writes_a_png_without_touching_pyplot(tmp_path: Path) -> None:
    loaded = "matplotlib.pyplot" in sys.modules
    path = tmp_path / "picture.png"
    picture(path, "title", panels())
    assert path.read_bytes().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_a_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sharespace\[report\]'"):
        picture(tmp_path / "x.png", "", panels())
    assert not list(tmp_path.iterdir())
