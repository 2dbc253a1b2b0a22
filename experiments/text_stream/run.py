"""All methods on streams of text tasks, for several seeds and orders.

    python -m experiments.text_stream.run --data DATA/text --seeds 0 1 2

One file of results a seed and order; a method that is in it already is not run again, so that a
run goes on where it was cut off. ``summarise`` makes the table and the figures of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common import environment
from experiments.text_stream import own as own_files
from experiments.text_stream import script
from experiments.text_stream.jobs import Base, make_jobs
from experiments.text_stream.settings import (
    FULL,
    METHODS,
    ORDER_FREE,
    ORDERS,
    QUICK,
    Size,
    settings,
)

from sharespace.baselines import Outcome, Settings, Workbench, method
from sharespace.evaluate import adapters_cka, settling


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--k", type=int, help="another cap of the subspaces")
    parser.add_argument("--phi", type=int, help="another number of new directions a task")
    parser.add_argument("--quick", action="store_true", help="tiny: for tests")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    base = script.begin(chosen)
    for seed in chosen.seeds:
        for order in chosen.orders:
            run(base, order, seed, chosen)


def run(base: Base, order: str, seed: int, chosen: argparse.Namespace) -> None:
    """One seed and order."""
    size = QUICK if chosen.quick else FULL
    file = chosen.out / f"{order}-{seed}.json"
    numbers = _numbers(size, seed, chosen)
    results = _begin(file, base, order, numbers, size)
    _take_over(results, chosen.out, seed)
    missing = [name for name in chosen.methods if name not in results["methods"]]
    if not missing:
        return
    jobs = make_jobs(base, chosen.data, ORDERS[order], size, seed, chosen.cache)
    place = chosen.cache / "own" / f"{base.name.replace('/', '_')}-{size.steps}-{seed}"
    bench = Workbench(jobs, numbers, own_files.load(place))
    for name in missing:
        began = time.perf_counter()
        outcome = method(name)(bench)
        own_files.save(place, bench.own)
        if name == "share_strict" and outcome.share is not None:
            store = chosen.cache / "share" / f"{order}-{seed}"
            shutil.rmtree(store, ignore_errors=True)
            outcome.share.save(store)
        results["methods"][name] = record(outcome)
        write(file, results)
        scores = outcome.matrix.last
        mean = sum(scores.values()) / len(scores)
        print(
            f"{order} seed {seed} {name}: mean {mean:.2f}, {time.perf_counter() - began:.0f} s",
            flush=True,
        )


def _numbers(size: Size, seed: int, chosen: argparse.Namespace) -> Settings:
    """The settings, but for what the command line changes."""
    changed = {n: getattr(chosen, n) for n in ("k", "phi") if getattr(chosen, n) is not None}
    return replace(settings(size, seed), **changed)


def _begin(file: Path, base: Base, order: str, numbers: Settings, size: Size) -> dict[str, Any]:
    """What is in the file already, or an empty record."""
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    return {
        "order": order,
        "tasks": list(ORDERS[order]),
        "base": base.name,
        "size": asdict(size),
        "settings": json.loads(json.dumps(asdict(numbers), default=str)),
        "environment": environment(numbers.seed),
        "methods": {},
    }


def _take_over(results: dict[str, Any], folder: Path, seed: int) -> None:
    """Methods that do not depend on the order, from another order's file of the same seed."""
    for file in sorted(folder.glob(f"*-{seed}.json")):
        found = json.loads(file.read_text())["methods"]
        for name in ORDER_FREE:
            if name in found:
                results["methods"].setdefault(name, found[name])


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


def write(file: Path, results: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(results, indent=1, default=_plain) + "\n")
    unfinished.replace(file)


if __name__ == "__main__":
    main()
