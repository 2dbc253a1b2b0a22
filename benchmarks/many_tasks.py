"""Serve 50 tasks of a stored Share model that has 100, 1,000 or 4,000: what grows with them?

BERT-base's q and v, random bases and coefficients; only sizes matter here. Each store is opened and
served in a process of its own: the time to open it, of the first batch of 50 tasks (their files are
read then), and of a batch of the same tasks after that; and the memory that all of it takes beyond
the base model and the imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.mixed_batch import TARGETS, VOCABULARY, base_model, random_share
from sharespace import Share
from sharespace.serve.mixed import MixedTasks

USED = 50


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.measure:
        print(json.dumps(served(options.measure, options)))
        return
    torch.set_num_threads(1)
    points = [point(count, options) for count in options.tasks]
    sizes = {n: getattr(options, n) for n in ("layers", "k", "p")}
    results = {"environment": common.environment(options.seed), "sizes": sizes, "points": points}
    common.write_results(options.out, results)
    print(report(results))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "many_tasks")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tasks", type=int, nargs="+", default=[100, 1000, 4000])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, help="another hidden size, for tests")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--p", type=int, default=8)
    parser.add_argument("--measure", type=Path, help="serve this store, here")
    return parser.parse_args(arguments)


def point(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """One store, made and served."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(options.seed)
        path = Path(folder) / "many.share"
        model = base_model("bert", options.layers, options.width)
        modules = TARGETS["bert"]["q, v"]
        Share(random_share(model, modules, count, options.k, options.p)).save(path)
        manifest = next((path / "versions").iterdir()).stat().st_size
        size = sum(f.stat().st_size for f in (path / "objects").iterdir())
        found = _in_a_process(path, options)
    print(f"{count} tasks: {found}", flush=True)
    return {"tasks": count, "stored": size, "manifest": manifest, **found}


def _in_a_process(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    sizes = ["--layers", str(options.layers), "--k", str(options.k), "--p", str(options.p)]
    sizes += [] if options.width is None else ["--width", str(options.width)]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.many_tasks"]
    done = subprocess.run(
        [*command, "--measure", str(path), *sizes], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def served(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of CPU time and bytes, in this process."""
    torch.set_num_threads(1)
    model = base_model("bert", options.layers, options.width).eval()
    x = torch.randint(VOCABULARY, (USED, 4))
    with torch.no_grad():
        model(x)
        before = common.peak_rss()
        opened, share = _timed(lambda: Share.load(path))
        attached, mixed = _timed(lambda: MixedTasks(model, share, slots=USED))
        names = share.tasks[:: max(len(share.tasks) // USED, 1)][:USED]

        def batch() -> None:
            with mixed.tasks(names):
                model(x)

        first, _ = _timed(batch)
        again, _ = _timed(batch)
    return {
        "open": opened + attached,
        "first_batch": first,
        "batch": again,
        "memory": common.peak_rss() - before,
        "coefficients": mixed.slots.nbytes,
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def report(results: dict[str, Any]) -> str:
    """One line a store."""
    header = ["tasks stored", "MB stored", "manifest, kB", "open, ms", "first batch, ms"]
    header += ["next batch, ms", "memory beyond the model, MB"]
    rows = [
        [f"{p['tasks']:,}", f"{p['stored'] / 1e6:.1f}", f"{p['manifest'] / 1e3:.0f}"]
        + [f"{1e3 * p[n]:.0f}" for n in ("open", "first_batch", "batch")]
        + [f"{p['memory'] / 1e6:.1f}"]
        for p in results["points"]
    ]
    sizes = results["sizes"]
    said = (
        f"{USED} tasks in use; BERT-base, q and v of {sizes['layers']} layers, k = {sizes['k']}, "
        f"p = {sizes['p']}; CPU time of one thread"
    )
    return f"{said}\n\n{common.table(header, rows)}"


if __name__ == "__main__":
    main()
