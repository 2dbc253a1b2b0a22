"""The router of a stream: made of what each step kept of its tasks, and scored at the end.

A router sees a task's inputs as features of the base model (``route.features``): no labels, and of
a text that is written on, no answers. While a task's training data is at hand, their statistics are
taken and kept in the run's folder; after the last step they make the router.
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
from sharespace.learn import load_task
from sharespace.route import (
    LabelledInputs,
    RoutedInputs,
    Router,
    Statistics,
    TaskScores,
    evaluate,
    features,
)
from sharespace.share import Share
from sharespace.stream.folder import RouterFiles
from sharespace.stream.learning import Workshop
from sharespace.stream.metrics import IGNORED
from sharespace.stream.models import num_labels, training_device
from sharespace.stream.recipe import TaskData, TaskSpec
from sharespace.stream.records import Event, RoutedTask, RouterResult, Step, reason
from sharespace.stream.scoring import classes

FALLBACK_RATE = 0.05
"""Part of the tasks' own inputs that the margin gives up, so that inputs of no task go to the base
model; measured on the held-out examples."""

MOST_EXAMPLES = 4000
"""Training examples of a task that are looked at, chosen with its seed."""

MOST_HELD_OUT = 200
"""Of these a tenth is held out for the margin, this many at most."""

_CLASSIFICATIONS = ("text-classification", "image-classification")

EvaluationRow = tuple[str, int]
"""(task, number of the row in its evaluation data)."""


@dataclass(frozen=True, eq=False)
class RouterFeatures:
    """What is kept of a task's training inputs for a router."""

    statistics: Statistics
    held_out: Tensor
    """float32 [inputs, d]: features of examples that the statistics have not seen."""

    def to_bytes(self) -> bytes:
        """A safetensors file, the same bytes for the same values."""
        s = self.statistics
        tensors = {"count": torch.tensor([s.count]), "mean": s.mean, "scatter": s.scatter}
        return save({**tensors, "held_out": self.held_out})

    @classmethod
    def from_bytes(cls, data: bytes) -> RouterFeatures:
        """The features that ``to_bytes`` made a file of."""
        tensors = load(data)
        statistics = Statistics(int(tensors["count"]), tensors["mean"], tensors["scatter"])
        return cls(statistics, tensors["held_out"])


