"""The router's answer: a task, or none, for each input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sharespace.errors import OptionError


@dataclass(frozen=True, eq=False)
class Routing:
    """Which task each input goes to."""

    candidates: tuple[str, ...]
    """The tasks that were compared; the columns of ``scores``."""
    tasks: tuple[str | None, ...]
    """For each input its task; None: below the margin, so the base model answers."""
    scores: Tensor
    """float64 [inputs, candidates]: higher is nearer."""
    margins: Tensor
    """float64 [inputs]: how far the best score stands above that of "none of them"."""

    @property
    def nearest(self) -> tuple[str, ...]:
        """For each input the best candidate, whatever the margin."""
        return tuple(self.candidates[i] for i in self.scores.argmax(dim=1).tolist())

    @property
    def fallback_rate(self) -> float:
        """Fraction of the inputs that go to the base model."""
        return self.tasks.count(None) / len(self.tasks)


def choose(
    candidates: Sequence[str], scores: Tensor, none: Tensor, margin: float | None
) -> Routing:
    """The best candidate of each input, or None where it leads "none of them" by less than margin.

    Args:
        candidates: names of the columns; of equal scores the first wins.
        scores: [inputs, candidates].
        none: [inputs], the score of "none of them".
        margin: None never falls back.

    Raises:
        OptionError: no candidates, or no inputs.
    """
    if not candidates or not len(scores):
        what = "tasks" if not candidates else "inputs"
        raise OptionError("routing", f"there are no {what}", f"Give at least one of the {what}")
    best, index = scores.max(dim=1)
    margins = best - none
    known = [margin is None or m >= margin for m in margins.tolist()]
    tasks = [candidates[i] if k else None for i, k in zip(index.tolist(), known, strict=True)]
    return Routing(tuple(candidates), tuple(tasks), scores, margins)


def margin_for(margins: Tensor, fallback_rate: float) -> float:
    """The margin that sends a given fraction of these inputs, and no more, to the base model.

    Args:
        margins: of inputs that do belong to the tasks, and that the statistics have not seen.
        fallback_rate: in [0, 1); 0 is never to fall back on these.

    Raises:
        OptionError: the rate is not in [0, 1), or there are no inputs.
    """
    if not 0 <= fallback_rate < 1:
        raise OptionError(f"fallback rate {fallback_rate}", "not in [0, 1)", "For example 0.05")
    if not len(margins):
        raise OptionError("margins", "there are no inputs", "Give inputs that belong to the tasks")
    return float(margins.sort().values[int(fallback_rate * len(margins))])
