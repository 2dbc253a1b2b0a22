"""The tree of tasks as lines."""

from __future__ import annotations

from collections.abc import Sequence

from sharespace.page.families import Relations
from sharespace.page.markup import Html, number, tag


def tree(relations: Relations, width: float, per_row: int = 1) -> Html:
    """The tree with its leaves at the right, a leaf every ``1 / per_row`` downwards.

    Args:
        relations: of at least two tasks.
        width: from distance 0 (at the right) to the largest.
        per_row: leaves in one row of what stands beside it.
    """
    place = {task: (at + 0.5) / per_row for at, task in enumerate(relations.order)}
    count = len(relations.order)
    farthest = max((join.distance for join in relations.joins), default=0.0) or 1.0
    spots: dict[int, tuple[float, float]] = {i: (width, y) for i, y in place.items()}
    drawn = []
    for at, join in enumerate(relations.joins):
        across = width * (1 - join.distance / farthest) * 0.98
        one, two = spots[join.first], spots[join.second]
        drawn.append(_fork(across, one, two))
        spots[count + at] = (across, (one[1] + two[1]) / 2)
    return tag("path", d="".join(drawn), class_="tree", vector_effect="non-scaling-stroke")


def _fork(across: float, one: Sequence[float], two: Sequence[float]) -> str:
    """From one branch to the line that joins it with the other."""
    return f"M{number(one[0])} {one[1]:.2f}H{number(across)}V{two[1]:.2f}H{number(two[0])}"
