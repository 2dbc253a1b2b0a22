"""Angles between bases and CKA: what is drawn, read back from matplotlib's own objects."""

from __future__ import annotations

import math
from typing import Any

import pytest
from matplotlib.figure import Figure

from sharespace.compare.figures import draw_cka, draw_settling


def axes_of() -> Any:
    return Figure().subplots()


def test_angles_are_told_in_degrees_by_median_band_and_largest() -> None:
    axes = axes_of()
    angles = [[math.radians(x) for x in (40, 0, 10, 20, 30)], [], [0.0, math.radians(8)]]
    draw_settling(axes, {"left": angles}, ["a", "b", "c"])
    median, largest = axes.lines
    assert list(median.get_xdata()) == [0, 2]
    assert list(median.get_ydata()) == pytest.approx([20, 4])
    assert list(largest.get_ydata()) == pytest.approx([40, 8])
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == (pytest.approx(0.8), pytest.approx(36))
    assert axes.yaxis.get_major_formatter()(45) == "45°"


@pytest.mark.parametrize(("largest", "top"), [(0.001, 1), (5, 6), (20, 30), (90, 91)])
def test_the_scale_fits_the_angles(largest: float, top: float) -> None:
    axes = axes_of()
    draw_settling(axes, {"left": [[math.radians(largest)]]}, ["a"])
    assert axes.get_ylim() == (0, top)


def test_no_angles_at_all_is_an_empty_figure() -> None:
    axes = axes_of()
    draw_settling(axes, {"left": [[]]}, ["a"])
    assert all(len(line.get_xdata()) == 0 for line in axes.lines)


def test_cka_is_written_into_its_cells_and_blank_where_unknown() -> None:
    axes = axes_of()
    draw_cka(axes, ["a", "b"], [[1.0, None], [None, 1.0]])
    assert [text.get_text() for text in axes.texts] == ["1.00", "1.00"]
    assert axes.images[0].get_clim() == (0, 1)
    assert axes.images[0].get_array().mask.tolist() == [[False, True], [True, False]]


def test_many_adapters_are_colours_alone() -> None:
    axes = axes_of()
    draw_cka(axes, [f"a{i}" for i in range(20)], [[0.5] * 20] * 20)
    assert not axes.texts
