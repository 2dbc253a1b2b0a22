"""OSF: orthogonal subspace fine-tuning of weights (Nayak et al., arXiv 2504.07097), by PEFT."""

from __future__ import annotations

from typing import Any

from torch import nn

from sharespace.compare.bench import Workbench
from sharespace.compare.compared import compared_method
from sharespace.compare.job import Outcome, StoredBytes, TaskJob
from sharespace.compare.lora import count_trained
from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.learn import Fit
from sharespace.subspace.adapter import ModuleShape


def _not_linear(bench: Workbench) -> str | None:
    """Why OSF, which takes apart the weights of linear modules, does not fit; None: it does."""
    model = bench.fresh(bench.tasks[0])
    for name in bench.target_shapes():
        kind = type(model.get_submodule(name))
        if kind is not nn.Linear:
            return f"it adapts linear modules only, and {name!r} is a {kind.__name__}"
    return None


@compared_method("osf", paper="https://arxiv.org/abs/2504.07097", trains="osf", unfit=_not_linear)
def osf(bench: Workbench) -> Outcome:
    """Each task trains the weights' lower singular directions; the upper ones are frozen.

    As PEFT's documentation has it for a known number T of tasks: task t (from 0) keeps t / T of the
    directions (one at least), and the SVD is made anew from the weights as they are then. The
    update is merged into the weights before that: PEFT's ``unload``, which its documentation
    names, would take it back. The adapted weights are stored whole, once.

    Raises:
        OptionError: a target is not linear (OSF has nothing for convolutions).
    """
    if why := _not_linear(bench):
        raise OptionError("method 'osf'", why, "Leave it out")
    shapes = bench.target_shapes()
    models: dict[str, nn.Module] = {name: bench.fresh(name) for name in bench.tasks}
    trainable: dict[str, int] = {}

    def learn(job: TaskJob) -> Fit:
        wrapped = _wrap(models[job.name], shapes, len(trainable) / len(bench.jobs), job)
        trainable[job.name] = count_trained(wrapped, job.heads)
        fitted = bench.train(job.name, wrapped, bench.settings.osf or bench.settings.lora)
        models[job.name] = wrapped.merge_and_unload()
        return fitted

    with bench.changing_backbone(shapes):
        matrix, fits = bench.learn_in_order(models, learn)
    whole = sum(4 * s.out_features * s.in_features for s in shapes.values())
    return bench.outcome(matrix, trainable, fits, StoredBytes(adapters=whole))


def _wrap(model: nn.Module, shapes: dict[str, ModuleShape], frozen: float, job: TaskJob) -> Any:
    """The model as PEFT's OSF has it, that part of the upper directions frozen."""
    peft = require("peft", "train")
    ranks = {m: max(1, int(frozen * min(s.out_features, s.in_features))) for m, s in shapes.items()}
    config = peft.OSFConfig(
        target_modules=list(shapes),
        modules_to_save=list(job.heads) or None,
        # PEFT matches a pattern with the end of a name: unanchored, one module's name would match
        # that of others that end alike.
        rank_pattern={rf"^{name}$".replace(".", r"\."): rank for name, rank in ranks.items()},
    )
    return peft.get_peft_model(model, config)
