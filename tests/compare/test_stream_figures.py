"""Scores over steps and forgetting: what is drawn, read back from matplotlib's own objects."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from sharespace.compare.figures import draw_forgetting, draw_steps, look


def axes_of() -> Any:
    return Figure().subplots()


def test_runs_become_a_mean_and_a_band_of_one_standard_deviation() -> None:
    axes = axes_of()
    draw_steps(axes, {"Share": [[80.0, 70.0], [82.0, 74.0]]}, ["build", "+ c"])
    (line,) = axes.lines
    assert list(line.get_ydata()) == [81.0, 72.0]
    (band,) = axes.collections
    assert band.get_paths()[0].get_extents().ymax == pytest.approx(81 + 2**0.5)
    assert band.get_paths()[0].get_extents().ymin == pytest.approx(72 - 8**0.5)
    assert line.get_label() == "Share (2 seeds)"


def test_one_run_has_no_band_and_a_step_without_a_value_no_mark() -> None:
    axes = axes_of()
    draw_steps(axes, {"late": [[None, 50.0, 60.0]]}, ["a", "b", "c"], {"own LoRA": 70.0})
    assert not axes.collections
    assert list(axes.lines[0].get_xdata()) == [1, 2]
    assert axes.lines[1].get_label() == "own LoRA, end: 70.0"
    assert list(axes.lines[1].get_ydata()) == [70.0, 70.0]


def test_a_step_that_one_run_lacks_is_left_out() -> None:
    axes = axes_of()
    draw_steps(axes, {"x": [[1.0, 2.0], [3.0, None]]}, ["a", "b"])
    assert list(axes.lines[0].get_ydata()) == [2.0]


def test_forgetting_has_a_group_of_bars_a_task() -> None:
    axes = axes_of()
    draw_forgetting(axes, {"Share": {"a": [0.5, -0.5], "b": [1.0, 2.0]}, "LoRA": {"b": [9.0]}})
    assert [bar.get_height() for bar in axes.patches] == [0.0, 1.5, 9.0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b"]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    assert centres == pytest.approx([-0.2, 0.8, 1.2])


def test_more_methods_than_colours_can_be_told_apart() -> None:
    assert len({look(i) for i in range(64)}) == 64
    axes = axes_of()
    draw_forgetting(axes, {f"m{i}": {"a": [1.0]} for i in range(10)})
    colours = [(bar.get_facecolor(), bar.get_hatch()) for bar in axes.patches]
    assert len(set(colours)) == 10
