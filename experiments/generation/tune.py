"""Sizes, rates and steps of core and LoRA, on examples that neither training nor scores use.

    python -m experiments.generation.tune --data DATA/text --core 12 6 1.2e-1 150 --lora 8 4e-3 150

Seed 0, after ``learn``: the subspace is that of the own LoRAs of the tasks that begin the stream.
The last 64 training examples of each task are held out. One file, ``tune.json``; what is in it
already is not tried again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from benchmarks.common import environment
from experiments.common import own as own_files
from experiments.common.runs import write
from experiments.common.trials import Trial, add_options, trials
from experiments.generation import script
from experiments.generation.jobs import make_jobs
from experiments.generation.learn import own_folder
from experiments.generation.script import Ready
from experiments.generation.settings import INITIAL, LEARN, LEARN_QUICK, settings

from sharespace import Share
from sharespace.compare import ComparisonSettings, Workbench
from sharespace.compare.methods.share_stream import learn_in_subspace
from sharespace.tuner import release

HELD_OUT = 64
TASKS = ("banking77-1", "clinc150-1", "rule-rotate")


def with_trial(numbers: ComparisonSettings, trial: Trial) -> ComparisonSettings:
    """The experiment's numbers with those of the trial."""
    training = replace(numbers.lora, learning_rate=trial.rate, max_steps=trial.steps)
    if trial.p is None:
        scale = (numbers.lora_alpha or 1) / numbers.rank
        return replace(numbers, lora=training, rank=trial.rank, lora_alpha=scale * trial.rank)
    return replace(
        numbers, coefficients=training, method=replace(numbers.method, p=trial.p, phi=trial.phi)
    )


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = script.parser(__doc__, "")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    add_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    ready = script.begin(chosen)
    numbers = settings(ready.size, 0)
    first = (LEARN_QUICK if chosen.quick else LEARN)[:INITIAL]
    own = own_files.load(own_folder(ready, 0, chosen.cache))
    share = Share.from_adapters([own[name].adapter for name in first], k=numbers.k, seed=0)
    file = chosen.out / "tune.json"
    known = json.loads(file.read_text())["trials"] if file.is_file() else {}
    for trial in trials(chosen):
        mine = known.setdefault(trial.label, {})
        for task in (t for t in chosen.tasks if t not in mine):
            mine[task] = percent(ready, share, task, trial, 4 if chosen.quick else HELD_OUT)
        print(trial.label, mine, f"mean {fmean(mine.values()):.1f}", flush=True)
        write(file, {"environment": environment(0), "held_out": HELD_OUT, "trials": known})


def percent(ready: Ready, share: Share, task: str, trial: Trial, held_out: int) -> float:
    """Of the held-out examples."""
    numbers = with_trial(settings(ready.size, 0), trial)
    bench = Workbench(make_jobs(ready, [task], held_out=held_out), numbers)
    if trial.p is None:
        return bench.own_lora(task).score
    found = learn_in_subspace(bench, share, task)
    score = bench.score(task, found.model)
    release(found.model)
    return score


def table(record: Mapping[str, Any]) -> str:
    """All trials, the best first."""
    found = record["trials"]
    names = list(next(iter(found.values())))
    lines = [
        "## Settings that were tried",
        "",
        f"Percent of {record['held_out']} held-out training examples a task; seed 0.",
        "",
        f"| setting | {' | '.join(names)} | mean |",
        "|---|" + "--:|" * (len(names) + 1),
    ]
    for label, scores in sorted(found.items(), key=lambda item: -fmean(item[1].values())):
        cells = [f"{scores[n]:.1f}" for n in names]
        lines.append(f"| {label} | {' | '.join(cells)} | {fmean(scores.values()):.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
