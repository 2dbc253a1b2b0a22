"""Share itself, on the stream loop, and its control without training: the projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import torch
from torch.utils.data import Subset

from sharespace.compare.bench import OwnLora, Workbench
from sharespace.compare.compared import compared_method
from sharespace.compare.job import Outcome, StoredBytes
from sharespace.learn import Adapted, Finetuned, Fit, TaskMethod, adapt, finetune, load_task
from sharespace.share import Share
from sharespace.stream.loop import Arrival, StreamLoop
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.fidelity import sizes
from sharespace.tuner import release

_SHARE = "https://arxiv.org/abs/2602.06043"


@compared_method("projection", paper=_SHARE)
def projection(bench: Workbench) -> Outcome:
    """All own LoRAs compressed into one Share model of dimension k; nothing is trained then."""
    own = bench.own_loras()
    share = build_share(bench, own)
    outcome = bench.outcome(
        ScoreMatrix.of_one_step({name: score_in_share(bench, share, name) for name in own}),
        {name: lora.trainable for name, lora in own.items()},
        [lora.fit for lora in own.values()],
        _stored(share),
    )
    coefficients = fmean(_coefficients(share, name) for name in share.tasks)
    return replace(outcome, share=share, paper_count=coefficients)


@compared_method("share_strict", paper=_SHARE, short="share", trains="coefficients")
def share_strict(bench: Workbench) -> Outcome:
    """The stream without any old data: the first tasks come by their own LoRAs, later ones are
    learned in the subspace and merged at its cap."""
    if bench.strict is None:
        bench.strict = _strict(bench)
    return bench.strict


@compared_method(
    "share_full",
    paper=_SHARE,
    uses_old_data=True,
    short="share-full",
    trains="coefficients",
)
def share_full(bench: Workbench) -> Outcome:
    """``share_strict``, then every task's coefficients and head trained once more on its data."""
    strict = share_strict(bench)
    share, trainable, fits = strict.history[-1], dict(strict.trainable), []
    for name in bench.tasks:
        tuned = _finetune(bench, share, name)
        share = tuned.share
        fits.append(tuned.fit)
        trainable[name] = max(trainable[name], tuned.trainable.coefficients)
    scores = {name: score_in_share(bench, share, name) for name in bench.tasks}
    matrix = strict.matrix.with_step("finetune", scores)
    full = bench.outcome(matrix, trainable, fits, _stored(share))
    return replace(
        full,
        seconds=strict.seconds + full.seconds,
        steps=strict.steps + full.steps,
        paper_count=strict.paper_count,
        share=share,
        history=strict.history,
    )


@dataclass(frozen=True, eq=False)
class ShareStream:
    """A stream of a workbench's tasks that went through a Share model."""

    matrix: ScoreMatrix
    """Percent of every known task after every step."""
    history: tuple[Share, ...]
    """The Share model after each step."""
    own: Mapping[str, OwnLora]
    """Own LoRAs of the tasks that came as adapters."""
    learned: Mapping[str, Adapted]
    """Tasks that were learned in the subspace, without their models."""
    tuned: Mapping[str, Finetuned]
    """Tasks that were trained further after their merge, without their models."""

    @property
    def share(self) -> Share:
        """The Share model at the end."""
        return self.history[-1]

    @property
    def trained(self) -> dict[str, int]:
        """Task -> numbers that were trained for it in the stream, heads excluded; 0: none."""
        trained = dict.fromkeys(self.matrix.tasks, 0)
        trained |= {name: t.trainable.coefficients for name, t in self.tuned.items()}
        for name, adapted in self.learned.items():
            trained[name] = adapted.trainable.coefficients + adapted.trainable.temporary
        return trained


