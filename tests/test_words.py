"""Numbers as people read them."""

from __future__ import annotations

import pytest

from sharespace.words import count, human, percent


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 tasks"), (1, "1 task"), (2, "2 tasks"), (1024, "1,024 tasks")]
)
def test_counts(number: int, words: str) -> None:
    assert count(number, "task") == words


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [
        (12, "12 B"),
        (999, "999 B"),
        (1234, "1.23 kB"),
        (999_600, "1 MB"),
        (9_732_096, "9.73 MB"),
        (3e9, "3.00 GB"),
        (5e10, "50.00 GB"),
    ],
)
def test_bytes(nbytes: float, words: str) -> None:
    assert human(nbytes) == words


@pytest.mark.parametrize(
    ("fraction", "words"),
    [(0, "0"), (0.1234, "12.3 %"), (1.0, "100 %"), (0.0004, "4e-04"), (1e-6, "1e-06")],
)
def test_fractions_are_zero_only_where_they_are_exactly_zero(fraction: float, words: str) -> None:
    assert percent(fraction) == words
