"""The rate that chooses itself beside five rates that are given, on test examples.

    python -m experiments rates text_stream --data DATA --tasks qnli amazon5 --seeds 0
    python -m experiments rates text_stream --data DATA --examples 64 --tasks qnli

A core is trained in the subspace of the own LoRAs (of seed 0) of the other tasks that begin the
first order; those that ``run`` has not left are trained. One file,
``results/rates/[BASE].json`` or ``results/rates.json``; what is in it already is not trained again.
With ``--examples`` so many of the training examples are used, head included, and the score is that
on all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any, Literal

from benchmarks.common import environment

from experiments.harness.experiment import Experiment, opened, parser
from experiments.harness.markdown import section
from experiments.harness.results import read_if_there, write
from experiments.harness.training import subspace
from sharespace.compare import TaskJob
from sharespace.learn import Fit, adapt
from sharespace.tuner import release

RATES = (7.5e-3, 1.5e-2, 3e-2, 6e-2, 1.2e-1)


def main(kind: type[Experiment], arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(kind, __doc__, seeds=[0])
    choices.add_argument("--tasks", nargs="+", help="default: those that tune tries")
    choices.add_argument("--rates", type=float, nargs="*", default=list(RATES))
    choices.add_argument("--examples", type=int, nargs="*", default=[], help="few examples")
    options = choices.parse_args(arguments)
    experiment: Experiment = opened(kind, options)
    file = experiment.results("rates").with_suffix(".json")
    known = (read_if_there(file) or {}).get("tasks", {})
    for seed in options.seeds:
        for task in options.tasks or experiment.tuned:
            for examples in options.examples or [0]:
                name = f"{task}, {examples} examples" if examples else task
                scores = known.setdefault(name, {}).setdefault(str(seed), {})
                for rate in [*options.rates, "auto"]:
                    if str(rate) not in scores:
                        job = few(experiment, task, seed, examples)
                        scores[str(rate)] = attempt(experiment, job, seed, rate)
                        shown = {k: v for k, v in scores[str(rate)].items() if k != "choice"}
                        print(name, seed, rate, shown, flush=True)
                        write(file, {"environment": environment(0), "tasks": known})
    print(rates_table({"tasks": known}))


def few(experiment: Experiment, task: str, seed: int, examples: int) -> TaskJob:
    """A task with so many training examples; 0: with all."""
    if not examples:
        return experiment.job(task, seed)
    total = len(experiment.job(task, seed).data)
    return experiment.job(task, seed, held_out=total - examples)


def attempt(
    experiment: Experiment, job: TaskJob, seed: int, rate: float | Literal["auto"]
) -> dict[str, Any]:
    """The score at a rate, what was chosen, and what choosing cost as a part of the training."""
    order = next(iter(experiment.orders.values()))
    settings = experiment.settings(0, len(order))
    first = [task for task in order if task != job.name][: settings.initial]
    share = subspace(job, settings, list(experiment.own_loras(first, 0).values()))
    method = replace(settings.method, heads=job.heads, seed=seed)
    training = replace(settings.coefficients, seed=seed, learning_rate=rate)
    learned = adapt(
        job.model(), share, job.data, training, task=job.name, method=method, setup=job.setup
    )
    measured = experiment.measure(job, learned.model.eval())
    release(learned.model)
    return {**measured, **chosen(learned.fit, training.max_steps)}


def chosen(fitted: Fit, steps: int) -> dict[str, Any]:
    """What was chosen, and the steps of all trials as a part of the training's steps."""
    if fitted.choice is None:
        return {"loss": fitted.loss}
    choice = fitted.choice
    return {"choice": asdict(choice), "rate": choice.learning_rate, "cost": choice.cost / steps}


def rates_table(record: Mapping[str, Any], base: str = "") -> str:
    """The mean score over the seeds at each rate, and how far the chosen one is from the best."""
    rows, behind = [], []
    for task, seeds in record["tasks"].items():
        complete = [s for s in seeds.values() if {*map(str, RATES), "auto"} <= s.keys()]
        if complete:
            means = [fmean(s[str(rate)]["score"] for s in complete) for rate in RATES]
            auto = fmean(s["auto"]["score"] for s in complete)
            behind.append(auto - max(means))
            rates = ", ".join(f"{s['auto']['rate']:g}" for s in complete)
            cost = fmean(s["auto"]["cost"] for s in complete)
            cells = [f"{value:.1f}" for value in (*means, auto)]
            rows.append(
                [task, str(len(complete)), *cells, f"{behind[-1]:+.1f}", rates, f"{cost:.0%}"]
            )
    if not rows:
        return ""
    rows.append(["mean", *[""] * (len(RATES) + 2), f"{fmean(behind):+.1f}", "", ""])
    return section(
        f"## The rate that chooses itself{f' ({base})' if base else ''}",
        "Percent of the test examples, mean over the seeds; the best of five rates is the best by "
        "these same examples, so it is flattered.",
        f"task | seeds | {' | '.join(f'{r:g}' for r in RATES)} | auto | auto - best | chosen | "
        "cost of choosing",
        rows,
        "lr",
    )
