"""Adapters of many tasks, merged batch after batch: what is kept of each, by method and k.

    python -m experiments.generation.run --data DATA/text --seeds 0 1 2

One file of results a start of the adapters and a seed (the order in which they come); what is in
it already is not run again, so that a run goes on where it was cut off. The base model and the
adapters are trained at the first call and kept in the cache. ``summarise`` makes tables and
figures.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import environment
from experiments.common.runs import write
from experiments.generation import merging, script
from experiments.generation.adapters import load_adapters
from experiments.generation.merging import Method, Record, Stream
from experiments.generation.script import Ready
from experiments.generation.settings import RANK, Start

METHODS = ("original", "base", "mean_adapter", "share", "joint", "own_svd", "random_basis")
ONCE = ("original", "base", "mean_adapter", "own_svd", "random_basis")
"""Run with the first seed only: they know no order (``own_svd`` has the bytes of ``joint``)."""


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "merge")
    parser.add_argument("--starts", nargs="+", choices=("own", "same"), default=["own", "same"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--only", default="", help="beginning of the tasks' names, as 'rule-'")
    parser.add_argument("--k", type=int, nargs="+", help="other caps of the subspaces")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    ready = script.begin(chosen)
    for start in chosen.starts:
        adapters = load_adapters(
            ready.base, list(ready.tasks.values()), ready.size, start, 0, chosen.cache, chosen.only
        )
        for seed in chosen.seeds:
            batches = in_batches(list(adapters), ready.size.batches, seed)
            tests = {name: ready.tests[name] for name in adapters}
            stream = Stream(ready.base, adapters, tests, batches)
            run(stream, ready, start, seed, chosen)


def in_batches(names: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """All names in a random order, as many in each batch."""
    order = random.Random(seed).sample(names, len(names))
    size = -(-len(order) // count)
    return [order[i : i + size] for i in range(0, len(order), size)]


def run(stream: Stream, ready: Ready, start: Start, seed: int, chosen: argparse.Namespace) -> None:
    """What one file lacks; it is written after each method."""
    file = chosen.out / f"{start}-{seed}.json"
    results = _begin(file, stream, ready, start, seed)
    methods = [m for m in chosen.methods if seed == chosen.seeds[0] or m not in ONCE]
    for method in (m for m in methods if m in PLAIN):
        _once(file, results, method, partial(_final, PLAIN[method], stream))
    for k in chosen.k or ready.size.dimensions:
        if "share" in methods:
            _once(file, results, f"share {k}", partial(_merged, stream, "share", k))
        if "joint" in methods or "own_svd" in methods:
            _joint(file, results, stream, k, methods)
        if "random_basis" in methods:
            found = partial(_final, merging.random_basis, stream, k, seed)
            _once(file, results, f"random_basis {k}", found)


PLAIN: Mapping[str, Callable[[Stream], Record]] = {
    "original": merging.originals,
    "base": merging.base_alone,
    "mean_adapter": merging.mean_adapter,
}
"""Methods without k."""


def _final(compute: Callable[..., Record], *arguments: Any) -> Record:
    """Scores at the end, the only ones of methods without steps."""
    return {"final": compute(*arguments)}


def _merged(stream: Stream, method: Method, k: int) -> Record:
    return merging.merged(stream, method, k)[0]


def _joint(
    file: Path, results: dict[str, Any], stream: Stream, k: int, methods: Sequence[str]
) -> None:
    """Own SVDs have the bytes of the joint model, and its shared fraction is against them."""
    wanted = [f"{m} {k}" for m in ("joint", "own_svd") if m in methods]
    if all(name in results["methods"] for name in wanted):
        return
    found, share = merging.merged(stream, "joint", k)
    _once(file, results, f"joint {k}", lambda: found)
    if "own_svd" in methods:
        null = share.baselines(list(stream.adapters.values()))
        errors = {"own_svd": null.own_svd, "mean": null.mean_adapter, "random": null.random_basis}
        results["nulls"][str(k)] = {
            "shared": null.shared,
            **{name: sum(e.values()) / len(e) for name, e in errors.items()},
        }
        _once(file, results, f"own_svd {k}", partial(_final, merging.own_svd, stream, share))


def _begin(file: Path, stream: Stream, ready: Ready, start: Start, seed: int) -> dict[str, Any]:
    if file.is_file():
        known: dict[str, Any] = json.loads(file.read_text())
        return known
    return {
        "base": ready.base.name,
        "start": start,
        "rank": RANK,
        "width": ready.base.model.config.hidden_size,
        "modules": len(next(iter(stream.adapters.values())).shapes),
        "batches": stream.batches,
        "kinds": {name: ready.tasks[name].kind for name in stream.adapters},
        "size": asdict(ready.size),
        "environment": environment(seed),
        "methods": {},
        "nulls": {},
    }


def _once(
    file: Path, results: dict[str, Any], name: str, compute: Callable[[], dict[str, Any]]
) -> None:
    if name in results["methods"]:
        return
    began = time.perf_counter()
    found = results["methods"][name] = compute()
    write(file, results)
    percent = [s["percent"] for s in found["final"].values()]
    print(f"{file.stem} {name}: {sum(percent) / len(percent):.1f}, "
          f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
