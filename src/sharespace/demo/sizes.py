"""Bytes against the number of tasks: what was measured, and how it goes on (method.md,
"Honest size")."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from sharespace.report import SizePoint
from sharespace.subspace.fidelity import sizes
from sharespace.subspace.state import ShareModel

UP_TO = 30
"""Tasks in the picture."""


def size_points(
    model: ShareModel, totals: Sequence[int], adapters: Sequence[int], p: int
) -> tuple[SizePoint, ...]:
    """Measured points for 1, 2, ... tasks, and one extrapolated point.

    Args:
        model: of all the tasks, its bases at their cap.
        totals: bytes of the Share model of the first 1, 2, ... tasks.
        adapters: bytes of each task's own adapter.
        p: pseudo-rank of the tasks that would follow.
    """
    cumulated = list(accumulate(adapters))
    measured = [
        SizePoint(t, a, s, measured=True)
        for t, (a, s) in enumerate(zip(cumulated, totals, strict=True), 1)
    ]
    count, last = len(measured), measured[-1]
    more = UP_TO - count
    adapters_then = last.adapters + round(more * last.adapters / count)
    share_then = last.share + round(more * (next_task_bytes(model, p)))
    return (*measured, SizePoint(UP_TO, adapters_then, share_then, measured=False))


def next_task_bytes(model: ShareModel, p: int) -> float:
    """Bytes that one more task adds once the bases are at their cap.

    The sum over modules of min((k_left + k_right) p, k_left k_right) numbers, and as much for head
    and ledger as the known tasks take on average.
    """
    numbers = sum(min(sum(x.k) * p, x.k[0] * x.k[1]) for x in model.layers.values())
    return numbers * model.dtype.itemsize + sizes(model).other / len(model.tasks)
