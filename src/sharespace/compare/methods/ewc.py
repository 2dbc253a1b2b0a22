"""Elastic weight consolidation on the LoRA parameters (Kirkpatrick et al., arXiv 1612.00796).

Our own few lines on the Trainer: avalanche-lib (0.6.0) has EWC as a plugin of its own training
loop, which takes batches (x, y, task) and a criterion, and not a model that returns its loss.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from sharespace.compare.bench import Workbench
from sharespace.compare.compared import compared_method
from sharespace.compare.job import Outcome, TaskJob
from sharespace.compare.lora import DEFAULT, lora_layers
from sharespace.compare.methods.sequential import TaskModels, in_sequence
from sharespace.compare.trainers import collate, penalised
from sharespace.learn import Fit, fit
from sharespace.subspace.layer import tensor_bytes


@compared_method("ewc", paper="https://arxiv.org/abs/1612.00796", trains="lora")
def ewc(bench: Workbench) -> Outcome:
    """Sequential LoRA with a penalty for moving what earlier tasks' losses are sensitive to.

    lambda / 2 sum_i sum_j F_ij (theta_j - theta*_ij)^2 over the earlier tasks i and the LoRA
    parameters j. F: diagonal empirical Fisher information (mean of squared gradients of single
    examples' losses, by their labels) at the end of task i, theta*_i: the parameters then. The sum
    over tasks is kept as one quadratic, equal up to a constant: memory does not grow.
    """
    memory = Quadratic()

    def train_one(job: TaskJob, models: TaskModels) -> Fit:
        parameters = factors(models[job.name])
        settings, setup = bench.settings, job.setup
        if memory.precision:
            trainer = penalised(setup.trainer, lambda: settings.ewc * memory.value(parameters))
            setup = replace(setup, trainer=trainer)
        training = settings.training(settings.lora, job)
        fitted = fit(models[job.name], job.data, training, setup)
        bench.restore_buffers(job.name, models[job.name])
        information = fisher(models[job.name], job, settings.fisher_examples, settings.seed)
        memory.add(information, parameters)
        return fitted

    return in_sequence(bench, train_one, state=memory.nbytes)


class Quadratic:
    """The quadratic 1/2 sum_ij F_ij (theta_j - theta*_ij)^2, up to a constant.

    It is kept as P = sum_i F_i and m = sum_i F_i theta*_i / P; where P is 0, m is anything.
    """

    def __init__(self) -> None:
        self.precision: list[Tensor] = []
        """P, in the shapes of the parameters; empty before the first task."""
        self.centre: list[Tensor] = []
        """m, in the same shapes."""

    def value(self, parameters: list[nn.Parameter]) -> Tensor:
        """The penalty, with a gradient, without its constant."""
        terms = [
            (p.to(q.device) * (q - m.to(q.device)).square()).sum()
            for p, m, q in zip(self.precision, self.centre, parameters, strict=True)
        ]
        return torch.stack(terms).sum() / 2

    @torch.no_grad()
    def add(self, information: list[Tensor], parameters: list[nn.Parameter]) -> None:
        """One more task, whose information is taken at the parameters as they are."""
        if not self.precision:
            self.precision = [torch.zeros_like(f) for f in information]
            self.centre = [q.detach().clone() for q in parameters]
        for i, (new, q) in enumerate(zip(information, parameters, strict=True)):
            total = self.precision[i] + new
            # Where no task's loss depends on a parameter, 0 / 0 would make the centre NaN, and
            # 0 * NaN the penalty.
            moved = new / total.clamp_min(torch.finfo(total.dtype).tiny) * (q - self.centre[i])
            self.centre[i] = self.centre[i] + moved
            self.precision[i] = total

    def nbytes(self) -> int:
        """Bytes of P and m."""
        return tensor_bytes(*self.precision, *self.centre)


def factors(wrapped: nn.Module) -> list[nn.Parameter]:
    """A ``PeftModel``'s LoRA parameters, in the order of its modules."""
    return [
        factor[DEFAULT].weight
        for layer in lora_layers(wrapped).values()
        for factor in (layer.lora_A, layer.lora_B)
    ]


def fisher(wrapped: nn.Module, job: TaskJob, examples: int, seed: int) -> list[Tensor]:
    """Diagonal empirical Fisher information of the LoRA parameters, over some of the examples."""
    parameters = factors(wrapped.eval())
    total = [torch.zeros_like(q) for q in parameters]
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(job.data), generator=generator)[:examples].tolist()
    device = parameters[0].device
    for index in rows:
        batch = collate(job, wrapped, [job.data[index]])
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        output = wrapped(**moved)
        loss = output["loss"] if isinstance(output, dict) else output[0]
        for squares, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            squares += gradient.square()
    return [squares / max(len(rows), 1) for squares in total]
