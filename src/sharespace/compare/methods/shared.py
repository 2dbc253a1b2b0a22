"""Share itself, and its control without training: the projection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch.utils.data import Subset

from sharespace.compare.bench import Own, Workbench
from sharespace.compare.job import Outcome, StoredBytes
from sharespace.compare.methods.own import one_step, own_lora, seconds_of, steps_of
from sharespace.extras import require
from sharespace.learn import (
    Adapted,
    Finetuned,
    Fit,
    TaskMethod,
    TrainingSettings,
    adapt,
    finetune,
    load_task,
)
from sharespace.share import Share
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.fidelity import sizes


def projection(bench: Workbench) -> Outcome:
    """All own LoRAs compressed into one Share model of dimension k; nothing is trained then."""
    own = {name: own_lora(bench, name) for name in bench.tasks}
    share = build(bench, own)
    matrix = one_step({name: _score(bench, share, name) for name in bench.tasks})
    return _outcome(bench, "projection", matrix, own, {}, [], share)


def share_strict(bench: Workbench) -> Outcome:
    """The stream without any old data: the first tasks by their own LoRAs, later ones learned in
    the subspace and merged at its cap; every known task is scored after every step."""
    return _strict(bench).outcome


def share_full(bench: Workbench) -> Outcome:
    """``share_strict``, then every task's coefficients and head trained once more on its data."""
    strict = _strict(bench)
    share = strict.share
    fits, trainable = [], dict(strict.outcome.trainable)
    training = bench.settings.finetune or bench.settings.coefficients
    for name, job in bench.jobs.items():
        chosen = bench.settings.training(training, job)
        done = _finetuned(bench, share, name, chosen)
        require("sharespace.tuner", "train").release(done.model)
        share = done.share
        fits.append(done.fit)
        trainable[name] = max(trainable[name], done.trainable.coefficients)
    scores = {name: _score(bench, share, name) for name in bench.tasks}
    return replace(
        strict.outcome,
        method="share_full",
        matrix=strict.outcome.matrix.with_step("finetune", scores),
        trainable=trainable,
        stored=_stored(bench, share),
        seconds=strict.outcome.seconds + sum(f.seconds for f in fits),
        steps=strict.outcome.steps + sum(f.steps for f in fits),
        uses_old_data=True,
        share=share,
    )


def _finetuned(bench: Workbench, share: Share, name: str, training: TrainingSettings) -> Finetuned:
    """One task; with examples held out, what was there before stays where it is better."""
    job, settings = bench.job(name), bench.settings
    held = round(settings.held_out * len(job.data)) if settings.held_out else 0
    if not held:
        return finetune(bench.fresh(name), share, job.data, training, task=name, setup=job.setup)
    order = torch.randperm(len(job.data), generator=torch.Generator().manual_seed(settings.seed))
    aside, rest = (Subset(job.data, rows.tolist()) for rows in (order[:held], order[held:]))
    setup = replace(job.setup, evaluation=aside)
    model = bench.fresh(name)
    return finetune(model, share, rest, training, task=name, keep="better", setup=setup)


@dataclass(frozen=True, eq=False)
class Strict:
    """A strict stream that was run."""

    outcome: Outcome
    share: Share


def _strict(bench: Workbench) -> Strict:
    """Once a workbench: Share-full goes on from it."""
    if bench.strict is None:
        bench.strict = _run_strict(bench)
    found: Strict = bench.strict
    return found


def _run_strict(bench: Workbench) -> Strict:
    first = bench.tasks[: bench.settings.initial]
    own = {name: own_lora(bench, name) for name in first}
    share = build(bench, own)
    scores = {name: _score(bench, share, name) for name in first}
    matrix = ScoreMatrix(bench.tasks).with_step("+".join(first), scores, learned=first)
    learned: dict[str, Adapted] = {}
    history = [share]
    for name in bench.tasks[len(first) :]:
        found = learn(bench, share, name, phi=bench.settings.phi, start=bench.settings.start)
        require("sharespace.tuner", "train").release(found.model)
        share = share.merge(found.adapter)
        history.append(share)
        # Its model would keep the base's modules alive.
        learned[name] = replace(found, model=None)
        scores = {known: _score(bench, share, known) for known in share.tasks}
        matrix = matrix.with_step(name, scores, learned=[name])
    fits = [found.fit for found in learned.values()]
    outcome = _outcome(bench, "share_strict", matrix, own, learned, fits, share)
    return Strict(replace(outcome, history=tuple(history)), share)


def build(bench: Workbench, own: Mapping[str, Own]) -> Share:
    """A Share model of own LoRAs at the cap k; p = min(k, rank of each task), which is exact for
    the projection. A trained core has a flat spectrum: cutting its rank cost points."""
    adapters = [o.adapter for o in own.values()]
    return Share.from_adapters(adapters, k=bench.settings.k, seed=bench.settings.seed)


def learn(bench: Workbench, share: Share, name: str, *, phi: int, start: str) -> Adapted:
    """A task learned in the subspace; its model is still with it."""
    job, settings = bench.job(name), bench.settings
    method = TaskMethod(
        p=settings.p,
        phi=phi,
        start=start,
        form=settings.form,
        directions=settings.directions,
        heads=job.heads,
        dropout=settings.dropout,
        seed=settings.seed,
    )
    training = settings.training(settings.coefficients, job)
    model = bench.fresh(name)
    found = adapt(model, share, job.data, training, task=name, method=method, setup=job.setup)
    bench.restore_buffers(name, found.model)
    return found


def _score(bench: Workbench, share: Share, name: str) -> float:
    """Of a task as the Share model holds it now."""
    model = load_task(bench.fresh(name), share, name)
    score = bench.score(name, model)
    require("sharespace.tuner", "train").release(model)
    return score


def _outcome(
    bench: Workbench,
    method: str,
    matrix: ScoreMatrix,
    own: Mapping[str, Own],
    learned: Mapping[str, Adapted],
    fits: Iterable[Fit],
    share: Share,
) -> Outcome:
    done = list(fits)
    numbers = {name: o.trainable for name, o in own.items()}
    numbers |= {n: a.trainable.coefficients + a.trainable.temporary for n, a in learned.items()}
    counts = [a.trainable.coefficients for a in learned.values()]
    return Outcome(
        method=method,
        matrix=matrix,
        trainable=numbers,
        heads=bench.head_numbers,
        stored=_stored(bench, share),
        seconds=seconds_of(own) + sum(f.seconds for f in done),
        steps=steps_of(own) + sum(f.steps for f in done),
        paper_count=fmean(counts or [_coefficients(share, name) for name in share.tasks]),
        share=share,
    )


def _coefficients(share: Share, name: str) -> int:
    """Numbers of a task's coefficients, updates stored per task left out."""
    return sum(c.numbers for c in share.task(name).coefficients.values() if c.is_shared)


def _stored(bench: Workbench, share: Share) -> StoredBytes:
    found = sizes(share.model)
    return StoredBytes(basis=found.basis, coefficients=found.coefficients, heads=bench.head_bytes)
