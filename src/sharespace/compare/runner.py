"""All methods by name, and the way to run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sharespace.compare.bench import Own, Workbench
from sharespace.compare.job import Outcome, Settings, TaskJob
from sharespace.compare.methods.ewc import ewc
from sharespace.compare.methods.joint_lora import joint_lora
from sharespace.compare.methods.olora import o_lora
from sharespace.compare.methods.osf import osf
from sharespace.compare.methods.own import head_only, per_task_lora
from sharespace.compare.methods.post_hoc import mean_adapter, own_svd, task_arithmetic, ties
from sharespace.compare.methods.random_basis import random_basis
from sharespace.compare.methods.replay import replay
from sharespace.compare.methods.sequential import sequential_lora
from sharespace.compare.methods.shared import projection, share_full, share_strict
from sharespace.errors import OptionError

Run = Callable[[Workbench], Outcome]

_ALL: tuple[Run, ...] = (
    head_only,
    per_task_lora,
    joint_lora,
    sequential_lora,
    o_lora,
    osf,
    ewc,
    replay,
    mean_adapter,
    task_arithmetic,
    ties,
    own_svd,
    projection,
    random_basis,
    share_strict,
    share_full,
)


def methods() -> Mapping[str, Run]:
    """Name -> method; its docstring says what it does."""
    return {run.__name__: run for run in _ALL}


def method(name: str) -> Run:
    """The method of that name.

    Raises:
        OptionError: there is none.
    """
    known = methods()
    if name not in known:
        raise OptionError(f"method {name!r}", "unknown", f"Known: {', '.join(known)}")
    return known[name]


def run(
    jobs: Sequence[TaskJob],
    settings: Settings,
    names: Iterable[str] | None = None,
    *,
    own: Mapping[str, Own] | None = None,
    done: Callable[[Outcome], None] | None = None,
) -> dict[str, Outcome]:
    """Run methods on the same tasks; nothing is trained twice.

    Args:
        jobs: in the order of the stream.
        settings: of all methods.
        names: of the methods; None: all.
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
    chosen = {name: method(name) for name in (methods() if names is None else names)}
    bench = Workbench(jobs, settings, own)
    outcomes = {}
    for name, found in chosen.items():
        outcomes[name] = found(bench)
        if done is not None:
            done(outcomes[name])
    return outcomes
