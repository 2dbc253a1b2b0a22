"""The paper's three kinds of stream: data only, adapters only, and some of each.

    python -m experiments kinds images --data DATA --base mobilenet --seeds 0

After ``run``, which leaves the own LoRAs in the cache that the tasks come as; what it calls
share_strict is the stream of data only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import environment

from experiments.harness.experiment import Experiment, opened, parser
from experiments.harness.figures import aligned
from experiments.harness.markdown import section
from experiments.harness.results import read_if_there, write
from sharespace.compare import Workbench, run_share_stream
from sharespace.compare.figures import Panel, draw_steps, picture
from sharespace.errors import OptionError
from sharespace.stream.loop import Arrival
from sharespace.stream.measures import ScoreMatrix, acc, forgetting
from sharespace.subspace.fidelity import sizes

Records = Sequence[Mapping[str, Any]]
"""Results files of this stage."""


def main(kind: type[Experiment], arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(kind, __doc__, seeds=[0])
    choices.add_argument("--orders", nargs="+", help="default: the first")
    options = choices.parse_args(arguments)
    experiment: Experiment = opened(kind, options)
    for seed in options.seeds:
        for order in options.orders or list(experiment.orders)[:1]:
            file = experiment.results("kinds") / f"{order}-{seed}.json"
            if not file.is_file():
                write(file, measure(experiment, order, seed))


def measure(experiment: Experiment, order: str, seed: int) -> dict[str, Any]:
    """Adapters only and hybrid, with data only as ``run`` has it."""
    tasks = experiment.orders[order]
    data = data_only(experiment, order, seed)
    own = experiment.own_loras(tasks, seed)
    jobs = [experiment.job(task, seed) for task in tasks]
    bench = Workbench(jobs, experiment.settings(seed, len(tasks)), own)
    ways = {"adapters only": adapters_only(tasks), "hybrid": hybrid(tasks, bench.settings.initial)}
    return {
        "order": order,
        "base": getattr(experiment.options, "base", ""),
        "tasks": list(tasks),
        "own": {name: own[name].score for name in tasks},
        "kinds": {"data only": data, **{name: stream(bench, way) for name, way in ways.items()}},
        "environment": environment(seed),
    }


def data_only(experiment: Experiment, order: str, seed: int) -> dict[str, Any]:
    """The stream of ``run`` in which all but the first tasks are learned from data.

    Raises:
        OptionError: it was not run.
    """
    file = experiment.results("runs") / f"{order}-{seed}.json"
    methods = (read_if_there(file) or {"methods": {}})["methods"]
    if "share_strict" not in methods:
        raise OptionError(f"order {order!r}", f"share_strict is not in {file}", "Run it first")
    strict, tasks = methods["share_strict"], experiment.orders[order]
    first = tasks[: experiment.numbers.initial]
    later = {name: strict["trainable"][name] for name in tasks[len(first) :]}
    return {
        "matrix": strict["matrix"],
        "came": {**dict.fromkeys(first, "adapter"), **dict.fromkeys(later, "data")},
        "trained": {**dict.fromkeys(first, 0), **later},
        "bytes": strict["stored"]["basis"] + strict["stored"]["coefficients"],
    }


def adapters_only(tasks: Sequence[str]) -> dict[str, Arrival]:
    """Every task comes as its own LoRA; no data is read."""
    return dict.fromkeys(tasks, "adapter")


def hybrid(tasks: Sequence[str], initial: int) -> dict[str, Arrival]:
    """After the first tasks, which come as adapters: data, adapter, data, and so on."""
    return adapters_only(tasks) | dict.fromkeys(tasks[initial::2], "data")


def stream(bench: Workbench, comes: Mapping[str, Arrival]) -> dict[str, Any]:
    """One stream from end to end; every known task is scored after every step.

    Args:
        bench: its first ``settings.initial`` tasks make the first subspace, by their own LoRAs.
        comes: task -> how it comes, for all tasks.

    Returns:
        JSON values: ``matrix`` (percent), ``came``, ``trained`` (task -> numbers trained in the
        stream, 0 for an adapter), ``bytes`` of the Share model.
    """
    ran = run_share_stream(bench, comes)
    size = sizes(ran.share.model)
    return {
        "matrix": ran.matrix.to_record(),
        "came": dict(comes),
        "trained": ran.trained,
        "bytes": size.basis + size.coefficients,
    }


def kinds_table(records: Records) -> str:
    """A line a kind of stream."""
    rows = []
    for record in records:
        own = fmean(record["own"].values())
        place = (record["base"], f"{record['order']}, seed {record['environment']['seed']}")
        rows.append([*place, "own LoRAs, no stream", f"{own:.2f}", "100%", "-", "-", "-"])
        rows += [[*place, *_kind_cells(n, k, own)] for n, k in record["kinds"].items()]
    return section(
        "## Three kinds of stream",
        "The first tasks are the same own LoRAs in all of them. Bytes are those of the Share model "
        "without heads.",
        "base | stream | tasks come as | mean at the end | of own LoRA | forgetting "
        "| trained a task | bytes",
        rows,
    )


def _kind_cells(name: str, kind: Mapping[str, Any], own: float) -> Sequence[str]:
    matrix = ScoreMatrix.from_record(kind["matrix"])
    trained = [number for number in kind["trained"].values() if number]
    numbers = f"{fmean(trained):,.0f}" if trained else "0"
    mean = acc(matrix)
    scores = (f"{mean:.2f}", f"{mean / own:.1%}", f"{forgetting(matrix):.2f}")
    return name, *scores, numbers, f"{kind['bytes']:,}"


def draw_kinds(records: Records, path: Path) -> None:
    """The mean step by step, a panel a stream (its first seed)."""
    first = {(r["base"], r["order"]): r for r in reversed(records)}
    panels = [_panel(record) for _, record in sorted(first.items())]
    picture(path, "Tasks that come as data, as adapters, or mixed", panels)


def _panel(record: Mapping[str, Any]) -> Panel:
    tasks = record["tasks"]
    curves = {
        name: [aligned(ScoreMatrix.from_record(kind["matrix"]), len(tasks))]
        for name, kind in record["kinds"].items()
    }
    levels = {"own LoRA": fmean(record["own"].values())}
    draw = partial(draw_steps, methods=curves, steps=tasks, levels=levels)
    return Panel(f"{record['base']}: {record['order']}", draw)
