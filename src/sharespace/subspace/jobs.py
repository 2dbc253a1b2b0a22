"""The work of one layer as a value that can be sent to another process.

In this process a job holds whole adapters and the whole model, as references. Pickled, it holds
its own layer's part of them: byte ranges of files where the adapters are files, tensors otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sharespace.linalg.budget import Profile
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.budgeted import (
    Choice,
    entry_energies,
    profile_layer,
)
from sharespace.subspace.layers import Build, LayerResult
from sharespace.subspace.one_layer import make_layer
from sharespace.subspace.state import Ledger, ShareModel, Task


@dataclass(frozen=True, eq=False)
class BuildJob:
    """One layer to build from the adapters that adapt it."""

    module: str
    shape: ModuleShape
    members: Sequence[Adapter]
    build: Build
    choice: Choice | None = None
    """How a byte budget stores the layer."""

    def __reduce__(self) -> tuple[Any, ...]:
        members = [a.part(self.module) for a in self.members]
        build = part_of_build(self.build, self.module)
        return BuildJob, (self.module, self.shape, members, build, self.choice)


@dataclass(frozen=True, eq=False)
class MergeJob:
    """One layer of a model, and the newcomers that adapt it."""

    module: str
    model: ShareModel
    members: Sequence[Adapter]
    build: Build

    def __reduce__(self) -> tuple[Any, ...]:
        model = part_of_model(self.model, self.module)
        members = [a.part(self.module) for a in self.members]
        return MergeJob, (self.module, model, members, part_of_build(self.build, self.module))


def built(job: BuildJob) -> LayerResult:
    """The layer and its tasks' coefficients."""
    return make_layer(job.module, job.shape, job.members, job.build, job.choice)


def measured(job: BuildJob) -> list[float]:
    """|dW_i|^2 of the layer, as each of the tasks entered with it."""
    return entry_energies(job.module, job.members, job.build)


def profiled(job: BuildJob) -> Profile:
    """What the split of a byte budget needs to know of the layer."""
    return profile_layer(job.module, job.members, job.build)


def part_of_build(build: Build, module: str) -> Build:
    """What one layer needs of the build."""
    return replace(
        build,
        entry_norms={
            name: {module: norms[module]}
            for name, norms in build.entry_norms.items()
            if module in norms
        },
    )


def part_of_model(model: ShareModel, module: str) -> ShareModel:
    """What one layer's merge needs of the model: its bases, coefficients and entry norms."""
    layers = {module: model.layers[module]} if module in model.layers else {}
    tasks = {
        name: _part_of_task(task, module)
        for name, task in model.tasks.items()
        if module in task.coefficients
    }
    return ShareModel(model.base, model.settings, model.dtype, layers, tasks)


def _part_of_task(task: Task, module: str) -> Task:
    norms = torch.tensor([task.ledger.norm(module)], dtype=torch.float64)
    ledger = Ledger((module,), norms, torch.zeros(1, 0, dtype=torch.float64), ())
    return Task(task.name, {module: task.coefficients[module]}, ledger)
