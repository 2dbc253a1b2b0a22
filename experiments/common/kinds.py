"""The paper's kinds of stream: tasks that come as data, as finished adapters, or some of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from sharespace import Share
from sharespace.compare import Workbench
from sharespace.compare.methods.own import own_lora
from sharespace.compare.methods.shared import build, learn
from sharespace.learn import load_task
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.fidelity import sizes
from sharespace.tuner import release

Comes = Literal["adapter", "data"]


def adapters_only(tasks: Sequence[str]) -> dict[str, Comes]:
    """Every task comes as its own LoRA; no data is read."""
    return dict.fromkeys(tasks, "adapter")


def hybrid(tasks: Sequence[str], initial: int) -> dict[str, Comes]:
    """After the first tasks, which come as adapters: data, adapter, data, and so on."""
    later = {t: "data" if at % 2 == 0 else "adapter" for at, t in enumerate(tasks[initial:])}
    return {**dict.fromkeys(tasks[:initial], "adapter"), **later}  # type: ignore[dict-item]


def stream(bench: Workbench, comes: Mapping[str, Comes]) -> dict[str, Any]:
    """One stream from end to end; every known task is scored after every step.

    Args:
        bench: its first ``settings.initial`` tasks make the first subspace, by their own LoRAs.
        comes: task -> how it comes, for all tasks; own LoRAs are trained where they are missing.

    Returns:
        JSON values: ``matrix`` (percent), ``came``, ``trained`` (task -> numbers trained in the
        stream, 0 for an adapter), ``bytes`` of the Share model.
    """
    first = bench.tasks[: bench.settings.initial]
    share = build(bench, {name: own_lora(bench, name) for name in first})
    matrix = ScoreMatrix(bench.tasks)
    matrix = matrix.with_step("+".join(first), _scores(bench, share), learned=first)
    trained = dict.fromkeys(bench.tasks, 0)
    for name in bench.tasks[len(first) :]:
        if comes[name] == "adapter":
            share = share.merge(own_lora(bench, name).adapter)
        else:
            settings = bench.settings
            found = learn(bench, share, name, phi=settings.phi, start=settings.start)
            release(found.model)
            trained[name] = found.trainable.coefficients + found.trainable.temporary
            share = share.merge(found.adapter)
        matrix = matrix.with_step(name, _scores(bench, share), learned=[name])
    size = sizes(share.model)
    return {
        "matrix": matrix.to_record(),
        "came": dict(comes),
        "trained": trained,
        "bytes": size.basis + size.coefficients,
    }


def _scores(bench: Workbench, share: Share) -> dict[str, float]:
    """Of every task that the Share model holds."""
    found = {}
    for name in share.tasks:
        model = load_task(bench.fresh(name), share, name)
        found[name] = bench.score(name, model)
        release(model)
    return found


def mean_trained(record: Mapping[str, Any]) -> float | None:
    """Numbers trained for a task that came as data; None: there is none."""
    found = [number for number in record["trained"].values() if number]
    return fmean(found) if found else None
