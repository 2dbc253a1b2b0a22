"""A base model made ready to learn a new task in a Share model's subspace.

Also what a module, linear or a convolution, makes of its inputs in a few directions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, cast

from torch import Tensor, nn
from torch.nn import functional

from sharespace.errors import MismatchError, OptionError, TaskExistsError, TaskNotFoundError
from sharespace.extras import require
from sharespace.learn.settings import TaskMethod
from sharespace.protocols import AdapterConfig, PeftModel
from sharespace.share import Share
from sharespace.subspace.adapter import LayerUpdate, names_differ
from sharespace.subspace.base_weights import BaseWeightsWarning, checked_base
from sharespace.subspace.state import check_new_names


@dataclass(frozen=True)
class Trainable:
    """How many numbers a training changes, by what they belong to."""

    coefficients: int
    """E and F, or the cores; and the weights of known tasks."""
    temporary: int
    """Temporary directions, and updates that are stored per task."""
    heads: int
    """Modules that are trained whole."""

    @property
    def total(self) -> int:
        """Sum of all of them."""
        return self.coefficients + self.temporary + self.heads


def prepare(
    model: nn.Module, share: Share, task: str, method: TaskMethod | None = None
) -> PeftModel:
    """A ``PeftModel`` over the base model with the new task, ready for any training loop.

    What is refused leaves the model as it was.

    Args:
        model: the base model; PEFT puts its layers into it.
        share: the subspace, and the tasks that ``method.start`` may name.
        task: the new task's name.
        method: pseudo-rank, temporary directions, start, heads; None: the defaults, from zero.
            What needs data is left to ``adapt``: ``start="auto"`` is refused, and directions are
            random until ``choose_directions`` places them.

    Raises:
        TaskExistsError: the Share model knows the task (``finetune`` trains it on).
        TaskNotFoundError: ``method.start`` names no known task.
        MismatchError: the model is not the Share model's base, or has PEFT layers already.
        OptionError: no new task may have that name; or a head is not in the model, or is in the
            subspace.
        MissingExtraError: PEFT or transformers is not installed.
    """
    method = method or TaskMethod(start="zero")
    if method.known and method.known < len(share.tasks):
        raise OptionError(
            f"known={method.known}",
            f"which of the {len(share.tasks)} known tasks these are needs data to decide by",
            "Use adapt",
        )
    return with_mixture(model, share, task, method, share.tasks if method.known else ())


def with_mixture(
    model: nn.Module, share: Share, task: str, method: TaskMethod, mixture: Sequence[str]
) -> PeftModel:
    """``prepare`` with the known tasks whose weights are trained; see there."""
    from sharespace.tuner import ShareConfig, publish

    if task in share.tasks:
        raise TaskExistsError(
            f"task {task!r}",
            "the Share model knows it already",
            "finetune trains a known task on; remove it first to learn it anew",
        )
    check_new_names([task], ())
    heads = heads_of(model, share, method)
    config = ShareConfig(
        share=publish(share.model),
        task=task,
        p=method.p,
        phi=method.phi,
        form=method.form,
        start=method.start,
        known=list(mixture) or None,
        modules_to_save=list(heads) or None,
        dropout=method.dropout,
        seed=method.seed,
        task_type=method.task_type,
        component=method.component,
    )
    _check_start(share, method.start)
    check_base(model, share, share.model.layers, method.component)
    _check_heads(model, share, heads, method.component)
    return wrapped(model, config)


def wrapped(model: nn.Module, config: AdapterConfig) -> PeftModel:
    """PEFT's own ``get_peft_model``; it puts layers into the model in place."""
    made: PeftModel = require("peft", "train").get_peft_model(model, config)
    return made


@contextmanager
def released(peft_model: PeftModel, *, always: bool = False) -> Iterator[PeftModel]:
    """Take PEFT's layers out of the base model where the block fails, or always.

    PEFT puts its layers into the model that it is given: after a failure the caller has that model
    and nothing to release it with.
    """
    from sharespace.tuner import release

    try:
        yield peft_model
    except BaseException:
        release(peft_model)
        raise
    if always:
        release(peft_model)


