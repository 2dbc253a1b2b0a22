"""Wall time and peak memory of building and merging against the number of adapters and the width.

Planted adapters in float16 files, two modules of d x d, rank 16. Each point is a process of its
own with one thread: one build, whose peak memory is the one reported; then builds and the limit in
turn. Beside the wall clock stands the process's CPU time, which other jobs on the machine disturb
far less; the ratio to the limit is of CPU times. The limit is one pass over the files
(``limit.one_pass``): read every byte, to float32, norms, one sketch of each side. Reading alone is
beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common

KNOWN = 10
"""Tasks of the model that is merged into, the last of the folder."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.worker:
        return _work(options)
    results: dict[str, Any] = {
        "environment": common.environment(options.seed),
        "k": options.k,
        "r": options.r,
        "memory": options.memory,
        "points": [],
    }
    for width in options.widths:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), width, options)
            results["points"] += _points(Path(folder), width, options)
        common.write_results(options.out, results)
    print(report(results))
    if options.figure:
        from benchmarks.scale_figure import draw

        draw(results, options.out.with_suffix(".png"))
    return None


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "scale")
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--in-memory", type=int, nargs="*", default=[1024, 4096], metavar="WIDTH")
    parser.add_argument("--merge", type=int, nargs="*", default=[4096], metavar="WIDTH")
    parser.add_argument("--most", type=int, default=10**13, help="adapters x width left out above")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--memory", type=int, default=64_000_000, help="for one layer, in bytes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for a quiet machine")
    parser.add_argument("--no-figure", dest="figure", action="store_false")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _write(folder: Path, width: int, options: argparse.Namespace) -> None:
    import torch

    from benchmarks.planted import Planted

    count = max(t for t in options.tasks if t * width <= options.most)
    planted = Planted(
        count + KNOWN, width, options.r, options.k, options.seed, layers=1, dtype=torch.float16
    )
    planted.write(folder)


def _points(folder: Path, width: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    kinds = ["streamed"]
    kinds += ["in memory"] if width in options.in_memory else []
    kinds += ["merge"] if width in options.merge else []
    points = []
    for kind in kinds:
        for tasks in (t for t in options.tasks if t * width <= options.most):
            before = common.wait_until_quiet(options.wait)
            found = _in_process(kind, folder, tasks, options)
            point = {"kind": kind, "width": width, "tasks": tasks, "load_before": before, **found}
            print(json.dumps(point), flush=True)
            points.append(point)
    return points


def _in_process(kind: str, folder: Path, tasks: int, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", "--worker", kind]
    command += ["--folder", str(folder), "--tasks", str(tasks), "--k", str(options.k)]
    command += ["--memory", str(options.memory), "--repeats", str(options.repeats)]
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    done = subprocess.run(
        command,
        env={**os.environ, **one},
        cwd=Path(__file__).parents[1],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _work(options: argparse.Namespace) -> None:
    """One point, in its own process."""
    from benchmarks.limit import one_pass, read_bytes
    from sharespace import Share
    from sharespace.formats import read_adapter

    paths = sorted(options.folder.iterdir())
    known, new = paths[-KNOWN:], paths[: options.tasks[0]]
    room = 10**13 if options.worker == "in memory" else options.memory
    adapters = [read_adapter(p, p.name) for p in new]
    base = (
        Share.from_adapters(known, k=options.k, memory=room) if options.worker == "merge" else None
    )
    bare = common.peak_rss()

    def work() -> Share:
        if base is not None:
            return base.merge(adapters, memory=room)
        return Share.from_adapters(adapters, k=options.k, memory=room)

    built = work()
    peak = common.peak_rss() - bare
    found = built.fidelity()
    streamed = sum(layer.streamed for layer in built.model.layers.values())
    del built
    clock = common.Clock.now()
    jobs: dict[str, Callable[[], object]] = {
        "build": work,
        "limit": lambda: one_pass(adapters, options.k),
        "bytes": lambda: read_bytes(new),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for _ in range(options.repeats):
        for name, job in jobs.items():
            times[name].append(_timed(job))
    record = {
        **{name: [statistics.median(t) for t in zip(*x, strict=True)] for name, x in times.items()},
        "all": times,
        "others_during": clock.others(),
        "peak_bytes": peak,
        "adapter_bytes": sum(a.nbytes for a in adapters),
        "streamed_layers": streamed,
        "error_mean": found.mean_relative_error,
    }
    print(json.dumps(record))


def _timed(job: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU seconds."""
    begun = time.process_time()
    return common.seconds(job), time.process_time() - begun


def report(results: dict[str, Any]) -> str:
    """CPU seconds and peak memory by the number of adapters, and what an adapter more takes."""
    points = results["points"]
    tasks = sorted({int(p["tasks"]) for p in points})
    header = ["work", "width", *(f"{t} adapters" for t in tasks)]
    busy = [p["load_before"] for p in points]
    return "\n".join(
        [
            "CPU seconds, and by one pass over the files; *in memory* where the layers fitted:\n",
            common.table(header, _rows(points, tasks, _seconds)),
            "\nPeak MB beyond the imports and the opened adapters:\n",
            common.table(header, _rows(points, tasks, _peak)),
            "",
            _goals(points),
            f"\nOther jobs kept {min(busy):.0%} to {max(busy):.0%} of the cores busy.",
        ]
    )


def _rows(
    points: list[dict[str, Any]], tasks: list[int], cell: Callable[[dict[str, Any]], str]
) -> list[list[str]]:
    lines = sorted({(p["kind"], p["width"]) for p in points})
    found = {(p["kind"], p["width"], p["tasks"]): cell(p) for p in points}
    return [[k, str(w), *(found.get((k, w, t), "") for t in tasks)] for k, w in lines]


def _seconds(point: dict[str, Any]) -> str:
    text = f"{point['build'][1]:.2f} ({_ratio(point):.1f}x)"
    return text if point["streamed_layers"] or point["kind"] == "in memory" else f"*{text}*"


def _peak(point: dict[str, Any]) -> str:
    return f"{point['peak_bytes'] / 1e6:.0f}"


def _ratio(point: dict[str, Any]) -> float:
    return float(point["build"][1] / point["limit"][1])


def _goals(points: list[dict[str, Any]]) -> str:
    """What each line of points says of memory for one more adapter, and of the limit."""
    lines = []
    for kind, width in sorted({(p["kind"], p["width"]) for p in points}):
        line = sorted(
            (p for p in points if (p["kind"], p["width"]) == (kind, width)),
            key=lambda p: int(p["tasks"]),
        )
        ratios = [_ratio(p) for p in line]
        lines.append(
            f"- {kind}, width {width}: {min(ratios):.1f} to {max(ratios):.1f} times one pass, "
            f"{ratios[-1]:.1f} at {line[-1]['tasks']} adapters; {_growth(line)}"
        )
    return "\n".join(lines)


def _growth(line: list[dict[str, Any]]) -> str:
    """Memory that an adapter more takes, from the last two points."""
    if len(line) < 2:
        return f"peak {line[0]['peak_bytes'] / 1e6:.0f} MB"
    last, before = line[-1], line[-2]
    more = last["tasks"] - before["tasks"]
    each = (last["peak_bytes"] - before["peak_bytes"]) / more / 1e3
    size = last["adapter_bytes"] / last["tasks"] / 1e3
    return f"an adapter more takes {each:.0f} kB of memory (its file: {size:.0f} kB)"


if __name__ == "__main__":
    main()