def run_share_stream(bench: Workbench, comes: Mapping[str, Arrival]) -> ShareStream:
    """One stream from end to end, on the stream loop; every known task is scored after every step.

    Args:
        bench: the tasks. Its first ``settings.initial`` tasks make the first subspace, by their own
            LoRAs.
        comes: later task -> how it comes: as its own LoRA, as data to learn from in the subspace,
            or as its own LoRA that is trained further after the merge. Own LoRAs are trained where
            they are missing.
    """
    matrix, history = ScoreMatrix(bench.tasks), []
    own: dict[str, OwnLora] = {}
    learned: dict[str, Adapted] = {}
    tuned: dict[str, Finetuned] = {}
    initial = bench.tasks[: bench.settings.initial]

    def learn(share: Share, name: str) -> Adapter:
        if comes[name] != "data":
            own[name] = bench.own_lora(name)
            return own[name].adapter
        adapted = learn_in_subspace(bench, share, name)
        release(adapted.model)
        # The model would keep the base's modules alive.
        learned[name] = replace(adapted, model=None)
        return adapted.adapter

    def refine(share: Share, name: str) -> Share:
        if name in initial or comes[name] != "both":
            return share
        tuned[name] = _finetune(bench, share, name)
        return tuned[name].share

    def build(names: Sequence[str]) -> Share:
        own.update({name: bench.own_lora(name) for name in names})
        return build_share(bench, own)

    loop = StreamLoop(build, learn, lambda share, n: score_in_share(bench, share, n), refine=refine)
    for step in loop.run(bench.tasks, len(initial)):
        matrix = matrix.with_step(step.name, step.scores, learned=step.tasks)
        history.append(step.share)
    return ShareStream(matrix, tuple(history), own, learned, tuned)


def build_share(bench: Workbench, own: Mapping[str, OwnLora]) -> Share:
    """A Share model of own LoRAs at the cap k, or as ``ComparisonSettings.build`` makes it.

    p = min(k, rank of each task), which is exact for the projection. A trained core has a flat
    spectrum: cutting its rank cost points.
    """
    adapters = [lora.adapter for lora in own.values()]
    if bench.settings.build is not None:
        return bench.settings.build(adapters)
    return Share.from_adapters(adapters, k=bench.settings.k, seed=bench.settings.seed)


def learn_in_subspace(
    bench: Workbench, share: Share, name: str, method: TaskMethod | None = None
) -> Adapted:
    """A task learned in the subspace; its model is still with it.

    Args:
        bench: the tasks and numbers.
        share: has the subspace; does not change.
        name: of the task.
        method: what it trains; None: that of the settings.
    """
    job, settings = bench.job(name), bench.settings
    method = replace(method or settings.method, heads=job.heads, seed=settings.seed)
    training = settings.training(settings.coefficients, job)
    model = bench.fresh(name)
    adapted = adapt(model, share, job.data, training, task=name, method=method, setup=job.setup)
    bench.restore_buffers(name, adapted.model)
    return adapted


def score_in_share(bench: Workbench, share: Share, name: str) -> float:
    """Percent of a task as the Share model holds it now."""
    model = load_task(bench.fresh(name), share, name)
    score = bench.score(name, model)
    release(model)
    return score


def _strict(bench: Workbench) -> Outcome:
    stream = run_share_stream(bench, dict.fromkeys(bench.tasks, "data"))
    counts = [adapted.trainable.coefficients for adapted in stream.learned.values()]
    fits: list[Fit | None] = [lora.fit for lora in stream.own.values()]
    fits += [adapted.fit for adapted in stream.learned.values()]
    outcome = bench.outcome(
        stream.matrix,
        stream.trained | {name: lora.trainable for name, lora in stream.own.items()},
        fits,
        _stored(stream.share),
    )
    return replace(
        outcome,
        # Where every task came as an adapter, nothing was trained: what is stored counts.
        paper_count=fmean(counts or [_coefficients(stream.share, n) for n in bench.tasks]),
        share=stream.share,
        history=stream.history,
    )


def _finetune(bench: Workbench, share: Share, name: str) -> Finetuned:
    """A task's coefficients and head trained further; its model is released.

    With examples held out, what was there before stays where it is better on them.
    """
    job, settings = bench.job(name), bench.settings
    training = settings.training(settings.finetune or settings.coefficients, job)
    model, data, setup = bench.fresh(name), job.data, job.setup
    keep: Literal["last", "better"] = "last"
    if held := round(settings.held_out * len(job.data)):
        generator = torch.Generator().manual_seed(settings.seed)
        order = torch.randperm(len(job.data), generator=generator)
        aside, data = (Subset(job.data, rows.tolist()) for rows in (order[:held], order[held:]))
        setup, keep = replace(setup, evaluation=aside), "better"
    tuned = finetune(model, share, data, training, task=name, keep=keep, setup=setup)
    release(tuned.model)
    return replace(tuned, model=None)


def _coefficients(share: Share, name: str) -> int:
    """Numbers of a task's coefficients, layers stored per task left out."""
    return sum(c.numbers for c in share.task(name).coefficients.values() if c.is_shared)


def _stored(share: Share) -> StoredBytes:
    used = sizes(share.model)
    return StoredBytes(basis=used.basis, coefficients=used.coefficients)
