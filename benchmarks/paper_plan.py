"""The plan on paper: 70B x 10,000 adapters, extrapolated from the measured curves. Nothing is run.

Sizes are exact arithmetic on shapes. Times multiply a measured rate (seconds for each number of the
factors, one thread of the machine that the results name) by the count of numbers: at fixed r and k
the work is linear in adapters and in width. What is measured is in ``results/``; what is assumed
(the speed of the shared file system, the workers) is an option of this command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks import common

LAYERS = 80
ATTENTION = {"q": (8192, 8192), "k": (1024, 8192), "v": (1024, 8192), "o": (8192, 8192)}
MLP = {"gate": (28672, 8192), "up": (28672, 8192), "down": (8192, 28672)}
TARGETS = {"q, k, v, o": ATTENTION, "all linear": ATTENTION | MLP}
"""(n, d) of a Llama 70B's linear modules: 8192 wide, grouped keys and values, MLP of 28672."""

BF16 = 2
"""Bytes of a number in the files of ``benchmarks.scale``."""
IN_MEMORY = 2 * 4
"""Bytes for each number that a layer takes in memory: float32, and once more on the way."""
LAYER_MEMORY = 2e9
"""Bytes that such a layer takes: the default of sharespace."""


@dataclass(frozen=True)
class Job:
    """Adapters of one kind on one set of modules."""

    shapes: Mapping[str, tuple[int, int]]
    layers: int
    adapters: int
    r: int
    itemsize: int

    @property
    def modules(self) -> int:
        return self.layers * len(self.shapes)

    @property
    def sides(self) -> int:
        """n + d over all modules."""
        return self.layers * sum(n + d for n, d in self.shapes.values())

    @property
    def adapter_bytes(self) -> int:
        return self.r * self.sides * self.itemsize

    @property
    def numbers(self) -> int:
        """Of all factors of all adapters."""
        return self.adapters * self.r * self.sides

    @property
    def largest(self) -> int:
        """Numbers of the factors of one module: what cannot be divided."""
        return self.adapters * self.r * max(n + d for n, d in self.shapes.values())

    def basis_bytes(self, k: int) -> int:
        return k * self.sides * self.itemsize

    def coefficient_bytes(self, k: int) -> int:
        """E and F (2 k r numbers) of each task and module, or the core (k x k) where k <= r."""
        each = 2 * k * self.r if self.r < k else k * k
        return each * self.modules * self.adapters * self.itemsize


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    text = report(options)
    print(text)
    if options.page:
        from benchmarks import readme

        page = options.page.read_text(encoding="utf-8")
        options.page.write_text(readme.between(page, "paper_plan", text), encoding="utf-8")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--itemsize", type=int, default=2, help="bytes of a number; 2: bf16")
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument(
        "--link", type=float, default=1.25, help="GB/s of the shared file system, assumed"
    )
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--page", type=Path, help="write between the markers of this page, too")
    return parser.parse_args(arguments)


def report(options: argparse.Namespace) -> str:
    """All tables."""
    jobs = {
        name: Job(shapes, LAYERS, options.adapters, options.r, options.itemsize)
        for name, shapes in TARGETS.items()
    }
    constants = _read(options.results, "cluster")["constants"]
    rate, source = out_of_core_rate(options.results)
    reads = constants["out_of_core_reads"]
    parts = [
        f"{options.adapters:,} adapters of rank {options.r}, {options.itemsize} bytes a number, "
        f"on a Llama 70B ({LAYERS} layers).",
        _bytes_table(jobs),
        "What a Share model of them takes, by k (p = min(k, r), so nothing is truncated twice):",
        _sizes_table(jobs, options.k),
        f"Hours on N workers of one thread, each layer out of core, at {1e9 * rate:.1f} ns for "
        f"each number of the factors ({source}) and {reads:.0f} reads of every file through "
        f"{options.link:g} GB/s (assumed):",
        _times_table(jobs, options, rate, reads),
        f"One worker reads {reads * options.itemsize / rate / 1e6:.0f} MB/s, so this file system "
        f"feeds {options.link * 1e9 * rate / (reads * options.itemsize):.0f} of them.",
        "What stays in the one process that starts it all:",
        _main_table(jobs, options, constants),
    ]
    return "\n\n".join(part if part.startswith("|") else fill(part, 120) for part in parts)


