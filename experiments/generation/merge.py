"""Adapters of many tasks, merged batch after batch: what is left of each, by method and k.

    python -m experiments merge generation --data DATA/text --seeds 0 1 2

One results file a start of the adapters and a seed (the order in which they come); what is in it
already is not run again, so that a run goes on where it was cut off. The base model and the
adapters are trained at the first call and kept in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import environment

from experiments.generation import merging
from experiments.generation.adapters import adapters_folder, load_adapters
from experiments.generation.experiment import Generation
from experiments.generation.merging import Method, Record, Stream
from experiments.generation.settings import RANK, Start
from experiments.harness.experiment import opened, parser
from experiments.harness.results import read_if_there, write

METHODS = ("original", "base", "mean_adapter", "share", "joint", "own_svd", "random_basis")
ONCE = ("original", "base", "mean_adapter", "own_svd", "random_basis")
"""Run with the first seed only: they know no order (``own_svd`` has the bytes of ``joint``)."""


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(Generation, __doc__)
    choices.add_argument("--starts", nargs="+", choices=("own", "same"), default=["own", "same"])
    choices.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    choices.add_argument("--only", default="", help="beginning of the tasks' names, as 'rule-'")
    choices.add_argument("--k", type=int, nargs="+", dest="caps", help="other caps")
    choices.add_argument("--into", default="merge", help="folder of the results")
    options = choices.parse_args(arguments)
    experiment: Generation = opened(Generation, options)
    for start in options.starts:
        for seed in options.seeds:
            methods = [m for m in options.methods if seed == options.seeds[0] or m not in ONCE]
            stream = opened_stream(experiment, start, seed, options.only)
            file = experiment.results(options.into) / f"{start}-{seed}.json"
            results = Results(file, read_if_there(file) or begin(stream, experiment, start, seed))
            run(stream, results, methods, options.caps or experiment.size.dimensions, seed)


def opened_stream(experiment: Generation, start: Start, seed: int, only: str = "") -> Stream:
    """The adapters of some tasks in the batches of a seed.

    Args:
        experiment: base model and tasks.
        start: how the adapters begin.
        seed: of the order in which they come.
        only: beginning of the tasks' names.
    """
    tasks = list(experiment.tasks.values())
    size, cache = experiment.size, experiment.cache
    folder = adapters_folder(experiment.model, tasks, size, start, cache)
    wanted = [task for task in tasks if task.name.startswith(only)]
    adapters = load_adapters(folder, experiment.model, wanted, size, start)
    tests = {name: experiment.tests[name] for name in adapters}
    batches = merging.in_batches(list(adapters), size.batches, seed)
    return Stream(experiment.model, adapters, tests, batches)


class Results:
    """One results file, which is written after each method."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self.file, self.content = file, content

    def once(self, name: str, compute: Callable[[], Record]) -> None:
        """A method, unless it is there already."""
        if name in self.content["methods"]:
            return
        began = time.perf_counter()
        scores = self.content["methods"][name] = compute()
        write(self.file, self.content)
        percent = [s["percent"] for s in scores["final"].values()]
        mean, seconds = sum(percent) / len(percent), time.perf_counter() - began
        print(f"{self.file.stem} {name}: {mean:.1f}, {seconds:.0f} s", flush=True)


def begin(stream: Stream, experiment: Generation, start: Start, seed: int) -> dict[str, Any]:
    """A record without methods."""
    return {
        "base": experiment.base,
        "start": start,
        "rank": RANK,
        "width": experiment.model.model.config.hidden_size,
        "modules": len(next(iter(stream.adapters.values())).shapes),
        "batches": stream.batches,
        "kinds": {name: experiment.tasks[name].kind for name in stream.adapters},
        "size": experiment.size_record,
        "environment": environment(seed),
        "methods": {},
        "baselines": {},
    }


PLAIN: Mapping[str, Callable[[Stream], Record]] = {
    "original": merging.originals,
    "base": merging.base_alone,
    "mean_adapter": merging.mean_adapter,
}
"""Methods without k."""


def run(
    stream: Stream, results: Results, methods: Sequence[str], caps: Sequence[int], seed: int
) -> None:
    """What one file lacks."""
    for method in (m for m in methods if m in PLAIN):
        results.once(method, partial(_final, PLAIN[method], stream))
    for k in caps:
        if "share" in methods:
            results.once(f"share {k}", partial(_merged, stream, "share", k))
        wanted = [method for method in ("joint", "own_svd") if method in methods]
        if any(f"{method} {k}" not in results.content["methods"] for method in wanted):
            _joint(results, stream, k, "own_svd" in wanted)
        if "random_basis" in methods:
            compute = partial(_final, merging.random_basis, stream, k, seed)
            results.once(f"random_basis {k}", compute)


def _final(compute: Callable[..., Record], *arguments: Any) -> Record:
    """Scores at the end, the only ones of methods without steps."""
    return {"final": compute(*arguments)}


def _merged(stream: Stream, method: Method, k: int) -> Record:
    return merging.merged(stream, method, k)[0]


def _joint(results: Results, stream: Stream, k: int, with_svds: bool) -> None:
    """Own SVDs have the bytes of the joint model, and its shared fraction is against them."""
    scores, share = merging.merged(stream, "joint", k)
    results.once(f"joint {k}", lambda: scores)
    if with_svds:
        baselines = share.baselines(list(stream.adapters.values()))
        results.content["baselines"][str(k)] = {"shared": baselines.shared}
        results.once(f"own_svd {k}", partial(_final, merging.own_svd, stream, share))