def count_trainable(model: nn.Module) -> Trainable:
    """Numbers that require a gradient, by kind."""
    counts = {"coefficients": 0, "temporary": 0, "heads": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[_kind(name)] += parameter.numel()
    return Trainable(**counts)


def _kind(name: str) -> str:
    if any(part in name for part in ("_coefficients.", "sharespace_core.", "_known_weights.")):
        return "coefficients"
    return "temporary" if "_temporary." in name else "heads"


def check_base(
    model: nn.Module, share: Share, modules: Iterable[str], component: str | None
) -> None:
    """Refuse what is not the Share model's base, before PEFT changes anything in it.

    Raises:
        MismatchError: a module is not there, has another shape or the weights of another base
            model, or PEFT is in it already.
    """
    layer_class = require("peft.tuners.tuners_utils", "train").BaseTunerLayer
    if any(isinstance(m, layer_class) for m in model.modules()):
        raise MismatchError(
            f"model {type(model).__name__}",
            "has PEFT layers already",
            "Give the base model; sharespace.tuner.release(peft_model) brings it back",
        )
    prefix = f"{component}." if component else ""
    shapes = {name.removeprefix(prefix): share.model.layers[name].shape for name in modules}
    check_sides(model, {m: (s.out_features, s.in_features) for m, s in shapes.items()})
    from sharespace.tuner.modules import bare_names

    modules_by_name = bare_names(model)
    by_name = {prefix + name: modules_by_name[name] for name in shapes}
    checked_base(f"model {type(model).__name__}", share.model.base_samples, by_name)
    if not share.model.base_samples:
        _warn_of_another_name(model, share)


def _warn_of_another_name(model: nn.Module, share: Share) -> None:
    """Names are all there is to compare until the first weights are known; they may be a mirror's,
    so that this is no reason to refuse."""
    name = getattr(model, "name_or_path", None) or None
    known = share.model.base.id
    if names_differ(name, known) and not Path(str(name)).is_dir():
        warnings.warn(
            f"the model is {name!r}, but the Share model's base {known!r}, and no weights are "
            "known yet that would tell whether both are the same. Make sure of it: the weights of "
            "this model will be recorded as the base's",
            BaseWeightsWarning,
            stacklevel=4,
        )


def check_sides(model: nn.Module, expected: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a model that lacks a module, or has it with other sides (n, d).

    Raises:
        MismatchError: a module is missing, has other sides, or is of a kind without any.
    """
    from sharespace.tuner.modules import bare_names
    from sharespace.tuner.subspace_layer import sides

    known = bare_names(model)
    for name, wanted in expected.items():
        actual = sides(known[name]) if name in known else None
        if actual != wanted:
            why = f"is {actual[0]}x{actual[1]} here" if actual else "is not in this model"
            raise MismatchError(
                f"module {name!r} ({wanted[0]}x{wanted[1]})",
                why,
                "Use the base model that the Share model and its adapters belong to",
            )


def _check_start(share: Share, start: str) -> None:
    if start == "auto":
        raise OptionError("start 'auto'", "needs data to decide by", "Use adapt, or name a start")
    if start not in ("zero", "mean"):
        try:
            share.task(start)
        except TaskNotFoundError as error:
            raise TaskNotFoundError(
                f"start {start!r}", "neither 'auto', 'zero', 'mean' nor a task", error.remedy
            ) from None


def heads_of(model: nn.Module, share: Share, method: TaskMethod) -> tuple[str, ...]:
    """Modules that are trained whole: those that the method names, or all that the model has beside
    its backbone, outside of the subspace.

    The backbone is what transformers calls ``base_model_prefix``; in a model without one the heads
    are those of its modules ``classifier`` and ``score`` that are there. Models that generate, or
    give features only, have none.

    Args:
        model: the base model.
        share: a module that it has directions for, or a part of one, is no head.
        method: its ``heads``, ``task_type`` and ``component``.
    """
    from sharespace.tuner.modules import bare

    if method.heads is not None:
        return tuple(method.heads)
    model = bare(model)
    outputs = getattr(model, "get_output_embeddings", None)
    generates = callable(outputs) and outputs() is not None
    if method.task_type in _WITHOUT_HEADS or generates:
        return ()
    children = dict(model.named_children())
    backbone = getattr(model, "base_model_prefix", None)
    named = children.keys() - {backbone} if backbone in children else {"classifier", "score"}
    prefix = f"{method.component}." if method.component else ""
    adapted = [f"{name}." for name in share.model.layers]
    return tuple(
        name
        for name, child in children.items()
        if name in named
        and any(True for _ in child.parameters())
        and not any(module.startswith(f"{prefix}{name}.") for module in adapted)
    )


_WITHOUT_HEADS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")
"""PEFT's kinds of tasks that train nothing beside the adapter."""


def _check_heads(
    model: nn.Module, share: Share, heads: Sequence[str], component: str | None
) -> None:
    from sharespace.tuner.modules import bare_names

    known = bare_names(model)
    prefix = f"{component}." if component else ""
    for name in heads:
        if name not in known:
            raise OptionError(
                f"head {name!r}", "not in this model", "Name its module in heads; () is none"
            )
        if prefix + name in share.model.layers:
            raise OptionError(f"head {name!r}", "is in the subspace", "Leave it out of heads")


def is_convolution(module: nn.Module) -> TypeGuard[nn.modules.conv._ConvNd]:
    """True for ``nn.Conv1d`` to ``nn.Conv3d``; Conv1D of transformers is linear."""
    return isinstance(module, nn.modules.conv._ConvNd)


def is_grouped(module: nn.Module) -> bool:
    """True for a convolution in groups: its outputs do not see the same inputs."""
    return is_convolution(module) and module.groups > 1


def coordinates(module: nn.Module, directions: Tensor, x: Tensor) -> Tensor:
    """The inputs in some directions: positions x r, for example batch x tokens x r.

    Args:
        module: linear, Conv1D, or a convolution without groups.
        directions: r x d, in the inputs' dtype and on their device.
        x: what the module is given.
    """
    if not is_convolution(module):
        return functional.linear(x, directions)
    kernel = directions.reshape(-1, *module.weight.shape[1:])
    # The module's own function, as it knows its stride, padding and padding mode.
    return convolved(module, x, kernel).movedim(1, -1)


def convolved(module: nn.modules.conv._ConvNd, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution with another weight and without bias."""
    forward = cast(Callable[[Tensor, Tensor, None], Tensor], module._conv_forward)
    return forward(x, weight, None)


def as_output(module: nn.Module, values: Tensor) -> Tensor:
    """positions x n, features last, in the layout of the module's output."""
    return values.movedim(-1, 1) if is_convolution(module) else values


def update_output(module: nn.Module, update: LayerUpdate, x: Tensor) -> Tensor:
    """dW x in the layout of the module's output, without the n x d matrix where that is possible.

    Args:
        update: its factors in the inputs' dtype and on their device.
    """
    if is_convolution(module) and module.groups > 1:
        delta = (update.scaling * update.up @ update.down).reshape(module.weight.shape)
        return convolved(module, x, delta)
    hidden = update.scaling * coordinates(module, update.down, x)
    return as_output(module, functional.linear(hidden, update.up))
