"""Building, merging and mixed batches on a GPU beside the CPU; one command for a machine with one.

::

    python -m benchmarks.gpu                         # writes results/gpu.json, which names the GPU
    python -m benchmarks.gpu --device cpu --quick    # looks whether it starts, anywhere

Build and merge are of planted adapters (``planted.py``) and include reading; errors are those of
the stored model against the adapters, so that both devices can be seen to give the same. Mixed
batches are those of ``mixed_batch``, on the device alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common, mixed_batch
from benchmarks.planted import Planted
from sharespace import Share
from sharespace.linalg.precision import usable_device

SIZES = ((64, 1024), (64, 4096))
"""(adapters, width) of the builds."""
TASKS = (1, 4, 16, 64, 256, 1024)
QUICK = (
    "--layers", "1", "--width", "32", "--rows", "4", "--length", "4", "--rounds", "1",
    "--k", "4", "--p", "2", "--tasks", "1", "3",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    device = usable_device(options.device)
    results = {
        "environment": common.environment(options.seed),
        "device": device_name(device),
        "tf32": torch.get_float32_matmul_precision() != "highest",
        "builds": [
            build(tasks, d, device, options) for tasks, d in ([(3, 48)] if options.quick else SIZES)
        ],
        "mixed": mixed(device, options),
    }
    common.write_results(options.out, results)
    print(report(results))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "gpu")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it start?")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args(arguments)


def device_name(device: torch.device) -> str:
    """As its driver calls it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return common.cpu_model() if device.type == "cpu" else str(device)


def build(tasks: int, d: int, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and errors of a build of all but one adapter, and of the merge of the last one."""
    r, k = (4, 8) if options.quick else (16, 32)
    with tempfile.TemporaryDirectory() as folder:
        paths = Planted(tasks=tasks, d=d, r=r, rank=k, seed=options.seed).write(Path(folder) / "s")
        *first, last = paths
        runs = {}
        for place in dict.fromkeys(["cpu", str(device)]):
            old = {n: paths[n] for n in first}
            share = Share.from_adapters(old, k=k, device=place, seed=options.seed)
            whole = share.merge({last: paths[last]}, device=place)
            runs[place] = {
                "build": common.median_seconds(
                    lambda old=old, place=place: Share.from_adapters(old, k=k, device=place),  # type: ignore[misc]
                    1 if options.quick else options.repeats,
                ),
                "merge": common.median_seconds(
                    lambda share=share, place=place: share.merge(  # type: ignore[misc]
                        {last: paths[last]}, device=place
                    ),
                    1 if options.quick else options.repeats,
                ),
                "error": whole.fidelity(paths).mean_relative_error,
            }
    return {"tasks": tasks, "d": d, "r": r, "k": k, "runs": runs}


def mixed(device: torch.device, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Sets of ``mixed_batch`` on the device: both shapes, targets and phases."""
    asked = QUICK if options.quick else ("--tasks", *map(str, TASKS))
    chosen = mixed_batch.parsed(["--device", str(device), "--seed", str(options.seed), *asked])
    shapes = chosen.shapes[:1] if options.quick else chosen.shapes
    return [
        mixed_batch.measure(shape, targets, phase, chosen)
        for shape in shapes
        for targets in mixed_batch.TARGETS[shape]
        for phase in mixed_batch.PHASES
    ]


def report(results: dict[str, Any]) -> str:
    """Two tables: builds and merges beside the CPU, and mixed batches."""
    rows = [
        _build_row(b, place, run) for b in results["builds"] for place, run in b["runs"].items()
    ]
    header = ["adapters", "device", "build, s", "merge of one, s", "mean error"]
    batches = [
        _batch_row(s, count, run) for s in results["mixed"] for count, run in s["runs"].items()
    ]
    names = ["shape", "targets", "phase", "tasks", "MixedTasks, by base", "adapter_names, by base"]
    return (
        f"{results['device']}; TF32 in the models {'on' if results['tf32'] else 'off'}\n\n"
        f"{common.table(header, rows)}\n\n{common.table([*names, 'base, ms'], batches)}"
    )


def _build_row(one: dict[str, Any], place: str, run: dict[str, float]) -> list[str]:
    adapters = f"{one['tasks']} x {one['d']}, r={one['r']}, k={one['k']}"
    seconds = [f"{run[n]:.2f}" for n in ("build", "merge")]
    return [adapters, place, *seconds, f"{run['error']:.4f}"]


def _batch_row(one: dict[str, Any], count: str, run: dict[str, Any]) -> list[str]:
    ratios = [f"{run[n]['ratio']:.2f}x" for n in (mixed_batch.OURS, mixed_batch.NAMES)]
    base = f"{1e3 * run[mixed_batch.BASE]['seconds']:.2f}"
    return [one["shape"], one["targets"], one["phase"], count, *ratios, base]


if __name__ == "__main__":
    main()