def features_for_router(shop: Workshop, spec: TaskSpec, data: TaskData) -> RouterFeatures:
    """Statistics of a task's training inputs in the base model, some of them held out."""
    draw = torch.Generator().manual_seed(spec.seed)
    rows = torch.randperm(len(data.train), generator=draw)[:MOST_EXAMPLES].tolist()
    inputs = base_features(shop, spec, data, data.train.select(rows))
    # At least one is held out, and at least one is left for the statistics.
    held = min(MOST_HELD_OUT, -(-len(inputs) // 10), len(inputs) - 1)
    return RouterFeatures(Statistics.from_features(inputs[held:]), inputs[:held].contiguous())


def base_features(shop: Workshop, spec: TaskSpec, data: TaskData, rows: Any) -> Tensor:
    """float32 [rows, d]: what ``route.features`` makes of inputs in the base model.

    Args:
        shop: has the model.
        spec: the task.
        data: of the task.
        rows: encoded rows of the data.
    """
    model = shop.model(spec, data.num_labels).to(training_device(spec))
    return features(model, _inputs(spec, data, rows))


def _inputs(spec: TaskSpec, data: TaskData, rows: Any) -> Iterator[dict[str, Any]]:
    """Batches without labels; of language modelling the prompts alone."""
    if spec.settings.task_type == "causal-lm":
        rows = [_prompt_alone(row) for row in rows]
    size = spec.training.per_device_eval_batch_size
    for batch in DataLoader(rows, batch_size=size, collate_fn=data.collator):
        yield {name: value for name, value in batch.items() if name != "labels"}


def _prompt_alone(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """What is there before the answer; a text without a prompt as it is."""
    ids = row["input_ids"]
    prompt = [i for i, y in zip(ids, row["labels"], strict=True) if y == IGNORED] or ids
    return {"input_ids": prompt, "attention_mask": [1] * len(prompt), "labels": prompt}


def router_result(
    shop: Workshop,
    share: Share,
    steps: Sequence[Step],
    evaluation: Callable[[TaskSpec, tuple[str, ...]], TaskData],
) -> RouterResult:
    """The router of the last step: made, saved and scored, or as it was recorded.

    Args:
        shop: of the run.
        share: after the last step.
        steps: all of them.
        evaluation: a task's data, by its spec and names of classes.
    """
    files, last = shop.folder.router, steps[-1]
    record = files.record(last.content)
    if record is not None:
        return RouterResult.from_record(record, files.router)
    router = router_of(files, steps)
    labels = {one.task: one.labels for step in steps for one in step.learned}
    data, notices = _evaluation_data(shop, router, labels, evaluation)
    scores = _score_router(shop, share, router, labels, data)
    router.save(files.router)
    known = tuple(router.tasks)
    result = RouterResult(
        path=files.router,
        tasks=known,
        bytes=files.router.stat().st_size,
        margin=router.margin,
        fallback_rate=FALLBACK_RATE,
        scores=scores,
        notices=(*notices, *_few_inputs(router)),
    )
    # After the router itself: scores that are there are those of a router that is there.
    files.keep_record(result.to_record(), last.content)
    mean = result.means["routing"]
    accuracy = "not known" if mean is None else f"{mean:.2f}"
    text = f"router saved: {len(known)} tasks, routing accuracy {accuracy}"
    shop.observe(Event("routed", last.name, text))
    return result


def router_of(files: RouterFiles, steps: Sequence[Step]) -> Router:
    """The router of all tasks that had training data, with its margin.

    Raises:
        CorruptStoreError: what a step kept is gone or has changed.
    """
    router, held_out = Router(), []
    for step in steps:
        for name, file in step.features.items():
            of_task = RouterFeatures.from_bytes(files.read_features(file))
            router = router.with_task(name, of_task.statistics)
            held_out.append(of_task.held_out)
    if not any(map(len, held_out)):
        return router
    return router.with_fallback_rate(FALLBACK_RATE, torch.cat(held_out))


def _evaluation_data(
    shop: Workshop,
    router: Router,
    labels: Mapping[str, tuple[str, ...]],
    evaluation: Callable[[TaskSpec, tuple[str, ...]], TaskData],
) -> tuple[dict[str, TaskData], list[str]]:
    """Evaluation data of the router's tasks, and notices of the tasks that have none."""
    data, notices = {}, []
    for name in labels:
        if name not in router.tasks:
            notices.append(f"{name}: no training data was at hand: the router sends nothing to it")
            continue
        try:
            data[name] = evaluation(shop.spec(name), labels[name])
        except (RecipeError, OSError) as error:
            notices.append(f"{name}: not routed, its evaluation data is gone ({reason(error)})")
    return data, notices


def _few_inputs(router: Router) -> Iterator[str]:
    """A notice where too few inputs were seen to tell that one belongs to no task
    (``route.router``)."""
    seen = sum(one.count for one in router.tasks.values())
    if seen < router.dimension:
        yield (
            f"router: made of {seen} inputs, fewer than its features have dimensions "
            f"({router.dimension}): inputs of no task may be sent to one"
        )


def _score_router(
    shop: Workshop,
    share: Share,
    router: Router,
    labels: Mapping[str, tuple[str, ...]],
    data: Mapping[str, TaskData],
) -> dict[str, RoutedTask]:
    """Scores against the oracle, of each task that has evaluation data.

    Args:
        shop: of the run.
        share: has the tasks.
        router: knows the tasks.
        labels: task of the router -> names of its classes.
        data: task of the router -> its evaluation data.
    """
    specs = {name: shop.spec(name) for name in router.tasks}
    routings = {n: router.route(base_features(shop, specs[n], d, d.eval)) for n, d in data.items()}
    classifications = {n for n in specs if specs[n].settings.task_type in _CLASSIFICATIONS}
    classified = {name: data[name] for name in data if name in classifications}
    scored: Mapping[str, TaskScores] = {}
    if classified:
        examples = {name: _examples(name, of_task) for name, of_task in classified.items()}
        predicted = {
            name: _predictions(shop, share, specs[name], labels[name], classified, routings)
            for name in specs
            if name in classifications
        }
        # A task that has no classes gives no label: an input that goes there is wrong.
        scored = evaluate(
            examples,
            routings,
            lambda task, rows: [predicted.get(task, {}).get(row) for row in rows],
        ).per_task
    all_classify = len(classifications) == len(specs)
    return {
        name: _routed_task(name, routings[name], scored.get(name), all_classify) for name in data
    }


def _examples(name: str, data: TaskData) -> LabelledInputs:
    numbers = data.eval_rows["labels"]
    rows = [(name, row) for row in range(len(numbers))]
    return LabelledInputs(rows, [data.label_names[number] for number in numbers])


def _predictions(
    shop: Workshop,
    share: Share,
    spec: TaskSpec,
    labels: tuple[str, ...],
    data: Mapping[str, TaskData],
    routings: Mapping[str, RoutedInputs],
) -> dict[EvaluationRow, str]:
    """The label that the task's model gives to its own rows, and to those that are sent to it."""
    from sharespace.tuner import release

    model = load_task(shop.model(spec, num_labels(spec, labels)), share, spec.name)
    predicted: dict[EvaluationRow, str] = {}
    try:
        for name, of_task in data.items():
            sent = routings[name].tasks
            rows = [row for row, task in enumerate(sent) if spec.name in (task, name)]
            if rows:
                numbers = classes(model, shop.spec(name), of_task, rows)
                pairs = zip(rows, numbers, strict=True)
                predicted |= {(name, row): labels[number] for row, number in pairs}
    finally:
        release(model)
    return predicted


def _routed_task(
    name: str, routing: RoutedInputs, scores: TaskScores | None, all_classify: bool
) -> RoutedTask:
    return RoutedTask(
        routing=100 * fmean(task == name for task in routing.tasks),
        fallback=100 * routing.fallback_rate,
        oracle=100 * scores.oracle if scores else None,
        routed=100 * scores.routed if scores else None,
        class_incremental=100 * scores.class_incremental if scores and all_classify else None,
    )
