"""The tasks of a comparison on one backbone, and what all methods share.

That is the models of all tasks, training and scoring, and the own LoRAs that several methods start
from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sharespace.compare.job import ComparisonSettings, Outcome, StoredBytes, TaskJob
from sharespace.compare.lora import (
    PREFIX,
    add_lora,
    count_trained,
    in_heads,
    plain_name,
    read_adapter,
    shapes_of,
)
from sharespace.errors import MismatchError, OptionError, TaskNotFoundError
from sharespace.learn import Fit, TrainingSettings, fit
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.adapter import Adapter, LayerUpdate, ModuleShape
from sharespace.subspace.layer import tensor_bytes
from sharespace.tuner import applied, release


@dataclass(frozen=True, eq=False)
class OwnLora:
    """A task's own LoRA."""

    adapter: Adapter
    """With the task's heads."""
    score: float
    """Percent of the task, by its job."""
    fit: Fit | None
    """How it was trained; None where the adapter was given."""
    trainable: int
    """Numbers of the factors."""


class Workbench:
    """All tasks of a comparison, their models, and what methods share.

    Every job's model is asked for once. Its parameters outside the heads are then those of the
    first job's model, the same objects: there is one backbone in memory however many tasks there
    are, and a change of it is a change for all.

    Args:
        jobs: in the order of the stream.
        settings: numbers of all methods.
        own: own LoRAs that are there already, for example of another order of the same tasks
            with the same seed.

    Raises:
        OptionError: no jobs, or two of one name; a head is not in its model.
        MismatchError: the models differ outside their heads.
    """

    def __init__(
        self,
        jobs: Sequence[TaskJob],
        settings: ComparisonSettings,
        own: Mapping[str, OwnLora] | None = None,
    ) -> None:
        names = [job.name for job in jobs]
        if not jobs or len(set(names)) < len(names):
            raise OptionError("jobs", f"{names} has no task or one twice", "Name each once")
        self.settings = settings
        self.jobs = {job.name: job for job in jobs}
        self.own: dict[str, OwnLora] = dict(own or {})
        """Task -> own LoRA, of those that were given or trained so far."""
        self.strict: Outcome | None = None
        """Outcome of the strict Share stream, once it was run: Share-full goes on from it."""
        self._models: dict[str, nn.Module] = {}
        self._fresh: dict[str, dict[str, Tensor]] = {}
        for job in jobs:
            self._add(job)

    def _add(self, job: TaskJob) -> None:
        model = job.model().requires_grad_(False).eval()
        for head in job.heads:
            if head not in dict(model.named_modules()):
                raise OptionError(f"head {head!r}", "not in this model", "Name its module in heads")
        if self._models:
            first, base = next(iter(self._models.items()))
            _share_parameters((self.jobs[first], base), (job, model))
        self._models[job.name] = model
        self._fresh[job.name] = {
            name: value.detach().clone() for name, value in _own_tensors(model, job.heads)
        }

    def job(self, name: str) -> TaskJob:
        """The job of that name.

        Args:
            name: of the task.

        Raises:
            TaskNotFoundError: there is none.
        """
        if name not in self.jobs:
            raise TaskNotFoundError(f"task {name!r}", "not a job of this comparison")
        return self.jobs[name]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of all tasks, in the order of the stream."""
        return tuple(self.jobs)

    def head_tensors(self, name: str) -> dict[str, Tensor]:
        """Parameter -> value of a task's heads before training.

        Args:
            name: of the task.
        """
        heads = self.job(name).heads
        return {k: v for k, v in self._fresh[name].items() if in_heads(k, heads)}

    @property
    def head_numbers(self) -> dict[str, int]:
        """Task -> numbers of its heads."""
        return {n: sum(v.numel() for v in self.head_tensors(n).values()) for n in self.jobs}

    @property
    def head_bytes(self) -> int:
        """Bytes of all tasks' heads."""
        return sum(tensor_bytes(*self.head_tensors(name).values()) for name in self.jobs)

    @property
    def device(self) -> torch.device:
        """Where the backbone is: the Trainer moves it."""
        first, model = next(iter(self._models.items()))
        heads = self.jobs[first].heads
        return next(p.device for n, p in model.named_parameters() if not in_heads(n, heads))

    @torch.no_grad()
    def fresh(self, name: str) -> nn.Module:
        """A task's model with its head and buffers as they came, frozen, in evaluation mode.

        Adapters that were put into it must have been released.

        Args:
            name: of the task.
        """
        heads = self.job(name).heads
        model = self._models[name].requires_grad_(False).eval().to(self.device)
        current = dict(_own_tensors(model, heads))
        for key, value in self._fresh[name].items():
            current[key].copy_(value)
        return model

    @torch.no_grad()
    def restore_buffers(self, name: str, model: nn.Module) -> None:
        """Running statistics outside the heads as the base model has them (no adapter has them).

        Args:
            name: of the task.
            model: the task's model, changed in place.
        """
        heads = self.job(name).heads
        buffers = {plain_name(key): value for key, value in model.named_buffers()}
        for key, value in self._fresh[name].items():
            if key in buffers and not in_heads(key, heads):
                buffers[key].copy_(value)

    @torch.no_grad()
    def score(self, name: str, model: nn.Module) -> float:
        """Percent of a task by its job.

        Args:
            name: of the task.
            model: as it is to be scored, with the head of the task.
        """
        return float(self.job(name).score(model.to(self.device).eval()))

    def train(self, name: str, model: nn.Module, training: TrainingSettings) -> Fit:
        """Train a task's model on its data, in place; running statistics do not stay.

        Args:
            name: of the task.
            model: the task's model; what requires a gradient is trained.
            training: steps, rate, batch size.
        """
        job = self.job(name)
        result = fit(model, job.data, self.settings.training(training, job), job.setup)
        self.restore_buffers(name, model)
        return result

    def own_lora(self, name: str) -> OwnLora:
        """A task's own LoRA and heads, by PEFT: trained at the first call, unless it was given.

        Args:
            name: of the task.
        """
        if name not in self.own:
            job, settings = self.job(name), self.settings
            wrapped = add_lora(self.fresh(name), settings, job.heads)
            try:
                numbers = count_trained(wrapped, job.heads)
                fitted = self.train(name, wrapped, settings.lora)
                score = self.score(name, wrapped)
                adapter = read_adapter(wrapped, job, settings)
                self.own[name] = OwnLora(adapter, score, fitted, numbers)
            finally:
                release(wrapped)
        return self.own[name]

    def own_loras(self) -> dict[str, OwnLora]:
        """Task -> own LoRA, of all tasks in the order of the stream."""
        return {name: self.own_lora(name) for name in self.tasks}

    def target_shapes(self) -> dict[str, ModuleShape]:
        """Modules that the settings' targets mean -> shape."""
        name = self.tasks[0]
        wrapped = add_lora(self.fresh(name), self.settings, self.job(name).heads)
        try:
            return shapes_of(wrapped)
        finally:
            release(wrapped)

    def score_updates(
        self, name: str, updates: Mapping[str, LayerUpdate], adapter: Adapter
    ) -> float:
        """Percent of a task with these updates in the base weights, and an adapter's own heads."""
        model, heads = self.fresh(name), self.job(name).heads
        parameters = dict(model.named_parameters())
        tensors = {key.removeprefix(PREFIX): value for key, value in adapter.kept.items()}
        of_heads = {k: v for k, v in tensors.items() if k in parameters and in_heads(k, heads)}
        with applied(model, updates, of_heads) as adapted:
            return self.score(name, adapted)

    def learn_in_order(
        self, models: Mapping[str, nn.Module], learn: Callable[[TaskJob], Fit]
    ) -> tuple[ScoreMatrix, list[Fit]]:
        """Learn the tasks one after the other; score all known ones after each.

        Args:
            models: task -> the model that it is scored by, looked up when it is scored.
            learn: learns one task.
        """
        matrix, fits = ScoreMatrix(self.tasks), []
        for number, (name, job) in enumerate(self.jobs.items(), 1):
            fits.append(learn(job))
            scores = {known: self.score(known, models[known]) for known in self.tasks[:number]}
            matrix = matrix.with_step(name, scores, learned=[name])
        return matrix, fits

    def outcome(
        self,
        matrix: ScoreMatrix,
        trainable: Mapping[str, int],
        fits: Iterable[Fit | None],
        stored: StoredBytes,
    ) -> Outcome:
        """An outcome with the time and steps of all trainings, and all tasks' heads.

        Args:
            matrix: percent.
            trainable: task -> numbers trained for it, heads excluded.
            fits: all trainings; None counts nothing (an adapter that was given).
            stored: without the heads.
        """
        known = [fitted for fitted in fits if fitted is not None]
        return Outcome(
            matrix=matrix,
            trainable=trainable,
            heads=self.head_numbers,
            stored=replace(stored, heads=self.head_bytes),
            seconds=sum(fitted.seconds for fitted in known),
            steps=sum(fitted.steps for fitted in known),
        )

    @contextmanager
    def changing_backbone(self, modules: Iterable[str]) -> Iterator[None]:
        """For methods that write into the weights of these modules: they are as before after it."""
        model = next(iter(self._models.values()))
        weights = [model.get_parameter(f"{module}.weight") for module in modules]
        before = [(weight, weight.detach().clone()) for weight in weights]
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in before:
                    weight.copy_(value)


def _own_tensors(model: nn.Module, heads: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Parameters of the heads, and all buffers of floating point."""
    for name, parameter in model.named_parameters():
        if in_heads(name, heads):
            yield name, parameter
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            yield name, buffer


def _share_parameters(first: tuple[TaskJob, nn.Module], new: tuple[TaskJob, nn.Module]) -> None:
    """Give a model the first model's parameters outside its heads.

    Raises:
        MismatchError: they are not equal to its own.
    """
    (first_job, base), (job, model) = first, new
    known = dict(base.named_parameters(remove_duplicate=False))
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if in_heads(name, job.heads):
            continue
        shared = known.get(name)
        if shared is None or in_heads(name, first_job.heads) or not _equal(shared, parameter):
            raise MismatchError(
                f"model of task {job.name!r}",
                f"{name} is not that of task {first_job.name!r}",
                "All jobs need the same base model; name what differs in heads",
            )
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, shared)


def _equal(first: Tensor, second: Tensor) -> bool:
    if first is second:
        return True
    return first.shape == second.shape and torch.equal(first, second.to(first.device))
