"""Results files: all methods on one order of the tasks and one seed, each method run once.

A method that is in the file already is not run again, so that a run goes on where it was cut off.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import environment

from experiments.common import own as own_files
from experiments.common.methods import ORDER_FREE
from sharespace.compare import ComparisonSettings, Outcome, TaskJob, Workbench, method
from sharespace.subspace.similarity import adapters_cka, settling


@dataclass(frozen=True)
class Run:
    """One order of the tasks and one seed."""

    folder: Path
    """Of the results; the file is ``<order>-<seed>.json``."""
    order: str
    tasks: tuple[str, ...]
    base: str
    settings: ComparisonSettings
    own: Path
    """Folder where the own LoRAs of this seed are kept."""
    size: Mapping[str, Any] = field(default_factory=dict)
    """How much of everything, as the file says it."""
    store: Path | None = None
    """Where the Share model of ``share_strict`` is kept; None: nowhere."""

    @property
    def file(self) -> Path:
        return self.folder / f"{self.order}-{self.settings.seed}.json"


def run_methods(run: Run, jobs: Callable[[], Sequence[TaskJob]], methods: Sequence[str]) -> None:
    """Run what the file lacks; it is written after each method.

    Args:
        run: what the file is about.
        jobs: makes the tasks; not called where nothing is missing.
        methods: names of ``sharespace.compare``.
    """
    results = _begin(run)
    if _take_over(results, run):
        write(run.file, results)
    missing = [name for name in methods if name not in results["methods"]]
    if not missing:
        return
    bench = Workbench(jobs(), run.settings, own_files.load(run.own))
    for name in missing:
        began = time.perf_counter()
        outcome = method(name)(bench)
        own_files.save(run.own, bench.own)
        if name == "share_strict" and run.store is not None and outcome.share is not None:
            shutil.rmtree(run.store, ignore_errors=True)
            outcome.share.save(run.store)
        results["methods"][name] = record(outcome)
        write(run.file, results)
        scores = outcome.matrix.last
        said = f"{run.order} seed {run.settings.seed} {name}"
        mean = sum(scores.values()) / len(scores)
        print(f"{said}: mean {mean:.2f}, {time.perf_counter() - began:.0f} s", flush=True)


def _begin(run: Run) -> dict[str, Any]:
    """What is in the file already, or an empty record."""
    if run.file.is_file():
        found: dict[str, Any] = json.loads(run.file.read_text())
        return found
    return {
        "order": run.order,
        "tasks": list(run.tasks),
        "base": run.base,
        "size": dict(run.size),
        "settings": json.loads(json.dumps(run.settings.to_record(), default=str)),
        "environment": environment(run.settings.seed),
        "methods": {},
    }


def _take_over(results: dict[str, Any], run: Run) -> bool:
    """Methods that do not depend on the order, from another order of the same tasks and seed.

    Returns:
        Whether there was something new.
    """
    before = len(results["methods"])
    for file in sorted(run.folder.glob(f"*-{run.settings.seed}.json")):
        found = json.loads(file.read_text())
        if sorted(found["tasks"]) == sorted(run.tasks):
            for name in ORDER_FREE:
                if name in found["methods"]:
                    results["methods"].setdefault(name, found["methods"][name])
    return len(results["methods"]) > before


def record(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON, with what only some methods have."""
    found = outcome.to_record()
    if len(outcome.history) > 1:
        changes = settling([share.model for share in outcome.history])
        found["settling"] = [
            {"left": c.left_angles, "right": c.right_angles, "overlap": c.overlap} for c in changes
        ]
    if outcome.method == "per_task_lora":
        cka = adapters_cka(list(outcome.adapters.values()))
        found["cka"] = {"names": list(cka.names), "values": _plain(cka.values)}
    return found


def _plain(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


def read(folder: Path) -> list[dict[str, Any]]:
    """All results files of a folder, by name."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def write(file: Path, results: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(results, indent=1, default=_plain) + "\n")
    unfinished.replace(file)
