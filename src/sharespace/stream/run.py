"""Run a recipe: each step is learned, scored, recorded and committed, in this order.

The record of a step is written before the step's version is committed and counts from the commit
on (``folder``). So a kill loses at most the step at work, no step is ever without its scores, and
none is learned twice. Everything random depends on the recipe's seed alone, so a stream that was
killed ends bit by bit where an undisturbed one does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from sharespace.errors import RecipeError
from sharespace.extras import require
from sharespace.learn import load_task
from sharespace.learn.training import quiet
from sharespace.share import Share
from sharespace.store import Operation
from sharespace.store.commits import plan_commit
from sharespace.stream.folder import RunFolder
from sharespace.stream.learning import (
    Workshop,
    build_share,
    check_stream,
    first_adapter,
    next_adapter,
    trained_after_merge,
)
from sharespace.stream.loop import LoopStep, StreamLoop
from sharespace.stream.models import BaseModels, num_labels
from sharespace.stream.recipe import Recipe, TaskData, TaskSpec, load_recipe
from sharespace.stream.records import (
    Event,
    Observer,
    Stage,
    Step,
    StreamResult,
    content_digest,
    ignore,
    present,
    reason,
    result_of,
)
from sharespace.stream.routing import features_for_router, router_result
from sharespace.stream.scoring import evaluation_spec, score
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.fidelity import losses, some_losses


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
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = RunFolder(recipe)
    observer = observe or ignore
    require("transformers", "train")
    with quiet():
        check_stream(recipe, _tasks(folder.finished()), observer)
        with folder.locked():
            return _RecipeRun(recipe, folder, observer, bars).run()


class _RecipeRun:
    """A recipe that is being run; the lock of its folder is held."""

    def __init__(self, recipe: Recipe, folder: RunFolder, observe: Observer, bars: bool) -> None:
        self.recipe, self.folder, self.observe = recipe, folder, observe
        self.shop = Workshop(recipe, folder, BaseModels(recipe), observe, bars)
        # Read again: another process may have gone on between the check and the lock.
        self.steps = list(folder.finished())
        self.learned = {one.task: one for step in self.steps for one in step.learned}
        self.training_data: dict[str, TaskData] = {}
        """Data of the tasks of the step at work."""
        self.evaluation_data: dict[str, TaskData] = {}
        """Evaluation data of tasks, as it was when they were learned or scored first."""
        self.router_features: dict[str, bytes] = {}
        """Of the step at work: task -> what a router takes of its training data."""
        self.notices: list[str] = []
        """Of the step at work: why scores are missing."""

    def run(self) -> StreamResult:
        self.folder.write_recipe()
        names = [spec.name for spec in self.recipe.tasks]
        share = self._resumed() if self.steps else None
        loop = StreamLoop(
            build=self._build,
            learn=self._learn,
            score=self._score,
            merge=self._merge,
            refine=self._refine,
        )
        finished = len(self.steps)
        for step in loop.run(names, self.recipe.initial, share=share, finished=finished):
            self._commit(step)
            share = step.share
        share = present(share, "the Share model: a recipe has at least one step")
        version = present(share.version, "the version that was committed")
        router = None
        if self.recipe.router:
            router = router_result(self.shop, share, self.steps, self._evaluation)
        return result_of(self.recipe, self.steps, version, router)

    def _resumed(self) -> Share:
        last = self.steps[-1].name
        learned = f"{len(self.learned)} of {len(self.recipe.tasks)} tasks are learned"
        self._say("resumed", last, f"{learned}, the last step was {last}")
        return Share.load(self.recipe.share)

    def _read(self, tasks: Sequence[str]) -> None:
        """Read the data of the tasks of a step; what a router needs of it is taken at once.

        The router's features come before any learning, so that a base model that cannot be routed
        by is refused soon.
        """
        specs = [self.shop.spec(name) for name in tasks]
        data = {spec.name: self.shop.data(spec) for spec in specs if spec.data is not None}
        if self.recipe.router:
            self.router_features = {
                spec.name: features_for_router(self.shop, spec, data[spec.name]).to_bytes()
                for spec in specs
                if spec.learns
            }
        self.training_data = data

    def _build(self, tasks: Sequence[str]) -> Share:
        self._read(tasks)
        adapters = []
        for number, name in enumerate(tasks, 1):
            spec = self.shop.spec(name)
            adapter, learned = first_adapter(self.shop, number, spec, self.training_data.get(name))
            self.learned[name] = learned
            adapters.append(adapter)
        return build_share(self.recipe, adapters)

    def _learn(self, share: Share, task: str) -> Adapter:
        self._read([task])
        spec = self.shop.spec(task)
        adapter, learned = next_adapter(self.shop, share, spec, self.training_data.get(task))
        self.learned[task] = learned
        return adapter

    def _merge(self, share: Share, adapter: Adapter) -> Share:
        spec = self.shop.spec(adapter.name)
        before = share.model
        share = share.merge(adapter, cap=spec.subspace.k, base=self.recipe.base.text)
        if lost := losses(before, share.model):
            self.notices.append(
                f"{adapter.name}: the error is up to {some_losses(lost)} after its merge"
            )
        self.shop.say("merged", spec, "merged" if spec.adapter is None else "adapter merged")
        return share

    def _refine(self, share: Share, task: str) -> Share:
        data = self.training_data.get(task)
        spec, learned = self.shop.spec(task), self.learned[task]
        share, self.learned[task] = trained_after_merge(self.shop, share, spec, data, learned)
        if data is not None:
            self.evaluation_data[task] = replace(data, train=None)
        return share

    def _score(self, share: Share, task: str) -> float | None:
        """The score of a known task that has data; None where that is gone by now."""
        from sharespace.tuner import release

        spec, labels = self.shop.spec(task), self.learned[task].labels
        if spec.data is None:
            return None
        try:
            data = self._evaluation(spec, labels)
            model = load_task(self.shop.model(spec, num_labels(spec, labels)), share, task)
            try:
                return score(model, spec, data, self.shop.processor(spec))
            finally:
                release(model)
        except (RecipeError, OSError) as error:
            text = f"{task}: not scored, its evaluation data is gone ({reason(error)})"
            self.notices.append(text)
            self._say("unscored", task, text)
            return None

    def _evaluation(self, spec: TaskSpec, labels: tuple[str, ...]) -> TaskData:
        if spec.name not in self.evaluation_data:
            self.evaluation_data[spec.name] = self.shop.data(evaluation_spec(spec, labels))
        return self.evaluation_data[spec.name]

    def _commit(self, done: LoopStep) -> None:
        """Record a step, then commit it: a kill between the two leaves a record that does not
        count, and the step is learned again."""
        scored = {n: s for n, s in done.scores.items() if self.shop.spec(n).data is not None}
        told = ", ".join(f"{name} {s:.2f}" for name, s in scored.items() if s is not None)
        self._say("scored", done.name, f"{done.name}: scores now: {told or 'none'}")
        step = self._record(done, scored)
        self.folder.write_step(step)
        self._say("recorded", step.name, f"{step.name}: scores recorded")
        version = done.share.save(None if self.steps else self.recipe.share)
        self.steps.append(step)
        self.notices, self.router_features = [], {}
        self._say("committed", step.name, f"{step.name}: committed as version {version}")

    def _record(self, done: LoopStep, scores: dict[str, float | None]) -> Step:
        sizes = done.share.fidelity().bytes
        plan = plan_commit(done.share.model, Operation("init", done.share.tasks))
        keep = self.folder.router.keep_features
        return Step(
            number=done.number,
            learned=tuple(self.learned[name] for name in done.tasks),
            content=content_digest(plan.content),
            parent=self.steps[-1].content if self.steps else None,
            scores=scores,
            bytes={**vars(sizes), "total": sizes.total},
            notices=tuple(self.notices),
            # Written before the record that names them.
            features={name: keep(data) for name, data in self.router_features.items()},
        )

    def _say(self, stage: Stage, task: str, text: str) -> None:
        self.observe(Event(stage, task, text))


def _tasks(steps: Sequence[Step]) -> list[str]:
    return [name for step in steps for name in step.tasks]
