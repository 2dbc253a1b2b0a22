"""What every comparison is measured by: the head alone, and a LoRA of each task's own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sharespace.compare.bench import Own, Workbench, in_heads
from sharespace.compare.job import Outcome, StoredBytes, TaskJob
from sharespace.compare.trainers import add_lora, count, read_adapter
from sharespace.extras import require
from sharespace.learn import Fit, TrainingSettings, fit
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.adapter import Adapter, LayerUpdate


def head_only(bench: Workbench) -> Outcome:
    """Every task's head on the frozen base model."""
    scores, fits = {}, []
    for name, job in bench.jobs.items():
        model = bench.fresh(name)
        for head in job.heads:
            model.get_submodule(head).requires_grad_(True)
        if job.heads:
            fits.append(train(bench, job, model, bench.settings.head))
        scores[name] = bench.score(name, model)
    return Outcome(
        method="head_only",
        matrix=one_step(scores),
        trainable=dict.fromkeys(scores, 0),
        heads=bench.head_numbers,
        stored=StoredBytes(heads=bench.head_bytes),
        seconds=sum(f.seconds for f in fits),
        steps=sum(f.steps for f in fits),
    )


def per_task_lora(bench: Workbench) -> Outcome:
    """Every task's own LoRA and head, by PEFT. The adapters are kept for other methods."""
    own = {name: own_lora(bench, name) for name in bench.tasks}
    return Outcome(
        method="per_task_lora",
        matrix=one_step({name: o.score for name, o in own.items()}),
        trainable={name: o.trainable for name, o in own.items()},
        heads=bench.head_numbers,
        stored=StoredBytes(adapters=adapter_bytes(own), heads=bench.head_bytes),
        seconds=seconds_of(own),
        steps=steps_of(own),
        adapters={name: o.adapter for name, o in own.items()},
    )


def own_lora(bench: Workbench, name: str) -> Own:
    """A task's own LoRA: trained at the first call, or given to the workbench."""
    if name not in bench.own:
        bench.own[name] = _train_own(bench, bench.job(name))
    return bench.own[name]


def _train_own(bench: Workbench, job: TaskJob) -> Own:
    wrapped = add_lora(bench.fresh(job.name), bench.settings, job.heads)
    trainable = count(wrapped, job.heads)
    try:
        result = train(bench, job, wrapped, bench.settings.lora)
        score = bench.score(job.name, wrapped)
        return Own(read_adapter(wrapped, job, bench.settings), score, result, trainable)
    finally:
        require("sharespace.tuner", "train").release(wrapped)


def train(bench: Workbench, job: TaskJob, model: nn.Module, training: TrainingSettings) -> Fit:
    """Train a task's model on its data, in place; running statistics do not stay."""
    result = fit(model, job.data, bench.settings.training(training, job), job.setup)
    bench.restore_buffers(job.name, model)
    return result


def score_updates(
    bench: Workbench, name: str, updates: Mapping[str, LayerUpdate], adapter: Adapter
) -> float:
    """Percent of a task with these updates in the base weights, and the adapter's own heads."""
    model = bench.fresh(name)
    heads = {key.removeprefix("base_model.model."): v for key, v in adapter.kept.items()}
    known = dict(model.named_parameters())
    mine = {k: v for k, v in heads.items() if k in known and in_heads(k, bench.job(name).heads)}
    with require("sharespace.tuner", "train").applied(model, updates, mine) as adapted:
        return bench.score(name, adapted)


def one_step(scores: Mapping[str, float]) -> ScoreMatrix:
    """The R matrix of a method that learns all tasks at once, or each alone."""
    return ScoreMatrix(tuple(scores), ("all",), (tuple(scores.values()),))


def adapter_bytes(own: Mapping[str, Own]) -> int:
    """Of the factors of all adapters, as they are."""
    return sum(
        (o.adapter.layer(m).up.nbytes + o.adapter.layer(m).down.nbytes)
        for o in own.values()
        for m in o.adapter.shapes
    )


def seconds_of(own: Mapping[str, Own]) -> float:
    """Of training; adapters that were given count nothing."""
    return sum(o.fit.seconds for o in own.values() if o.fit)


def steps_of(own: Mapping[str, Own]) -> int:
    """Of training, likewise."""
    return sum(o.fit.steps for o in own.values() if o.fit)
