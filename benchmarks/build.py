"""Time, memory and error of building a Share model beside lorashare and vlora-dev.

All read the same PEFT directories through their public API, each in a process of its own with the
same threads: one build to warm up (its peak memory is the one reported, and its model the one whose
error is measured), then the median of the repeats. Planted adapters: for time and memory only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common

SIZES = ((32, 1024), (64, 4096))
K = 32


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.worker:
        return _work(options)
    from benchmarks.planted import Planted

    sets = []
    for size in options.sizes:
        tasks, d = map(int, size.split("x"))
        planted = Planted(tasks, d, r=options.r, rank=options.k, seed=options.seed)
        with tempfile.TemporaryDirectory() as folder:
            planted.write(Path(folder))
            sets.append({"set": planted.label, "runs": _side_by_side(Path(folder), options)})
    results = {"environment": common.environment(options.seed), "k": options.k, "sets": sets}
    common.write_results(options.out, results)
    return print(report(results))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "build")
    parser.add_argument("--sizes", nargs="+", default=[f"{t}x{d}" for t, d in SIZES])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--k", type=int, default=K)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for a quiet machine")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _side_by_side(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    from benchmarks.contenders import NAMES, installed

    runs = []
    for threads in options.threads:
        for name in NAMES:
            if not installed(name):
                print(f"{name} is not installed: left out (pip install 'sharespace[bench]')")
                continue
            before = common.wait_until_quiet(options.wait)
            run = _in_process(name, folder, threads, options)
            runs.append({"contender": name, "threads": threads, "load_before": before, **run})
            print(f"{name}, {threads} threads: {run['seconds']:.2f} s", flush=True)
    return runs


def _in_process(
    name: str, folder: Path, threads: int, options: argparse.Namespace
) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.build", "--worker", name, "--folder", str(folder)]
    command += ["--k", str(options.k), "--repeats", str(options.repeats)]
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    done = subprocess.run(
        command,
        env={**os.environ, **limits},
        cwd=Path(__file__).parents[1],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _work(options: argparse.Namespace) -> None:
    """In the contender's own process; torch is imported first, and nothing else before it."""
    import torch

    assert torch is not None
    bare = common.peak_rss()
    from benchmarks.contenders import build

    paths = {p.name: p for p in sorted(options.folder.iterdir())}
    built = build(options.worker, paths, options.k)
    peak = common.peak_rss() - bare
    clock = common.Clock.now()
    repeats = [
        common.seconds(lambda: build(options.worker, paths, options.k))
        for _ in range(options.repeats)
    ]
    times = {"seconds": statistics.median(repeats), "all_seconds": repeats}
    print(
        json.dumps(
            {
                **times,
                "others_during": clock.others(),
                "peak_bytes": peak,
                **_quality(built, options),
            }
        )
    )


def _quality(built: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Errors and bytes; for sharespace also the limit, in the same process."""
    from benchmarks.limit import limit_seconds
    from benchmarks.measure import errors, tensor_bytes

    paths = {p.name: p for p in sorted(options.folder.iterdir())}
    found = errors(built, paths)
    with tempfile.TemporaryDirectory() as folder:
        built.save(Path(folder) / "saved")
        stored = tensor_bytes(Path(folder) / "saved")
    result = {
        "error_mean": found.mean,
        "error_worst": found.worst,
        "stored_bytes": stored,
        "adapter_bytes": sum(tensor_bytes(p) for p in paths.values()),
    }
    if options.worker == "sharespace":
        result["limit_seconds"] = limit_seconds(list(paths.values()), options.k, options.repeats)
    return result


def report(results: dict[str, Any]) -> str:
    """Both sets as Markdown tables."""
    header = [
        "contender", "threads", "median s", "by sharespace", "peak MB beyond torch",
        "by sharespace", "error mean", "worst", "stored MB", "others busy: before, during",
    ]  # fmt: skip
    parts = []
    for one in results["sets"]:
        parts.append(f"**{one['set']}, 4 modules, k = {results['k']}**\n")
        parts.append(common.table(header, [_row(run, one["runs"]) for run in one["runs"]]))
        parts.extend(_limits(one["runs"]))
        parts.append("")
    return "\n".join(parts)


def _row(run: dict[str, Any], runs: list[dict[str, Any]]) -> list[str]:
    ours = _ours(runs, run["threads"])
    return [
        run["contender"],
        str(run["threads"]),
        f"{run['seconds']:.2f}",
        f"{run['seconds'] / ours['seconds']:.1f}x",
        f"{run['peak_bytes'] / 1e6:.0f}",
        f"{run['peak_bytes'] / ours['peak_bytes']:.1f}x",
        f"{run['error_mean']:.3f}",
        f"{run['error_worst']:.3f}",
        f"{run['stored_bytes'] / 1e6:.1f} of {run['adapter_bytes'] / 1e6:.0f}",
        f"{run['load_before']:.0%}, {run['others_during']:.0%}",
    ]


def _ours(runs: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    return next(r for r in runs if r["contender"] == "sharespace" and r["threads"] == threads)


def _limits(runs: list[dict[str, Any]]) -> list[str]:
    return [
        f"\n{run['threads']} threads: the limit (read, canonicalise, one sketch a side) is "
        f"{run['limit_seconds']:.2f} s; sharespace takes "
        f"{run['seconds'] / run['limit_seconds']:.1f} times that."
        for run in runs
        if run["contender"] == "sharespace"
    ]


if __name__ == "__main__":
    main()
