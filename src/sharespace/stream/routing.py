"""The router of a stream: made of what its steps kept, and scored at the end.

A task's inputs as a router sees them: no labels, no answers, features of the base model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import DataLoader

from sharespace.errors import RecipeError
from sharespace.extras import require
from sharespace.learn import load_task
from sharespace.route import Examples, Router, Routing, Statistics, TaskScores, evaluate, features
from sharespace.share import Share
from sharespace.stream.folder import RouterFiles
from sharespace.stream.learning import Workshop
from sharespace.stream.metrics import IGNORED
from sharespace.stream.models import device, num_labels
from sharespace.stream.recipe import TaskData, TaskSpec
from sharespace.stream.records import Event, RoutedTask, RouterResult, Step, present, reason
from sharespace.stream.scoring import classes

FALLBACK_RATE = 0.05
"""Part of the tasks' own inputs that the margin gives up, so that strangers go to the base model;
measured on the held-out examples."""

_CLASSES = ("text-classification", "image-classification")

Row = tuple[str, int]
"""(task, number of the row in its evaluation data)."""

MOST = 4000
"""Training examples of a task that are looked at, chosen with its seed."""

HELD_OUT = 200
"""Of these a tenth is held out for the margin, this many at most."""


def finish(
    shop: Workshop,
    share: Share,
    steps: Sequence[Step],
    evaluation: Callable[[TaskSpec, tuple[str, ...]], TaskData],
) -> RouterResult:
    """The router of the last step: made, saved and scored, or as it was recorded.

    Args:
        evaluation: a task's data, by its spec and names of classes.
    """
    files, last = shop.folder.router, steps[-1]
    record = files.record(last.content)
    if record is not None:
        return RouterResult.from_record(record, files.router)
    router = router_of(files, steps)
    labels = {one.task: one.labels for step in steps for one in step.learned}
    data, notices = _routable(shop, router, labels, evaluation)
    scores = score_router(shop, share, router, labels, data)
    router.save(files.router)
    known = tuple(router.tasks)
    found = RouterResult(
        path=files.router,
        tasks=known,
        bytes=files.router.stat().st_size,
        margin=router.margin,
        fallback_rate=FALLBACK_RATE,
        scores=scores,
        notices=(*notices, *_too_few(router)),
    )
    files.keep_record(found.to_record(), last.content)
    text = f"{len(known)} tasks, routing accuracy {_told(found.means['routing'])}"
    shop.observe(Event("routed", last.name, f"router saved: {text}"))
    return found


def _routable(
    shop: Workshop,
    router: Router,
    labels: Mapping[str, tuple[str, ...]],
    evaluation: Callable[[TaskSpec, tuple[str, ...]], TaskData],
) -> tuple[dict[str, TaskData], tuple[str, ...]]:
    """Evaluation data of the router's tasks, and what to tell of the others."""
    data, notices = {}, []
    for name in labels:
        if name not in router.tasks:
            notices.append(f"{name}: no training data was at hand: the router sends nothing to it")
            continue
        try:
            data[name] = evaluation(_spec(shop, name), labels[name])
        except (RecipeError, OSError) as error:
            notices.append(f"{name}: not routed, its evaluation data is gone ({reason(error)})")
    return data, tuple(notices)


def _too_few(router: Router) -> Iterator[str]:
    """See ``route.router``: strangers are known only from enough inputs."""
    seen = sum(one.count for one in router.tasks.values())
    if seen < router.dimension:
        yield (
            f"router: made of {seen} inputs, fewer than its features have dimensions "
            f"({router.dimension}): inputs of no task may be sent to one"
        )


def router_of(files: RouterFiles, steps: Sequence[Step]) -> Router:
    """The router of all tasks that had training data, with its margin.

    Raises:
        CorruptStoreError: what a step kept is gone or has changed.
    """
    router, held = Router(), []
    for step in steps:
        for name, file in step.features.items():
            taken = Taken.from_bytes(files.read_features(file))
            router = router.with_task(name, taken.statistics)
            held.append(taken.held_out)
    if not any(map(len, held)):
        return router
    return router.with_fallback_rate(FALLBACK_RATE, torch.cat(held))


