"""Rates, steps and sizes of LoRA and core, on examples that no training and no score uses.

    python -m experiments tune pose --data DATA --core 32 16 4e-2 400 --lora 8 1.2e-2 400

Seed 0. The last training examples of some tasks are held out; training sees the rest. A core is
trained in the subspace of the own LoRAs of the other tasks that begin the first order; those that
``run`` has not left are trained. One file, ``results/tune/[BASE].json`` or ``results/tune.json``; a
setting that is in it already is not tried again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.common import environment

from experiments.harness import trials
from experiments.harness.experiment import Experiment, opened, parser
from experiments.harness.markdown import section
from experiments.harness.results import read_if_there, write
from experiments.harness.training import (
    exact,
    holding,
    subspace,
    train_lora,
    trained_core,
    with_lora,
)
from experiments.harness.trials import Trial
from sharespace.compare import TaskJob
from sharespace.tuner import release

HEAD, OWN = "head alone", "own LoRA"


def main(kind: type[Experiment], arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(kind, __doc__, seeds=[0])
    choices.add_argument("--tasks", nargs="+", help="default: the experiment's")
    choices.add_argument("--own", action="store_true", help="judge the own LoRAs of the run, too")
    trials.add_options(choices)
    options = choices.parse_args(arguments)
    experiment: Experiment = opened(kind, options)
    held_out = min(kind.held_out, 8) if options.quick else kind.held_out
    file = experiment.results("tune").with_suffix(".json")
    known = (read_if_there(file) or {}).get("trials", {})
    about = {"environment": environment(0), "held_out": held_out}
    wanted: list[Trial | str] = [HEAD, *([OWN] if options.own else [])]
    wanted += trials.asked_for(options) or experiment.trials
    for task in options.tasks or experiment.tuned:
        job = experiment.job(task, 0, held_out)
        for trial in wanted:
            label = trial if isinstance(trial, str) else trial.label
            if task not in known.setdefault(label, {}):
                known[label][task] = attempt(experiment, job, trial)
                print(task, label, known[label][task], flush=True)
                write(file, {**about, "trials": known})


def attempt(experiment: Experiment, job: TaskJob, trial: Trial | str) -> dict[str, float]:
    """What is measured of a task's model, trained as the trial says."""
    order = next(iter(experiment.orders.values()))
    settings = experiment.settings(0, len(order))
    if isinstance(trial, str):
        own = experiment.own_loras([job.name], 0)[job.name] if trial == OWN else None
        share = exact(own.adapter) if own else None
        with holding(job.model(), share, job.name) as model:
            return {**experiment.measure(job, model), "trained": own.trainable if own else 0}
    settings = trial.applied(settings)
    if trial.p is None:
        model = with_lora(job, settings)
        trained = train_lora(job, settings, model)
        measured = experiment.measure(job, model.eval())
        release(model)
    else:
        first = [task for task in order if task != job.name][: settings.initial]
        earlier = list(experiment.own_loras(first, 0).values())
        share = subspace(job, experiment.settings(0, len(order)), earlier)
        with trained_core(job, settings, share, job.model()) as (model, trained):
            measured = experiment.measure(job, model)
    return {**measured, "trained": trained}


def tune_table(record: Mapping[str, Any], base: str = "") -> str:
    """The score of every trial, the best first; those that lack a task in the file's order."""
    tried = record["trials"]
    tasks = list(dict.fromkeys(task for scores in tried.values() for task in scores))
    rows = []
    scores = {
        label: {t: m["score"] for t, m in measured.items()} for label, measured in tried.items()
    }
    if all(len(by_task) == len(tasks) for by_task in scores.values()):
        scores = dict(sorted(scores.items(), key=lambda item: -fmean(item[1].values())))
    for label, by_task in scores.items():
        cells = [f"{by_task[task]:.1f}" if task in by_task else "-" for task in tasks]
        mean = f"{fmean(by_task.values()):.1f}" if len(by_task) == len(tasks) else "-"
        rows.append([label, *cells, mean])
    return section(
        f"## Settings that were tried{f' ({base})' if base else ''}",
        f"Percent of {record['held_out']} held-out training examples a task; seed 0.",
        f"setting | {' | '.join(tasks)} | mean",
        rows,
        "lr",
    )
