"""The same build here and on a local Dask cluster: seconds, CPU seconds, and what a plan needs.

One thread a process. Both builds run in turns in one run, after one to warm up; the stored bytes
are compared. CPU seconds count every process: what the cluster takes more than this process alone
is what serialising and scheduling cost. Beside them the constants of a large build's main process:
memory of an open adapter, bytes of a layer's job, speed of the hash that opening a file takes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.planted import Planted
from sharespace import Share, read_adapter
from sharespace.formats import PlainLora, write_adapter
from sharespace.formats.weights_file import sha256
from sharespace.linalg.dimension import Dimension
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.build import BuildJob
from sharespace.subspace.build_layer import Build
from sharespace.subspace.build_streamed import build_bytes
from sharespace.subspace.executor import LOCAL, Dask, Executor, dumps
from sharespace.subspace.state import BuildSettings

K = 32


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(1)
    before = common.wait_until_quiet(options.wait)
    clock = common.Clock.now()
    planted = Planted(options.tasks, options.d, rank=options.k, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = list(planted.write(Path(folder) / "set").values())
        runs, start = _in_turns(paths, Path(folder), options)
        constants = {
            **_main_process(paths, Path(folder)),
            **_out_of_core(paths, options.k),
        }
    results = {
        "environment": common.environment(options.seed),
        "load_before": before,
        "others_during": clock.others(),
        "set": f"{planted.label}, 4 modules, k = {options.k}",
        "workers": options.workers,
        "start_seconds": start,
        "runs": runs,
        "constants": constants,
    }
    common.write_results(options.out, results)
    print(report(results))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "cluster")
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--d", type=int, default=4096)
    parser.add_argument("--k", type=int, default=K)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for a quiet machine")
    return parser.parse_args(arguments)


def _in_turns(
    paths: Sequence[Path], folder: Path, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], float]:
    """Median seconds and CPU seconds of each executor, and the seconds to start the cluster."""
    opened = [read_adapter(path) for path in paths]
    started: list[Dask] = []
    start = common.seconds(lambda: started.append(Dask(options.workers)))
    with started[0] as cluster:
        where: dict[str, Executor] = {"local": LOCAL, "cluster": cluster}
        for name, executor in where.items():
            _build(opened, executor, options.k).save(folder / name)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in where}
        for _ in range(options.repeats):
            for name, executor in where.items():
                taken[name].append(_timed(partial(_build, opened, executor, options.k)))
    same = _objects(folder / "local") == _objects(folder / "cluster")
    runs = [
        {
            "executor": name,
            "seconds": statistics.median(wall for wall, _ in times),
            "cpu_seconds": statistics.median(cpu for _, cpu in times),
            "all_seconds": [wall for wall, _ in times],
            "same_bytes": same,
        }
        for name, times in taken.items()
    ]
    return runs, start


def _build(adapters: Sequence[Adapter], executor: Executor, k: int) -> Share:
    return Share.from_adapters(adapters, k=k, executor=executor)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process and all that it started)."""
    before = _cpu()
    wall = common.seconds(work)
    return wall, _cpu() - before


def _cpu() -> float:
    import psutil

    me = psutil.Process(os.getpid())
    times = [p.cpu_times() for p in (me, *me.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


def _objects(store: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in store.rglob("*.safetensors")}


def _main_process(paths: Sequence[Path], folder: Path) -> dict[str, float]:
    """What the main process needs for each adapter; see ``benchmarks.paper_plan``."""
    opened = [read_adapter(path) for path in paths]
    module, shape = next(iter(opened[0].shapes.items()))
    build = Build(BuildSettings(), Dimension(k=K), torch.float32, torch.device("cpu"))
    job = len(dumps(BuildJob(module, shape, opened, build)))
    weights = [path / "adapter_model.safetensors" for path in paths]
    start = time.process_time()  # of one core, whatever else is running
    for path in weights:
        sha256(path)
    hashing = time.process_time() - start
    return {
        "open_bytes_per_module": _open_bytes(folder / "wide"),
        "job_bytes_per_adapter": job / len(opened),
        "hash_bytes_per_second": sum(path.stat().st_size for path in weights) / hashing,
    }


def _out_of_core(paths: Sequence[Path], k: int) -> dict[str, float]:
    """CPU seconds for each number of the factors where a layer does not fit, and how often it
    reads them: what every layer of ten thousand adapters takes."""
    reads = 0

    def counted(adapter: Adapter) -> Adapter:
        def layer(module: str) -> LayerUpdate:
            nonlocal reads
            reads += 1
            return adapter.layer(module)

        return replace(adapter, layer=layer)

    opened = [read_adapter(path) for path in paths]
    needed = build_bytes(opened, next(iter(opened[0].shapes)))
    start = time.process_time()
    Share.from_adapters([counted(a) for a in opened], k=k, memory=needed // 4)
    seconds = time.process_time() - start
    numbers = sum(a.nbytes / a.dtype.itemsize for a in opened)
    return {
        "out_of_core_seconds_per_number": seconds / numbers,
        "out_of_core_reads": reads / sum(len(a.shapes) for a in opened),
    }


def _open_bytes(path: Path, modules: int = 500, copies: int = 10) -> float:
    """Memory that one module of an adapter takes while the adapter is open and nothing is read."""
    update = LayerUpdate(torch.ones(2, 1), torch.ones(1, 2))
    write_adapter(
        path, PlainLora({f"model.layers.{i}.self_attn.q_proj": update for i in range(modules)})
    )
    read_adapter(path)
    tracemalloc.start()
    opened = [read_adapter(path) for _ in range(copies)]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken / (modules * len(opened))


def report(results: dict[str, Any]) -> str:
    """Both executors, by the local one; then the constants."""
    local = next(r for r in results["runs"] if r["executor"] == "local")
    header = ["executor", "s", "by local", "CPU s, all processes", "by local"]
    rows = [
        [
            f"{r['executor']}, {results['workers']} processes" if r is not local else "local",
            f"{r['seconds']:.2f}",
            f"{r['seconds'] / local['seconds']:.2f}x",
            f"{r['cpu_seconds']:.2f}",
            f"{r['cpu_seconds'] / local['cpu_seconds']:.2f}x",
        ]
        for r in results["runs"]
    ]
    same = "the same bytes" if all(r["same_bytes"] for r in results["runs"]) else "**other bytes**"
    found = results["constants"]
    return (
        f"{results['set']}; {same} stored; starting the cluster took "
        f"{results['start_seconds']:.0f} s; others kept {results['others_during']:.0%} of the "
        f"cores busy\n\n{common.table(header, rows)}\n\n"
        f"An open adapter takes {found['open_bytes_per_module']:.0f} bytes of memory a module; a "
        f"layer's job {found['job_bytes_per_adapter']:.0f} bytes an adapter; hashing goes at "
        f"{found['hash_bytes_per_second'] / 1e6:.0f} MB/s of one core. In a quarter of the memory "
        f"that a layer takes, out of core, one thread needs "
        f"{1e9 * found['out_of_core_seconds_per_number']:.0f} ns for each number of the factors "
        f"and reads them {found['out_of_core_reads']:.0f} times."
    )


if __name__ == "__main__":
    main()