def score_router(
    shop: Workshop,
    share: Share,
    router: Router,
    labels: Mapping[str, tuple[str, ...]],
    data: Mapping[str, TaskData],
) -> dict[str, RoutedTask]:
    """Scores against the oracle, of each task that has evaluation data.

    Args:
        labels: task of the router -> names of its classes.
        data: task of the router -> its data.
    """
    known = {name: _spec(shop, name) for name in router.tasks}
    routings = {n: router.route(base_features(shop, known[n], d, d.eval)) for n, d in data.items()}
    classified = {n: data[n] for n in data if known[n].settings.task_type in _CLASSES}
    scored: Mapping[str, TaskScores] = {}
    if classified:
        examples = {name: _examples(name, found) for name, found in classified.items()}
        found = {
            name: _predictions(shop, share, spec, labels[name], classified, routings)
            for name, spec in known.items()
            if spec.settings.task_type in _CLASSES
        }
        # A task that has no classes gives no label: an input that goes there is wrong.
        scored = evaluate(
            examples, routings, lambda task, rows: [found.get(task, {}).get(row) for row in rows]
        ).per_task
    every = all(spec.settings.task_type in _CLASSES for spec in known.values())
    return {name: _routed(name, routings[name], scored.get(name), every) for name in data}


def _spec(shop: Workshop, name: str) -> TaskSpec:
    # A recipe that goes on has all tasks that are done.
    return present(shop.recipe.task(name), f"task {name!r} of the recipe")


def _examples(name: str, data: TaskData) -> Examples:
    numbers = data.eval_rows["labels"]
    rows = [(name, at) for at in range(len(numbers))]
    return Examples(rows, [data.label_names[number] for number in numbers])


def _predictions(
    shop: Workshop,
    share: Share,
    spec: TaskSpec,
    labels: tuple[str, ...],
    data: Mapping[str, TaskData],
    routings: Mapping[str, Routing],
) -> dict[Row, str]:
    """The label that the task's model gives to its own rows, and to those that are sent to it."""
    model = load_task(shop.model(spec, num_labels(spec, labels)), share, spec.name)
    found: dict[Row, str] = {}
    try:
        for name, given in data.items():
            sent = routings[name].tasks
            rows = [at for at, task in enumerate(sent) if spec.name in (task, name)]
            if rows:
                numbers = classes(model, _spec(shop, name), given, rows)
                found |= {(name, at): labels[n] for at, n in zip(rows, numbers, strict=True)}
    finally:
        require("sharespace.tuner", "train").release(model)
    return found


def _routed(name: str, routing: Routing, scores: TaskScores | None, every: bool) -> RoutedTask:
    return RoutedTask(
        routing=100 * fmean(task == name for task in routing.tasks),
        fallback=100 * routing.fallback_rate,
        oracle=100 * scores.oracle if scores else None,
        routed=100 * scores.routed if scores else None,
        class_incremental=100 * scores.class_incremental if scores and every else None,
    )


def _told(score: float | None) -> str:
    return "not known" if score is None else f"{score:.2f}"


@dataclass(frozen=True, eq=False)
class Taken:
    """What is kept of a task's training inputs."""

    statistics: Statistics
    held_out: Tensor
    """float32 [inputs, d]: features of examples that the statistics have not seen."""

    def to_bytes(self) -> bytes:
        """The same bytes for the same values: safetensors, without a header of its own."""
        s = self.statistics
        tensors = {"count": torch.tensor([s.count]), "mean": s.mean, "scatter": s.scatter}
        return save({**tensors, "held_out": self.held_out})

    @classmethod
    def from_bytes(cls, data: bytes) -> Taken:
        """What ``to_bytes`` gave."""
        found = load(data)
        statistics = Statistics(int(found["count"]), found["mean"], found["scatter"])
        return cls(statistics, found["held_out"])


def take(shop: Workshop, spec: TaskSpec, data: TaskData) -> Taken:
    """Statistics of a task's training inputs in the base model."""
    draw = torch.Generator().manual_seed(spec.seed)
    chosen = torch.randperm(len(data.train), generator=draw)[:MOST].tolist()
    found = base_features(shop, spec, data, data.train.select(chosen))
    held = min(HELD_OUT, -(-len(found) // 10), len(found) - 1)
    return Taken(Statistics.from_features(found[held:]), found[:held].contiguous())


def base_features(shop: Workshop, spec: TaskSpec, data: TaskData, rows: Any) -> Tensor:
    """float32 [rows, d], by ``route.features`` as it is without options.

    Args:
        rows: encoded, of ``data``.
    """
    model = shop.model(spec, data.num_labels).to(device(spec))
    return features(model, _batches(spec, data, rows))


def _batches(spec: TaskSpec, data: TaskData, rows: Any) -> Iterator[dict[str, Any]]:
    if spec.settings.task_type == "causal-lm":
        rows = [_prompt(row) for row in rows]
    size = spec.training.per_device_eval_batch_size
    for batch in DataLoader(rows, batch_size=size, collate_fn=data.collator):
        yield {name: value for name, value in batch.items() if name != "labels"}


def _prompt(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """What is there before the answer; a text without a prompt as it is."""
    ids = row["input_ids"]
    given = [i for i, y in zip(ids, row["labels"], strict=True) if y == IGNORED] or ids
    return {"input_ids": given, "attention_mask": [1] * len(given), "labels": given}
