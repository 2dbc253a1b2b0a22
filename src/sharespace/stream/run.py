"""Run a stream: each step is learned, scored, recorded and committed, in this order.

The record of a step is written before the step's version is committed and counts from the commit
on (``folder``). So a kill loses at most the step at work, no step is ever without its scores, and
none is learned twice. Everything random depends on the recipe's seed alone, so a stream that was
killed ends bit by bit where an undisturbed one does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sharespace.errors import RecipeError
from sharespace.extras import require
from sharespace.learn import load_task
from sharespace.learn.training import quiet
from sharespace.share import Share
from sharespace.store import Operation
from sharespace.store.store import plan_commit
from sharespace.stream.folder import RunFolder
from sharespace.stream.learning import Workshop, check_stream, learn_first, learn_next
from sharespace.stream.models import BaseModels, num_labels
from sharespace.stream.recipe import Recipe, TaskData, TaskSpec, load_recipe
from sharespace.stream.records import (
    Event,
    Learned,
    Observer,
    Step,
    StreamResult,
    content_digest,
    ignore,
    present,
    reason,
    result_of,
)
from sharespace.stream.routing import finish, take
from sharespace.stream.scoring import evaluation_spec, score


def run(
    recipe: Recipe | str | os.PathLike[str],
    *,
    observe: Observer | None = None,
    bars: bool = False,
) -> StreamResult:
    """Run a recipe to its end, or go on with it where it was stopped.

    Everything is validated first; nothing is written where that fails. Beside the Share model a
    folder ``<share>.run`` keeps the recipe, the initial tasks' LoRAs and a record of each step.

    Args:
        recipe: read, or the path of its file.
        observe: called after everything that happens; what it raises stops the stream, which can
            be gone on with.
        bars: show Trainer's progress bars on standard error.

    Returns:
        The result of all steps, those of earlier calls included. A stream that is done is not run
        again.

    Raises:
        RecipeError: the recipe is wrong, something it names is not there or does not fit, or the
            stream was started with another one.
        StoreExistsError: a Share model is there that no stream made.
        StoreConflictError: another writer changed the Share model.
        StoreLockedError: the stream is running in another process.
        CorruptStoreError: a record or the store is damaged.
        MissingExtraError: the extra ``train`` is not installed.
    """
    found = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = RunFolder(found)
    tell = observe or ignore
    require("transformers", "train")
    with quiet():
        check_stream(found, _tasks(folder.finished()), tell)
        with folder.locked():
            return _Stream(found, folder, tell, bars).run()


class _Stream:
    """A stream at work; the lock is held."""

    def __init__(self, recipe: Recipe, folder: RunFolder, observe: Observer, bars: bool) -> None:
        self.recipe, self.folder, self.observe = recipe, folder, observe
        self.shop = Workshop(recipe, folder, BaseModels(recipe), observe, bars)
        # Again: another process may have gone on between the check and the lock.
        self.steps = list(folder.finished())
        self.held: dict[str, TaskData] = {}
        """Evaluation data of tasks, as it was when they were learned or scored first."""

    def run(self) -> StreamResult:
        self.folder.begin()
        share = Share.load(self.recipe.share) if self.steps else None
        if self.steps:
            names = self.steps[-1].name
            done = len(_tasks(self.steps))
            text = (
                f"{done} of {len(self.recipe.tasks)} tasks are learned, the last step was {names}"
            )
            self._say("resumed", names, text)
        for specs in self._groups()[len(self.steps) :]:
            share = self._step(share, specs)
        share = present(share, "the Share model: a recipe has at least one step")
        version = present(share.version, "the version that was committed")
        router = None
        if self.recipe.router:
            router = finish(self.shop, share, self.steps, self._evaluation)
        return result_of(self.recipe, self.steps, version, router)

    def _groups(self) -> list[tuple[TaskSpec, ...]]:
        """The tasks of each step: the initial ones together, then one by one."""
        tasks, first = self.recipe.tasks, self.recipe.initial
        return [tasks[:first], *((spec,) for spec in tasks[first:])]

    def _step(self, share: Share | None, specs: Sequence[TaskSpec]) -> Share:
        """Learn, score, record, commit."""
        data = {spec.name: self.shop.data(spec) for spec in specs if spec.data is not None}
        taken = self._taken(specs, data) if self.recipe.router else {}
        if share is None:
            after, learned = learn_first(self.shop, specs, data)
        else:
            after, learned = learn_next(self.shop, share, specs[0], data.get(specs[0].name))
        for name, found in data.items():
            self.held[name] = replace(found, train=None)
        step = self._scored(after, learned)
        kept = {name: self.folder.router.keep_features(data) for name, data in taken.items()}
        step = replace(step, features=kept)
        self.folder.write_step(step)
        self._say("recorded", step.name, f"{step.name}: scores recorded")
        version = after.save(self.recipe.share if share is None else None)
        self.steps.append(step)
        self._say("committed", step.name, f"{step.name}: committed as version {version}")
        return after

    def _scored(self, share: Share, learned: Sequence[Learned]) -> Step:
        scores, notices = self._scores(share, learned)
        sizes = share.fidelity().bytes
        plan = plan_commit(share.model, Operation("init", share.tasks))
        step = Step(
            number=len(self.steps) + 1,
            learned=tuple(learned),
            content=content_digest(plan.content),
            parent=self.steps[-1].content if self.steps else None,
            scores=scores,
            bytes={**vars(sizes), "total": sizes.total},
            notices=tuple(notices),
        )
        told = ", ".join(f"{t} {s:.2f}" for t, s in scores.items() if s is not None)
        self._say("scored", step.name, f"{step.name}: scores now: {told or 'none'}")
        return step

    def _scores(
        self, share: Share, learned: Sequence[Learned]
    ) -> tuple[dict[str, float | None], list[str]]:
        """Every known task that has data, scored through the Share model as it is now."""
        scores: dict[str, float | None] = {}
        notices = []
        for one in (*(x for step in self.steps for x in step.learned), *learned):
            spec = self.recipe.task(one.task)
            if spec is None or spec.data is None:
                continue
            try:
                scores[one.task] = self._score(share, spec, one.labels)
            except (RecipeError, OSError) as error:
                scores[one.task] = None
                text = f"{one.task}: not scored, its evaluation data is gone ({reason(error)})"
                notices.append(text)
                self._say("unscored", one.task, text)
        return scores, notices

    def _evaluation(self, spec: TaskSpec, labels: tuple[str, ...]) -> TaskData:
        if spec.name not in self.held:
            self.held[spec.name] = self.shop.data(evaluation_spec(spec, labels))
        return self.held[spec.name]

    def _score(self, share: Share, spec: TaskSpec, labels: tuple[str, ...]) -> float:
        data = self._evaluation(spec, labels)
        model = load_task(self.shop.model(spec, num_labels(spec, labels)), share, spec.name)
        try:
            return score(model, spec, data, self.shop.processor(spec))
        finally:
            require("sharespace.tuner", "train").release(model)

    def _taken(self, specs: Sequence[TaskSpec], data: Mapping[str, TaskData]) -> dict[str, bytes]:
        """Of each task that learns; before it does, so that a base that cannot be routed by is
        refused soon."""
        found = {s.name: take(self.shop, s, data[s.name]) for s in specs if s.learns}
        return {name: taken.to_bytes() for name, taken in found.items()}

    def _say(self, stage: Any, task: str, text: str) -> None:
        self.observe(Event(stage, task, text))


def _tasks(steps: Sequence[Step]) -> list[str]:
    return [name for step in steps for name in step.tasks]
