"""Escaping, grouping, scales: the small parts of a page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import law
from report.parsing import Page
from sharespace.report.byte_sizes import break_even
from sharespace.report.facts import FileBytes
from sharespace.report.html import Html, columns, short, some, tag
from sharespace.report.study import by_kind, labels
from sharespace.report.svg import COSINES, ERRORS, Axis, Heat, Series, chart, heat_map
from sharespace.words import visible


@given(st.text(max_size=40))
@law(100)
def test_any_text_comes_back_as_it_is_seen(text: str) -> None:
    page = Page(tag("p", text, title=text))
    assert page.text == visible(text)
    assert page.attributes("title") == [visible(text)]
    assert page.tags("p") == len(page.elements) == 1


def test_markup_is_not_escaped_twice() -> None:
    assert tag("p", tag("b", "a<b"), [Html("&amp;")]) == "<p><b>a&lt;b</b>&amp;</p>"


def test_attributes() -> None:
    assert tag("rect", x=1.04, y=-0.01, class_="a", data_v="1", hidden=True, role=None) == (
        '<rect x="1" y="0" class="a" data-v="1" hidden/>'
    )


def test_layers_of_one_kind_belong_together() -> None:
    names = [f"enc.layer.{i}.att.{x}" for i in range(3) for x in ("q", "v")]
    assert list(by_kind(names)) == ["enc.layer.*.att.q", "enc.layer.*.att.v"]
    assert by_kind(names)["enc.layer.*.att.v"] == [f"enc.layer.{i}.att.v" for i in range(3)]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a.b.q", "a.b.v"], ["q", "v"]),
        (["a.q.x", "a.v.x"], ["q", "v"]),
        (["a", "a.b"], ["a", "a.b"]),
        (["only.one.here"], ["one.here"]),
        ([], []),
    ],
)
def test_labels_leave_out_what_is_common(names: list[str], wanted: list[str]) -> None:
    assert list(labels(names).values()) == wanted


@given(st.lists(st.text(alphabet="ab.", min_size=1, max_size=6), unique=True, max_size=6))
@law(50)
def test_labels_stay_different(names: list[str]) -> None:
    if len(names) != 1:
        assert len(set(labels(names).values())) == len(names)


def test_too_many_layers_share_columns_within_their_kind() -> None:
    names = [f"l.{i}.{x}" for i in range(10) for x in ("q", "v")]
    found = columns(names, most=8)
    assert found.most == 3
    assert sum(n for _, n in found.groups) == len(found.modules) == 8
    assert [m for column in found.modules for m in column] == sorted(names, key=lambda n: n[-1])


def test_scales_put_nothing_and_unrelated_in_the_palest_step() -> None:
    assert ERRORS.step(0.0) == 0
    assert ERRORS.step(1.2) == 8
    assert COSINES.step(0.0) == 4
    assert [COSINES.step(c) for c in (-1, 1)] == [0, 8]


def test_a_heat_map_joins_equal_neighbours_and_leaves_blanks() -> None:
    values: list[list[float | None]] = [[0.0, 0.0, None, 0.95], [None] * 4]
    drawn = heat_map(Heat("t", ["a", "b"], list("wxyz"), values, ERRORS), (10, 10))
    assert Page(drawn).attributes("d") == ["M0 0h2v1h-2z", "M3 0h1v1h-1z"]
    assert Page(drawn).attributes("data-values") == ["0 0 - 95% - - - -"]


@pytest.mark.parametrize(
    ("high", "whole", "wanted"),
    [(1.0, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3, True, [0, 1, 2, 3]), (0, True, [0])],
)
def test_ticks_are_round(high: float, whole: bool, wanted: list[float]) -> None:
    assert Axis("", high, str, whole=whole).ticks == pytest.approx(wanted)


def test_a_chart_of_one_point_and_no_range() -> None:
    flat = Axis("x", 0, str)
    Page(chart("t", [Series("one", [(0, 0)], marks=True)], flat, flat))


@given(st.integers(1, 50), st.integers(1, 10**6), st.integers(0, 10**5), st.integers(0, 10**6))
@law(100)
def test_break_even_is_the_first_number_that_is_smaller(
    tasks: int, basis: int, coefficients: int, adapters: int
) -> None:
    even = break_even(FileBytes(basis, coefficients, 0, 0, 0, 0, adapters), tasks)

    def smaller(count: int) -> bool:
        return basis * tasks + coefficients * count < adapters * count

    if even is None:
        assert not smaller(10**12)
    else:
        # Where the division is not exact, the last bit of a float may be off.
        assert smaller(even + 1)
        assert even == 1 or not smaller(even - 2)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (short("abcdefghij", 5), "ab…ij"),
        (some(["a", "b", "c"], 2), "a, b and 1 more"),
    ],
)
def test_names_are_shortened(text: str, wanted: str) -> None:
    assert text == wanted
