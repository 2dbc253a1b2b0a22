"""What a person should know about a Share model before trusting it, in plain words.

Each function looks at one thing and says it in one notice, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sharespace.report.facts import Facts
from sharespace.report.html import some
from sharespace.report.study import FAMILY_OVERLAP
from sharespace.subspace.fidelity import ERASED_ERROR, LARGE_BOUND, TaskFidelity
from sharespace.subspace.state import Task
from sharespace.words import count, human, percent

Level = Literal["serious", "note"]

SAME_COSINE = 0.9999
"""Cosine from which on two tasks are one."""


@dataclass(frozen=True)
class Notice:
    """One warning, with what to do about it."""

    kind: str
    """A short name that does not change: ``"erased"``, ``"cap"`` ..."""
    level: Level
    title: str
    text: str
    remedy: str
    """What to do about it."""


def notices(facts: Facts) -> tuple[Notice, ...]:
    """All that apply, the serious ones first."""
    given = [notice for check in _CHECKS if (notice := check(facts)) is not None]
    return tuple(sorted(given, key=lambda n: n.level != "serious"))


def loss_notices(tasks: Mapping[str, TaskFidelity]) -> list[Notice]:
    """What tasks have lost, by their fidelity alone: all that apply.

    Args:
        tasks: by name.
    """
    looks = (_erased, _large_bounds, _erased_layers)
    return [notice for check in looks if (notice := check(tasks)) is not None]


def build_notices(
    tasks: Mapping[str, Task], fidelities: Mapping[str, TaskFidelity]
) -> list[Notice]:
    """What whoever builds or merges has to hear: what tasks have lost, and tasks without an update.

    Args:
        tasks: those that came in, by name.
        fidelities: of all tasks.
    """
    zero = [n for n, t in tasks.items() if t.ledger.modules and t.ledger.total_norm == 0]
    notice = _untrained(zero)
    return [*loss_notices(fidelities), *([notice] if notice else [])]


def _fidelities(facts: Facts) -> dict[str, TaskFidelity]:
    return {task.name: task.fidelity for task in facts.tasks}


def no_tasks(facts: Facts) -> Notice | None:
    """An empty store."""
    if facts.tasks:
        return None
    return Notice(
        "empty",
        "note",
        "There is no task",
        "This version holds subspaces and no task.",
        "Add adapters (sharespace merge), or go back to an earlier version (sharespace rollback).",
    )


def erased(facts: Facts) -> Notice | None:
    """Tasks of which nothing is left."""
    return _erased(_fidelities(facts))


def _erased(tasks: Mapping[str, TaskFidelity]) -> Notice | None:
    lost = [name for name, task in tasks.items() if task.relative_error >= ERASED_ERROR]
    if not lost:
        return None
    names = some(lost)
    return Notice(
        "erased",
        "serious",
        f"{count(len(lost), 'task')} erased",
        f"The subspace keeps next to nothing of {names}: the task now behaves like the base model "
        "(and its head).",
        "Do not use it. Go back to a version before the merge that cost it (see Ledger), or build "
        "again with a larger k, cap or budget.",
    )


def large_bounds(facts: Facts) -> Notice | None:
    """Tasks that may have lost much."""
    return _large_bounds(_fidelities(facts))


def _large_bounds(tasks: Mapping[str, TaskFidelity]) -> Notice | None:
    lossy = {
        n: t.bound
        for n, t in tasks.items()
        if t.bound >= LARGE_BOUND and t.relative_error < ERASED_ERROR
    }
    if not lossy:
        return None
    return Notice(
        "large-bound",
        "serious",
        f"{count(len(lossy), 'task')} may have lost {LARGE_BOUND:.0%} or more",
        f"The bound on the relative error of the weights is {LARGE_BOUND:.0%} or more for "
        f"{some(list(lossy))}. The largest is {percent(max(lossy.values()))}.",
        "Measure it: sharespace fidelity SHARE --against ADAPTER..., and score the task on its "
        "data. Where it matters, give the subspace more room (--k, --variance, --budget).",
    )


def estimated(facts: Facts) -> Notice | None:
    """Errors that several merges made together."""
    guessed = [t.name for t in facts.tasks if not t.fidelity.measured]
    if not guessed:
        return None
    return Notice(
        "estimated",
        "note",
        f"{count(len(guessed), 'error')} estimated, not measured",
        f"More than one step took something from {some(guessed)}. The error shown with ~ is an "
        "estimate; only the bound is certain.",
        "sharespace fidelity SHARE --against ADAPTER... measures it where the adapter is at hand.",
    )


def cap_reached(facts: Facts) -> Notice | None:
    """Layers in which the next merge truncates."""
    full = sum(layer.at_cap for layer in facts.layers)
    if not full or facts.settings.budget is not None:
        return None
    return Notice(
        "cap",
        "note",
        f"The cap is reached in {full:,} of {count(len(facts.layers), 'layer')}",
        "These subspaces do not grow any more: a new task takes directions from the others, and "
        "each may lose a little.",
        "Fine for a stream that must not grow; watch the bounds. For more room: "
        "sharespace merge SHARE ADAPTER... --cap N.",
    )


def byte_budget(facts: Facts) -> Notice | None:
    """A limit that every merge keeps to."""
    limit = facts.settings.budget
    if limit is None or not facts.tasks:
        return None
    return Notice(
        "budget",
        "note",
        f"Bases and updates are kept to a budget of {human(limit)}",
        "The budget chose for each update how it is stored (see Layers). A merge splits the same "
        "bytes again over all tasks, so each new one leaves less for the others.",
        "Fine for a model that must not grow; watch the bounds. For more room build it again from "
        "the adapters: sharespace init SHARE ADAPTER... --budget SIZE.",
    )


def erased_layers(facts: Facts) -> Notice | None:
    """Single updates of which nothing is left, in tasks of which something is."""
    return _erased_layers(_fidelities(facts))


def _erased_layers(tasks: Mapping[str, TaskFidelity]) -> Notice | None:
    lost = {
        name: sum(layer.relative_error >= ERASED_ERROR for layer in task.layers.values())
        for name, task in tasks.items()
        if task.relative_error < ERASED_ERROR
    }
    names = [name for name, updates in lost.items() if updates]
    if not names:
        return None
    whole = sum(len(task.layers) for task in tasks.values())
    return Notice(
        "erased-layers",
        "serious",
        f"{sum(lost.values()):,} of {count(whole, 'update')} erased",
        f"In some layers next to nothing is kept of {some(names)}: there the task changes nothing "
        "(in the table of layers, those with a worst bound of 100 %).",
        "Score these tasks on their data. Where it matters, build again with a larger k or budget.",
    )


def too_large(facts: Facts) -> Notice | None:
    """More bytes than the adapters took."""
    parts = facts.file_bytes
    if not facts.tasks or parts.total <= parts.adapters:
        return None
    return Notice(
        "larger",
        "serious",
        "This Share model is larger than the adapters that it replaces",
        f"{human(parts.total)} on disk against {human(parts.adapters)} of adapters.",
        "Few tasks do not pay for the subspace; see Sizes for the number from which on they do. A "
        "smaller k or a byte budget (sharespace plan --budget) makes it smaller, at a cost.",
    )


def sixteen_bits(facts: Facts) -> Notice | None:
    """Numbers that are stored rounded."""
    if facts.dtype not in ("float16", "bfloat16"):
        return None
    step = {"float16": "0.0004", "bfloat16": "0.0035"}[facts.dtype]
    return Notice(
        "sixteen-bit",
        "note",
        f"Bases and coefficients are stored as {facts.dtype}",
        f"Each rounding costs a relative error of about {step}; it is in the bounds.",
        "Nothing to do, unless you want the last digits: build with --dtype float32.",
    )


def pruned(facts: Facts) -> Notice | None:
    """Versions that are gone."""
    numbers = [v.number for v in facts.versions]
    gone = numbers[-1] - len(numbers)
    if not gone:
        return None
    return Notice(
        "pruned",
        "note",
        f"{count(gone, 'earlier version')} pruned",
        "The ledger of each task still counts what all steps cost it, but the history below does "
        "not show the versions that were removed, and they cannot be gone back to.",
        "Nothing to do. Keep a copy of the store before you prune if you may want to go back.",
    )


def stored_per_task(facts: Facts) -> Notice | None:
    """Updates that are stored beside the subspace."""
    tasks = [t for t in facts.tasks if t.stored.per_task.updates]
    if not tasks:
        return None
    stored = facts.stored
    verb = "shares" if len(tasks) == 1 else "share"
    return Notice(
        "per-task",
        "note",
        f"{stored.per_task.updates:,} of {count(stored.total.updates, 'update')} stored per task",
        f"In these layers {some([t.name for t in tasks])} {verb} nothing that pays, so each keeps "
        f"an SVD of its own there: {human(stored.per_task.nbytes)} of the "
        f"{human(stored.total.nbytes)} that all updates take beside the bases.",
        "That is what a byte budget chooses for independently trained adapters. Sharing is made by "
        "training new tasks in the subspace (sharespace run), not found afterwards.",
    )


def shares_nothing(facts: Facts) -> Notice | None:
    """Tasks that use directions which no other task uses."""
    if len(facts.study.names) < 2:
        return None
    overlaps = facts.study.overlaps.nan_to_num(0).clone()
    overlaps.fill_diagonal_(0)
    most = overlaps.amax(1).tolist()
    alone = [n for n, m in zip(facts.study.names, most, strict=True) if m < FAMILY_OVERLAP]
    if not alone:
        return None
    return Notice(
        "alone",
        "note",
        f"{count(len(alone), 'task')} sharing nothing",
        f"The directions of {some(alone)} overlap with those of every other task by less than "
        f"{FAMILY_OVERLAP:g} beyond chance: their updates gain little from a common subspace.",
        "Expected of adapters that were trained apart. See with sharespace plan what own storage "
        "would cost; new tasks that are learned in the subspace do share (sharespace run).",
    )


def twins(facts: Facts) -> Notice | None:
    """Tasks that are stored twice."""
    cosines = facts.study.cosines.nan_to_num(0).triu(1)
    pairs = (cosines > SAME_COSINE).nonzero().tolist()
    if not pairs:
        return None
    names = facts.study.names
    return Notice(
        "twins",
        "note",
        f"{count(len(pairs), 'pair')} of tasks with the same update",
        "Up to a factor the same: " + some([f"{names[i]} = {names[j]}" for i, j in pairs], 3) + ".",
        "Perhaps an adapter was merged twice (their heads may differ); remove one with "
        "sharespace remove.",
    )


def untrained(facts: Facts) -> Notice | None:
    """Tasks without an update."""
    return _untrained([t.name for t in facts.tasks if t.norm == 0])


def _untrained(empty: Sequence[str]) -> Notice | None:
    if not empty:
        return None
    return Notice(
        "untrained",
        "note",
        f"{count(len(empty), 'task')} without any update",
        f"All updates of {some(empty)} are zero, as before the first step of training.",
        "Check the adapter that it came from.",
    )


def missing_scores(facts: Facts) -> Notice | None:
    """What a stream could not score."""
    if facts.scores is None or not facts.scores.notices:
        return None
    return Notice(
        "unscored",
        "note",
        "Scores are missing",
        " ".join(facts.scores.notices),
        "Bring the evaluation data back and run the recipe again.",
    )


_CHECKS: tuple[Callable[[Facts], Notice | None], ...] = (
    no_tasks,
    erased,
    large_bounds,
    erased_layers,
    too_large,
    untrained,
    cap_reached,
    byte_budget,
    estimated,
    stored_per_task,
    shares_nothing,
    twins,
    sixteen_bits,
    pruned,
    missing_scores,
)
