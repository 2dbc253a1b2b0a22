"""The compared methods by name, and the way to run them.

A method is one function from a ``Workbench`` to an ``Outcome``, registered where it is defined::

    @compared_method("ties", paper="https://arxiv.org/abs/2306.01708")
    def ties(bench: Workbench) -> Outcome:
        '''What it does, in one sentence.'''

``sharespace.compare.methods`` has those of the package; one from elsewhere is registered by the
same decorator and runs beside them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sharespace.compare.bench import OwnLora, Workbench
from sharespace.compare.job import ComparisonSettings, Outcome, TaskJob
from sharespace.errors import OptionError

RunMethod = Callable[[Workbench], Outcome]

TrainingName = Literal["head", "lora", "coefficients", "osf", "warm"]
"""Field of ``ComparisonSettings`` with a training."""


@dataclass(frozen=True)
class ComparedMethod:
    """A method that can be run on the tasks of a workbench."""

    name: str
    learn: RunMethod
    """Learns and scores all tasks; ``__call__`` puts name and use of old data into its outcome."""
    paper: str | None
    """Address of the paper that describes it; None: a control, or plain practice."""
    uses_old_data: bool
    """True where a step of its stream reads examples of earlier tasks."""
    short: str | None = None
    """Another name, for the command line."""
    trains: TrainingName | None = None
    """The training whose learning rate is its own to choose; None: it trains nothing beyond the
    tasks' own LoRAs."""
    unfit: Callable[[Workbench], str | None] = lambda _: None
    """Why it cannot be had for these tasks and this model; None: it can. Nothing is trained."""

    @property
    def description(self) -> str:
        """What it does: the docstring of its function."""
        return inspect.getdoc(self.learn) or ""

    def __call__(self, bench: Workbench) -> Outcome:
        """Run it.

        Args:
            bench: the tasks, and what methods share.
        """
        return replace(self.learn(bench), method=self.name, uses_old_data=self.uses_old_data)


_METHODS: dict[str, ComparedMethod] = {}


def compared_method(
    name: str,
    *,
    paper: str | None = None,
    uses_old_data: bool = False,
    short: str | None = None,
    trains: TrainingName | None = None,
    unfit: Callable[[Workbench], str | None] = lambda _: None,
) -> Callable[[RunMethod], RunMethod]:
    """Register a method under a name; the function itself stays as it is.

    Args:
        name: what comparisons call it.
        paper: address of the paper that describes it.
        uses_old_data: True where a step of its stream reads examples of earlier tasks.
        short: another name, for the command line.
        trains: the training of ``ComparisonSettings`` whose learning rate it chooses; None where
            it trains nothing beyond the tasks' own LoRAs.
        unfit: says why it cannot be had for the tasks and the model of a workbench, or None. It
            is asked before anything is trained.

    Raises:
        OptionError: another method has the name, or the short one.
    """

    def register(learn: RunMethod) -> RunMethod:
        for taken in {name, short} - {None}:
            known = next((m for m in _METHODS.values() if taken in (m.name, m.short)), None)
            # A module that is loaded again may register its own method anew.
            if known and known.learn.__module__ != learn.__module__:
                why = "is registered already"
                raise OptionError(f"method {taken!r}", why, "Give it another name")
        _METHODS[name] = ComparedMethod(name, learn, paper, uses_old_data, short, trains, unfit)
        return learn

    return register


def all_methods() -> Mapping[str, ComparedMethod]:
    """Name -> method, in the order in which they were registered."""
    return dict(_METHODS)


def method(name: str) -> ComparedMethod:
    """The method of that name.

    Args:
        name: as it is registered, or its short name.

    Raises:
        OptionError: there is none.
    """
    known = next((m for m in _METHODS.values() if name in (m.name, m.short)), None)
    if known is None:
        names = ", ".join(m.short or m.name for m in _METHODS.values())
        raise OptionError(f"method {name!r}", "is not known", f"Choose one of {names}")
    return known


def run(
    jobs: Sequence[TaskJob],
    settings: ComparisonSettings,
    names: Iterable[str] | None = None,
    *,
    own: Mapping[str, OwnLora] | None = None,
    done: Callable[[Outcome], None] | None = None,
) -> dict[str, Outcome]:
    """Run methods on the same tasks; nothing is trained twice.

    Args:
        jobs: the tasks, in the order of the stream.
        settings: numbers of all methods.
        names: the methods to run; None: all.
        own: own LoRAs of these tasks and this seed (``Workbench.own``), so that another order of
            the tasks does not train them again.
        done: called after each method.

    Returns:
        Method -> outcome.

    Raises:
        OptionError: an unknown method, or jobs that do not fit together.
        MismatchError: the jobs' models differ outside their heads.
        MissingExtraError: PEFT or transformers is not installed.
    """
    # All names are looked up before the first method is run.
    methods = [method(name) for name in (all_methods() if names is None else names)]
    bench = Workbench(jobs, settings, own)
    outcomes = {}
    for compared in methods:
        outcomes[compared.name] = compared(bench)
        if done is not None:
            done(outcomes[compared.name])
    return outcomes
