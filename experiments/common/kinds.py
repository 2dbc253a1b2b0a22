"""The paper's kinds of stream: tasks that come as data, as finished adapters, or some of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from sharespace.compare import Workbench, run_share_stream
from sharespace.stream.loop import Arrival
from sharespace.subspace.fidelity import sizes


def adapters_only(tasks: Sequence[str]) -> dict[str, Arrival]:
    """Every task comes as its own LoRA; no data is read."""
    return dict.fromkeys(tasks, "adapter")


def hybrid(tasks: Sequence[str], initial: int) -> dict[str, Arrival]:
    """After the first tasks, which come as adapters: data, adapter, data, and so on."""
    comes = adapters_only(tasks)
    return comes | dict.fromkeys(tasks[initial::2], "data")


def stream(bench: Workbench, comes: Mapping[str, Arrival]) -> dict[str, Any]:
    """One stream from end to end; every known task is scored after every step.

    Args:
        bench: its first ``settings.initial`` tasks make the first subspace, by their own LoRAs.
        comes: task -> how it comes, for all tasks; own LoRAs are trained where they are missing.

    Returns:
        JSON values: ``matrix`` (percent), ``came``, ``trained`` (task -> numbers trained in the
        stream, 0 for an adapter), ``bytes`` of the Share model.
    """
    ran = run_share_stream(bench, comes)
    size = sizes(ran.share.model)
    return {
        "matrix": ran.matrix.to_record(),
        "came": dict(comes),
        "trained": ran.trained,
        "bytes": size.basis + size.coefficients,
    }


def mean_trained(record: Mapping[str, Any]) -> float | None:
    """Numbers trained for a task that came as data; None: there is none."""
    found = [number for number in record["trained"].values() if number]
    return fmean(found) if found else None
