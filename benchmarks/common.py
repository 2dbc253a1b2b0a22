"""What all benchmarks share: options, the machine, its load, time, memory, results."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("sharespace", "torch", "numpy", "peft", "transformers", "lorashare", "vlora-dev")
BUSY = 0.35
"""Load per core, before a measurement, above which other jobs must be assumed to disturb it."""


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    return result


def environment(seed: int) -> dict[str, Any]:
    """What a reader needs to judge a number; nothing that names the machine."""
    import torch

    return {
        "seed": seed,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in PACKAGES},
        "load_per_core": load(),
    }


def version(package: str) -> str | None:
    """The installed version, None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load() -> float:
    """Mean share of all cores that is busy, measured over half a second."""
    import psutil

    return round(float(psutil.cpu_percent(interval=0.5)) / 100, 2)


def wait_until_quiet(limit: float) -> float:
    """Wait at most ``limit`` seconds for the other jobs to stop; the load that was left."""
    end = time.monotonic() + limit
    while (now := max(load(), load())) > BUSY and time.monotonic() < end:
        time.sleep(min(5.0, max(end - time.monotonic(), 0.0)))
    if now > BUSY:
        print(f"warning: {now:.0%} of the cores are busy; times will be too long", file=sys.stderr)
    return now


def peak_rss() -> int:
    """Largest resident set of this process so far, in bytes.

    On Linux the high-water mark of the address space: ``ru_maxrss`` starts with the *parent's* size
    after a fork, and would hide a small process behind a large one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Clock:
    """Where the machine's and this process's clocks stood."""

    wall: float
    own: float
    """CPU seconds of this process."""
    busy: float
    """CPU seconds of all processes."""

    @classmethod
    def now(cls) -> Clock:
        import psutil

        times = psutil.cpu_times()
        steal = getattr(times, "steal", 0.0)
        busy = times.user + times.system + getattr(times, "nice", 0.0) + steal
        return cls(time.perf_counter(), time.process_time(), busy)

    def others(self) -> float:
        """Share of all cores that other processes took since then."""
        end = Clock.now()
        taken = (end.busy - self.busy) - (end.own - self.own)
        return round(max(taken, 0.0) / (end.wall - self.wall) / (os.cpu_count() or 1), 2)


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call; the result is dropped."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall-clock time of several calls, after one to warm up."""
    work()
    return statistics.median(seconds(work) for _ in range(repeats))


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Results as JSON, numbers with five digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(results), indent=1) + "\n")
    print(f"written: {path.name}")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.5g}")
    return value


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
