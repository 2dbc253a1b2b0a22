"""The models of all tasks on one backbone, and the own LoRAs that several methods start from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sharespace.compare.job import Settings, TaskJob
from sharespace.errors import MismatchError, OptionError, TaskNotFoundError
from sharespace.learn import Fit
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.layer import tensor_bytes


@dataclass(frozen=True, eq=False)
class Own:
    """A task's own LoRA."""

    adapter: Adapter
    score: float
    fit: Fit | None
    """None where the adapter was given."""
    trainable: int
    """Numbers of the factors."""


class Workbench:
    """All tasks of a comparison, their models, and what methods share.

    Every job's model is asked for once. Its parameters outside the heads are then those of the
    first job's model, the same objects: there is one backbone in memory however many tasks there
    are, and a change of it is a change for all.

    Args:
        jobs: in the order of the stream.
        settings: of all methods.
        own: own LoRAs that are there already, for example of another order of the same tasks
            with the same seed.

    Raises:
        OptionError: no jobs, or two of one name; a head is not in its model.
        MismatchError: the models differ outside their heads.
    """

    def __init__(
        self, jobs: Sequence[TaskJob], settings: Settings, own: Mapping[str, Own] | None = None
    ) -> None:
        names = [job.name for job in jobs]
        if not jobs or len(set(names)) < len(names):
            raise OptionError("jobs", f"{names} has no task or one twice", "Name each once")
        self.settings = settings
        self.jobs = {job.name: job for job in jobs}
        self.own: dict[str, Own] = dict(own or {})
        """Filled by ``sharespace.compare.methods.own``."""
        self.strict: Any = None
        """The strict Share stream, once it was run (``sharespace.compare.methods.shared``)."""
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

        Raises:
            TaskNotFoundError: there is none.
        """
        if name not in self.jobs:
            raise TaskNotFoundError(f"task {name!r}", "not a job of this comparison")
        return self.jobs[name]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.jobs)

    def head_tensors(self, name: str) -> dict[str, Tensor]:
        """Parameter -> value of a task's heads before training."""
        heads = self.job(name).heads
        return {k: v for k, v in self._fresh[name].items() if in_heads(k, heads)}

    @property
    def head_numbers(self) -> dict[str, int]:
        """Task -> numbers of its heads."""
        return {n: sum(v.numel() for v in self.head_tensors(n).values()) for n in self.jobs}

    @property
    def head_bytes(self) -> int:
        """Of all tasks' heads."""
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
        """
        heads = self.job(name).heads
        model = self._models[name].requires_grad_(False).eval().to(self.device)
        current = dict(_own_tensors(model, heads))
        for key, value in self._fresh[name].items():
            current[key].copy_(value)
        return model

    @torch.no_grad()
    def restore_buffers(self, name: str, model: nn.Module) -> None:
        """Running statistics outside the heads as the base model has them (no adapter has them)."""
        heads = self.job(name).heads
        found = {_plain(key): value for key, value in model.named_buffers()}
        for key, value in self._fresh[name].items():
            if key in found and not in_heads(key, heads):
                found[key].copy_(value)

    @torch.no_grad()
    def score(self, name: str, model: nn.Module) -> float:
        """Percent of a task by its job."""
        return float(self.job(name).score(model.to(self.device).eval()))

    @contextmanager
    def changing_backbone(self, modules: Iterable[str]) -> Iterator[None]:
        """For methods that write into the weights of these modules: they are as before after it."""
        model = next(iter(self._models.values()))
        weights = [model.get_parameter(f"{module}.weight") for module in modules]
        kept = [(weight, weight.detach().clone()) for weight in weights]
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in kept:
                    parameter.copy_(value)


def in_heads(name: str, heads: Sequence[str]) -> bool:
    """True for the name of a tensor inside one of the heads, PEFT's prefix or not."""
    return any(_plain(name).startswith(f"{head}.") for head in heads)


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


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
    (other, base), (job, model) = first, new
    known = dict(base.named_parameters(remove_duplicate=False))
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if in_heads(name, job.heads):
            continue
        shared = known.get(name)
        if shared is None or in_heads(name, other.heads) or not _equal(shared, parameter):
            raise MismatchError(
                f"model of task {job.name!r}",
                f"{name} is not that of task {other.name!r}",
                "All jobs need the same base model; name what differs in heads",
            )
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, shared)


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second.to(first.device))
