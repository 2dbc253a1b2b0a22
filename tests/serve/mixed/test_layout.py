"""Which row of a repeated batch belongs to which task."""

from __future__ import annotations

import pytest

from sharespace.errors import OptionError
from sharespace.serve.mixed.stacks import RowLayout


def layout(beams: int = 1, copies: int = 1) -> RowLayout:
    return RowLayout((3, 0, 5), beams, lambda: copies)


def test_rows_side_by_side_and_copies_one_after_the_other() -> None:
    assert layout().of(3) == (3, 0, 5)
    assert layout(beams=2).of(6) == (3, 3, 0, 0, 5, 5)
    assert layout(copies=2).of(6) == (3, 0, 5, 3, 0, 5)
    assert layout(beams=2, copies=2).of(12) == (3, 3, 0, 0, 5, 5) * 2


def test_passes_that_do_not_repeat() -> None:
    """An encoder before beam search, a text encoder before guidance, a step without guidance."""
    assert layout(beams=2, copies=2).of(3) == (3, 0, 5)
    assert layout(beams=2, copies=2).of(6) == (3, 3, 0, 0, 5, 5)


@pytest.mark.parametrize("rows", [0, 1, 4, 9, 24])
def test_what_fits_nowhere_is_refused(rows: int) -> None:
    with pytest.raises(OptionError, match=rf"{rows} rows.*copies=2.*beams=N"):
        layout(beams=2, copies=2).of(rows)


def test_copies_are_asked_for_only_where_they_matter() -> None:
    def never() -> int:
        raise AssertionError

    assert RowLayout((1,), 1, never).of(1) == (1,)
    assert RowLayout((1,), 2, never).of(2) == (1, 1)
