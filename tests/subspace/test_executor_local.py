"""Here, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from sharespace.subspace.executor import LOCAL


def test_an_item_is_drawn_when_its_result_is_asked_for() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for i in range(5):
            drawn.append(i)
            yield i

    results = LOCAL.map(abs, items())
    assert drawn == []
    assert next(results) == 0
    assert drawn == [0]
    assert list(results) == [1, 2, 3, 4]


def test_nothing_is_copied() -> None:
    item: list[int] = []
    (found,) = LOCAL.map(lambda x: x, [item])
    assert found is item
