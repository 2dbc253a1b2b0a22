"""The paper's three kinds of stream: data only, adapters only, and some of each.

    python -m experiments.images.kinds --data DATA --base mobilenet --seeds 0

Run after ``run``, which leaves the own LoRAs in the cache that the tasks come as; what it calls
share_strict is the stream of data only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common import environment
from experiments.common import kinds
from experiments.common import own as own_files
from experiments.common.runs import write
from experiments.images import script
from experiments.images.base import Base
from experiments.images.jobs import make_jobs
from experiments.images.settings import INITIAL, STREAMS, Size

from sharespace.compare import Workbench
from sharespace.errors import OptionError


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "kinds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--streams", nargs="+", help="default: the first of the base")
    parser.add_argument("--runs", type=Path, default=script.RESULTS / "runs")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    base, size = script.begin(chosen)
    for seed in chosen.seeds:
        for stream in chosen.streams or list(STREAMS[chosen.base])[:1]:
            file = chosen.out / chosen.base / f"{stream}-{seed}.json"
            if not file.is_file():
                write(file, measure(base, size, stream, seed, chosen))


def measure(
    base: Base, size: Size, stream: str, seed: int, chosen: argparse.Namespace
) -> dict[str, Any]:
    """Adapters only and hybrid, with data only as ``run`` has it."""
    tasks = STREAMS[chosen.base][stream]
    folder = script.own_folder(chosen.cache, base, size, seed)
    images, cache = chosen.data / script.IMAGES, chosen.cache / "features"
    jobs = make_jobs(base, images, tasks, size, seed, cache)
    numbers = script.numbers(base, chosen.base, size, seed, len(tasks))
    bench = Workbench(jobs, numbers, own_files.load(folder))
    ways = {"adapters only": kinds.adapters_only(tasks), "hybrid": kinds.hybrid(tasks, INITIAL)}
    found = {"data only": data_only(stream, seed, chosen)}
    found |= {kind: kinds.stream(bench, comes) for kind, comes in ways.items()}
    own_files.save(folder, bench.own)
    return {
        "order": stream,
        "base": chosen.base,
        "tasks": list(tasks),
        "own": {name: bench.own[name].score for name in tasks},
        "kinds": found,
        "environment": environment(seed),
    }


def data_only(stream: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """The stream of ``run`` in which all but the first tasks are learned from data.

    Raises:
        OptionError: it was not run.
    """
    file = chosen.runs / chosen.base / f"{stream}-{seed}.json"
    known = json.loads(file.read_text())["methods"] if file.is_file() else {}
    if "share_strict" not in known:
        raise OptionError(f"stream {stream!r}", f"share_strict is not in {file}", "Run it first")
    found, tasks = known["share_strict"], STREAMS[chosen.base][stream]
    stored = found["stored"]
    later = {name: found["trainable"][name] for name in tasks[INITIAL:]}
    return {
        "matrix": found["matrix"],
        "came": {**dict.fromkeys(tasks[:INITIAL], "adapter"), **dict.fromkeys(later, "data")},
        "trained": {**dict.fromkeys(tasks[:INITIAL], 0), **later},
        "bytes": stored["basis"] + stored["coefficients"],
    }


if __name__ == "__main__":
    main()