def out_of_core_rate(folder: Path) -> tuple[float, str]:
    """(CPU seconds of one thread for each number of the factors, where that was measured): of the
    largest build of the curves."""
    largest = _curve(folder)[-1]
    where = f"`scale`: {largest['tasks']} adapters of width {largest['width']}"
    return largest["build"][1] * BF16 / largest["adapter_bytes"], where


def more_memory(folder: Path) -> float:
    """Bytes that a worker needs for one adapter more: the end of the widest curve."""
    before, last = _curve(folder)[-2:]
    grown = last["peak_bytes"] - before["peak_bytes"]
    return float(grown / (last["tasks"] - before["tasks"]))


def _curve(folder: Path) -> list[dict[str, Any]]:
    """The builds out of core at the largest width, fewest adapters first."""
    points = [
        p
        for p in _read(folder, "scale")["points"]
        if p["kind"] == "streamed" and p["streamed_layers"]
    ]
    widest = max(p["width"] for p in points)
    return sorted((p for p in points if p["width"] == widest), key=lambda p: int(p["tasks"]))


def merge_rate(folder: Path) -> float:
    """Seconds of a merge at the cap for each known task and module: the slope of the curve."""
    found = _read(folder, "merge")
    line = [p for p in found["points"] if p["at_cap"] and p["d"] == found["points"][-1]["d"]]
    slope = (line[-1]["seconds"] - line[0]["seconds"]) / (line[-1]["tasks"] - line[0]["tasks"])
    return float(slope / found["sizes"]["modules"])


def _read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def _bytes_table(jobs: Mapping[str, Job]) -> str:
    header = [
        "adapted", "modules", "an adapter", "all of them", "largest module, all of them",
        "to build that one in memory",
    ]  # fmt: skip
    rows = [
        [
            name,
            str(job.modules),
            _size(job.adapter_bytes),
            _size(job.numbers * job.itemsize),
            _size(job.largest * job.itemsize),
            _size(job.largest * IN_MEMORY),
        ]
        for name, job in jobs.items()
    ]
    return common.table(header, rows)


def _sizes_table(jobs: Mapping[str, Job], ks: Sequence[int]) -> str:
    header = ["adapted", "k", "bases", "coefficients", "together, by LoRA"]
    rows = []
    for name, job in jobs.items():
        for k in ks:
            basis, coefficients = job.basis_bytes(k), job.coefficient_bytes(k)
            part = (basis + coefficients) / (job.numbers * job.itemsize)
            rows.append([name, str(k), _size(basis), _size(coefficients), f"{part:.1%}"])
    return common.table(header, rows)


def _times_table(
    jobs: Mapping[str, Job], options: argparse.Namespace, rate: float, reads: float
) -> str:
    header = [
        "adapted", "workers", "computing", "reading", "largest module", "at least", "what binds",
        "memory of the workers",
    ]  # fmt: skip
    memory = LAYER_MEMORY + options.adapters * more_memory(options.results)
    rows = []
    for name, job in jobs.items():
        reading = reads * job.numbers * job.itemsize / (options.link * 1e9)
        for workers in options.workers:
            times = {
                "computing": job.numbers * rate / workers,
                "reading": reading,
                "largest module": job.largest * rate,
            }
            binds = max(times, key=lambda what: times[what])
            hours = [f"{seconds / 3600:.2f}" for seconds in (*times.values(), times[binds])]
            rows.append([name, str(workers), *hours, binds, _size(workers * memory)])
    return common.table(header, rows)


def _main_table(
    jobs: Mapping[str, Job], options: argparse.Namespace, constants: Mapping[str, float]
) -> str:
    header = [
        "adapted", "memory: open adapters", f"coefficients, k = {options.k[1]}", "a layer's job",
        "hashing all files on one core, h", "reading them for that, h",
        "one more merge at the cap, one thread, h",
    ]  # fmt: skip
    merging = merge_rate(options.results) * options.adapters / 3600
    rows = [
        [
            name,
            _size(constants["open_bytes_per_module"] * job.modules * job.adapters),
            _size(job.coefficient_bytes(options.k[1])),
            _size(constants["job_bytes_per_adapter"] * job.adapters),
            f"{job.numbers * job.itemsize / constants['hash_bytes_per_second'] / 3600:.2f}",
            f"{job.numbers * job.itemsize / (options.link * 1e9) / 3600:.2f}",
            f"{merging * job.modules:.2f}",
        ]
        for name, job in jobs.items()
    ]
    return common.table(header, rows)


def _size(count: float) -> str:
    """Bytes in powers of ten, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


if __name__ == "__main__":
    main()
