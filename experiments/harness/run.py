"""All methods on every order and seed of an experiment.

    python -m experiments run images --data DATA --base mobilenet --seeds 0 1 2

One results file a seed and order, ``results/runs/[BASE/]ORDER-SEED.json``; a method that is in it
already is not run again, so that a run goes on where it was cut off. ``--into`` puts results of
other numbers beside them: ``slower`` is read as other learning rates of the methods that train one
LoRA, each folder in ``sizes`` as another size of the core or rank of LoRA.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import environment

from experiments.harness import numbers
from experiments.harness.experiment import Experiment, opened, parser
from experiments.harness.methods import METHODS, ORDER_FREE
from experiments.harness.results import plain, read_if_there, write
from sharespace.compare import ComparisonSettings, Outcome, TaskJob, Workbench, method
from sharespace.compare.own_folder import load_own, save_own
from sharespace.subspace.similarity import adapters_cka, settling


def main(kind: type[Experiment], arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(kind, __doc__)
    choices.add_argument("--orders", nargs="+", help="default: all")
    choices.add_argument("--methods", nargs="+", choices=METHODS, default=list(kind.methods))
    choices.add_argument("--into", default="runs", help="folder of the results, beside `runs`")
    numbers.add_options(choices)
    options = choices.parse_args(arguments)
    experiment: Experiment = opened(kind, options)
    orders = options.orders or list(experiment.orders)
    if not set(orders) <= set(experiment.orders):
        choices.error(f"--orders: {', '.join(experiment.orders)}")
    for seed in options.seeds:
        for order in orders:
            run_methods(Stream(experiment, order, seed), options.methods)


class Stream:
    """One order of an experiment's tasks with one seed, and its results file."""

    def __init__(self, experiment: Experiment, order: str, seed: int) -> None:
        self.experiment, self.order, self.seed = experiment, order, seed
        self.tasks = experiment.orders[order]
        self.settings: ComparisonSettings = experiment.settings(seed, len(self.tasks))
        self.own = experiment.own_folder(seed)
        self.file = experiment.results(experiment.options.into) / f"{order}-{seed}.json"

    @property
    def store(self) -> Path | None:
        """Where the Share model of ``share_strict`` is kept; None: nowhere."""
        if numbers.is_varied(self.experiment.options):
            return None
        return self.experiment.share_folder(self.order, self.seed)

    @property
    def shows_subspace(self) -> bool:
        """Its file is the one that the figure of the subspace is drawn from."""
        first = next(iter(self.experiment.orders))
        return self.experiment.subspace and (self.order, self.seed) == (first, 0)

    def jobs(self) -> list[TaskJob]:
        """All tasks, in order."""
        return [self.experiment.job(task, self.seed) for task in self.tasks]

    def begin(self) -> dict[str, Any]:
        """What is in the file already, or a record without methods."""
        return read_if_there(self.file) or {
            "order": self.order,
            "tasks": list(self.tasks),
            "base": self.experiment.base,
            "size": self.experiment.size_record,
            "settings": json.loads(json.dumps(self.settings.to_record(), default=str)),
            "environment": environment(self.seed),
            "methods": {},
        }


def run_methods(stream: Stream, methods: Sequence[str]) -> None:
    """Run what the file lacks; it is written after each method.

    Args:
        stream: what the file is about; its jobs are not made where nothing is missing.
        methods: names of ``sharespace.compare``.
    """
    results = stream.begin()
    if _take_over(results, stream):
        write(stream.file, results)
    missing = [name for name in methods if name not in results["methods"]]
    if not missing:
        return
    stream.experiment.begin(stream.order, stream.seed)
    bench = Workbench(stream.jobs(), stream.settings, load_own(stream.own))
    for name in missing:
        began = time.perf_counter()
        stream.experiment.begin_method(stream.order, stream.seed, name)
        outcome = method(name)(bench)
        save_own(stream.own, bench.own)
        if name == "share_strict" and stream.store and outcome.share is not None:
            shutil.rmtree(stream.store, ignore_errors=True)
            outcome.share.save(stream.store)
        results["methods"][name] = record(outcome, stream.shows_subspace)
        write(stream.file, results)
        mean = sum(outcome.matrix.last.values()) / len(stream.tasks)
        seconds = time.perf_counter() - began
        said = f"{stream.order} seed {stream.seed} {name}: mean {mean:.2f}, {seconds:.0f} s"
        print(said, flush=True)


def _take_over(results: dict[str, Any], stream: Stream) -> bool:
    """Methods that do not depend on the order, from another order of the same tasks and seed.

    Returns:
        Whether there was something new.
    """
    before = len(results["methods"])
    for file in sorted(stream.file.parent.glob(f"*-{stream.seed}.json")):
        content = json.loads(file.read_text())
        if sorted(content["tasks"]) == sorted(stream.tasks):
            for name in set(ORDER_FREE) & set(content["methods"]):
                results["methods"].setdefault(name, content["methods"][name])
    return len(results["methods"]) > before


def record(outcome: Outcome, with_subspace: bool) -> dict[str, Any]:
    """An outcome as JSON, with what the figure of the subspace needs where it is wanted."""
    result = outcome.to_record()
    if with_subspace and outcome.method == "share_strict":
        changes = settling([share.model for share in outcome.history])
        result["settling"] = [{"left": c.left_angles, "right": c.right_angles} for c in changes]
    if with_subspace and outcome.method == "per_task_lora":
        cka = adapters_cka(list(outcome.adapters.values()))
        result["cka"] = {"names": list(cka.names), "values": plain(cka.values)}
    return result
