"""The one stream loop: build from the first tasks, then learn and merge the others, scoring all.

Everything that runs a stream of tasks through a Share model runs it here: recipes (``sharespace
run``), the demo, the compared methods and the experiments. They differ in where adapters and data
come from and in what is kept of a step. The first is what they give to ``StreamLoop``, the second
is what they do with each ``LoopStep``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sharespace.errors import OptionError
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter

Arrival = Literal["adapter", "data", "both"]
"""How a task comes: as a finished adapter, as data to learn from, or as an adapter that is trained
further on data after it was merged."""


def step_name(tasks: Sequence[str]) -> str:
    """What a step is called: the names of the tasks that it brought in, joined by ``+``.

    Args:
        tasks: names of the tasks.
    """
    return "+".join(tasks)


@dataclass(frozen=True, eq=False)
class LoopStep:
    """What a stream has come to after one step."""

    number: int
    """Number of the step, from 1."""
    tasks: tuple[str, ...]
    """The tasks that this step brought in: several in the first step, one in every later one."""
    share: Share
    """Of all tasks so far. The next step goes on from this very object, so that saving it between
    two steps makes every step a version of one store."""
    scores: Mapping[str, float | None]
    """Every task that is known by now -> its score after this step; None: it has none."""

    @property
    def name(self) -> str:
        """The names of its tasks, joined by ``+``."""
        return step_name(self.tasks)


@dataclass(frozen=True, eq=False)
class StreamLoop:
    """What a stream does with its tasks; ``run`` goes through them."""

    build: Callable[[Sequence[str]], Share]
    """The Share model of the first tasks, from their adapters."""
    learn: Callable[[Share, str], Adapter]
    """The adapter of a later task, which is not in the Share model yet: learned in its subspace,
    or as it came."""
    score: Callable[[Share, str], float | None]
    """The score of a task that the Share model knows, as it is now; higher is better, None: it
    cannot be scored."""
    merge: Callable[[Share, Adapter], Share] = Share.merge
    """The Share model with one more task."""
    refine: Callable[[Share, str], Share] = lambda share, _: share
    """Training that a new task gets after it was merged; by default none."""

    def run(
        self, tasks: Sequence[str], initial: int, *, share: Share | None = None, finished: int = 0
    ) -> Iterator[LoopStep]:
        """Go through the stream step by step; each step is given to the caller before the next.

        Args:
            tasks: names of all tasks, in the order of the stream.
            initial: the Share model is built from this many first tasks, in one step; the others
                are learned one by one.
            share: after the steps that are finished already; None: none is.
            finished: number of these steps; they are left out.

        Raises:
            OptionError: ``initial`` is not between 1 and the number of tasks.
        """
        groups = step_groups(tasks, initial)
        for number, names in enumerate(groups[finished:], finished + 1):
            if share is None:
                share = self.build(names)
            else:
                (name,) = names
                share = self.merge(share, self.learn(share, name))
            for name in names:
                share = self.refine(share, name)
            scores = {name: self.score(share, name) for name in tasks[: initial + number - 1]}
            yield LoopStep(number, names, share, scores)


def step_groups(tasks: Sequence[str], initial: int) -> list[tuple[str, ...]]:
    """The tasks of each step: the initial ones together, then one by one.

    Args:
        tasks: names of all tasks, in their order.
        initial: how many of them the first step has.

    Raises:
        OptionError: ``initial`` is not between 1 and the number of tasks.
    """
    if not 1 <= initial <= len(tasks):
        raise OptionError(
            f"initial={initial}", f"there are {len(tasks)} tasks", f"Give 1 to {len(tasks)}"
        )
    return [tuple(tasks[:initial]), *((name,) for name in tasks[initial:])]
