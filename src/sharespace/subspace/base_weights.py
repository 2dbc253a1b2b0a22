"""Whether a base model is the one that a Share model belongs to: its modules and its weights.

Names and shapes of modules are asked in a form that a model in memory can answer as well as a list
of modules. Two base models of equal names and shapes (a model and what was made of it by more
training) are told apart by sampled values of their weights, and one model in float32 and in
bfloat16 is taken for the same: values agree where rounding to bfloat16 explains the difference
(docs/format.md, "base"). Weights that several modules share are given to each of them where a task
changes one. Nothing of PEFT or transformers is imported: PEFT's layers are told by what they offer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sharespace.errors import MismatchError
from sharespace.subspace.adapter import ModuleShape
from sharespace.subspace.state import ShareModel

ROWS = 8
"""Sampled rows of a weight, at most."""

COLUMNS = 16
"""Sampled columns of a weight, at most."""

# bfloat16 has 8 significant bits, so rounding moves a value by at most 2^-8 of itself. The other
# side may have been rounded to float16, which is an eighth of that.
_RELATIVE = 2**-8 * 1.125
# Half of the smallest number of float16: what is below it is 0 there.
_ABSOLUTE = 2**-25
_COMPARABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class BaseWeightsWarning(UserWarning):
    """Base weights could not be compared with those that a Share model's tasks belong to."""


def base_samples(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The samples of those modules whose base weights are at hand.

    Args:
        modules: adapted module -> the module, or PEFT's layer around it.
    """
    samples = {name: _sample(module) for name, module in modules.items()}
    return {name: sample for name, sample in samples.items() if sample is not None}


def _sample(module: nn.Module) -> Tensor | None:
    """A module's sample; None where its weight is quantised, offloaded, sharded or changed."""
    # Below PEFT's layers, of which a merged one has changed the weight.
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        if getattr(module, "merged_adapters", None):
            return None
        module = inner
    weight = getattr(module, "weight", None)
    # Quantised weights of torchao and sharded ones of FSDP are tensors of classes of their own.
    if not isinstance(weight, Tensor) or type(weight.data) is not Tensor:
        return None
    if weight.is_meta or weight.ndim < 2 or weight.dtype not in _COMPARABLE:
        return None
    # Conv1D of transformers (GPT-2) holds d x n.
    matrix = weight.mT if type(module).__name__ == "Conv1D" else weight.flatten(1)
    sample = sampled_rows(matrix)
    return sample if torch.isfinite(sample).all() else None


def checked_base(
    what: str, known: Mapping[str, Tensor], modules: Mapping[str, nn.Module]
) -> Mapping[str, Tensor]:
    """The samples of a model's base weights, which must be those of a Share model's base.

    What cannot be compared is said (``BaseWeightsWarning``), not refused.

    Args:
        what: the model, for errors.
        known: the Share model's samples; may be empty.
        modules: adapted module -> the module of the model.

    Returns:
        Adapted module -> sample, of the modules whose weights are at hand.

    Raises:
        MismatchError: a module's weight is that of another base model.
    """
    met = base_samples(modules)
    check_same_base(what, known, met)
    unknown = [name for name in modules if name not in met]
    if unknown:
        warnings.warn(
            f"{what}: whether its base weights are the Share model's cannot be checked in "
            f"{len(unknown)} of {len(modules)} modules, {unknown[0]!r} among them: they are "
            "quantised, merged, sharded or offloaded. Make sure that it is the same base model",
            BaseWeightsWarning,
            stacklevel=3,
        )
    return met


def with_samples(
    what: str, known: Mapping[str, Tensor], met: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The Share model's samples, and those of modules that it has none of.

    Raises:
        MismatchError: the weights are those of another base model.
    """
    return joined_samples(known, [(what, met)])


def sampled_rows(weight: Tensor) -> Tensor:
    """The sampled values of one module's base weight.

    Args:
        weight: n x d, as the module acts; a convolution's flattened.

    Returns:
        min(n, 8) x min(d, 16) in float32 on the CPU, at the rows floor((2 i + 1) n / 16) and the
        columns floor((2 j + 1) d / 32), or at all where there are fewer.
    """
    rows, columns = (
        torch.tensor(places, device=weight.device) for places in sample_places(*weight.shape)
    )
    picked = weight.detach().index_select(0, rows).index_select(1, columns)
    return picked.to(device="cpu", dtype=torch.float32).contiguous()


def sample_shape(out_features: int, in_features: int) -> tuple[int, int]:
    """Shape of what ``sampled_rows`` gives."""
    return min(out_features, ROWS), min(in_features, COLUMNS)


def sample_places(out_features: int, in_features: int) -> tuple[list[int], list[int]]:
    """Which rows and columns of an n x d weight are sampled."""
    return _positions(out_features, ROWS), _positions(in_features, COLUMNS)


def _positions(size: int, most: int) -> list[int]:
    """The middles of equal parts, not their beginnings: what stands first may be special."""
    count = min(size, most)
    return [(2 * i + 1) * size // (2 * count) for i in range(count)]


def same_base(first: Tensor, second: Tensor) -> bool:
    """Whether two samples of one module are those of one weight, each perhaps rounded."""
    if first.shape != second.shape:
        return False
    allowed = _RELATIVE * torch.maximum(first.abs(), second.abs()) + _ABSOLUTE
    return bool(((first - second).abs() <= allowed).all())


def differing_module(known: Mapping[str, Tensor], met: Mapping[str, Tensor]) -> str | None:
    """The first module, in the order of ``met``, of which two samples are not of one weight."""
    common = (module for module in met if module in known)
    return next((m for m in common if not same_base(known[m], met[m])), None)


def check_same_base(what: str, known: Mapping[str, Tensor], met: Mapping[str, Tensor]) -> None:
    """Refuse weights of another base model than those that are known.

    Args:
        what: whose weights ``met`` are, for the error.
        known: adapted module -> sample, as the Share model has them; may be empty.
        met: adapted module -> sample; modules that only one side has are not compared.

    Raises:
        MismatchError: a module's weight is another one.
    """
    module = differing_module(known, met)
    if module is not None:
        raise MismatchError(
            what,
            f"module {module!r} has other weights than in the Share model's base, though its shape "
            "is the same",
            "Use the base model that the Share model's tasks were trained on, in the same revision",
        )


def joined_samples(
    known: Mapping[str, Tensor], newcomers: Iterable[tuple[str, Mapping[str, Tensor]]]
) -> Mapping[str, Tensor]:
    """The known samples, and those of modules that newcomers bring.

    Args:
        newcomers: whose they are, for errors, and adapted module -> sample.

    Raises:
        MismatchError: one of them was made with another base model.
    """
    joined = known
    for what, met in newcomers:
        check_same_base(what, joined, met)
        added = {module: met[module] for module in met if module not in joined}
        if added:
            joined = {**joined, **added}
    return joined


BaseModules: TypeAlias = Callable[[str], "tuple[int, int] | None"]
"""Module -> its (n, d) in the base model; None: it is not there, or can have no update."""


def misfits(shapes: Mapping[str, ModuleShape], base: BaseModules) -> dict[str, MismatchError]:
    """Adapted modules that do not fit, each with the error that says why.

    Args:
        shapes: adapted module -> shape.
        base: the base model's modules.
    """
    errors = {}
    for module, shape in shapes.items():
        sides, wanted = base(module), (shape.out_features, shape.in_features)
        if sides == wanted:
            continue
        why = (
            "not in this model, or neither linear nor a convolution"
            if sides is None
            else f"is {sides} in this model, but {wanted} in the Share model"
        )
        errors[module] = MismatchError(
            f"module {module!r}", why, "Use the base model that the Share model was made for"
        )
    return errors


def misfit_tasks(model: ShareModel, base: BaseModules) -> dict[str, MismatchError]:
    """Tasks that adapt a module which does not fit, each with the error that says why.

    Where all modules of the Share model fit, no task's file is read.

    Args:
        model: its tasks and modules.
        base: the base model's modules.
    """
    wrong = misfits(model.shapes, base)
    if not wrong:
        return {}
    tasks = {}
    for name in model.tasks:
        modules = [module for module in model.task(name).coefficients if module in wrong]
        if modules:
            error = wrong[modules[0]]
            tasks[name] = MismatchError(f"task {name!r}, {error.what}", error.why, error.remedy)
    return tasks


def without_misfits(model: ShareModel, base: BaseModules) -> ShareModel:
    """The model without the modules that do not fit and the tasks that adapt one of them."""
    wrong = misfits(model.shapes, base)
    if not wrong:
        return model
    fitting = {name: layer for name, layer in model.layers.items() if name not in wrong}
    return model.without_tasks(*misfit_tasks(model, base)).with_layers(fitting)


def untie(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Give modules weights of their own where other modules share them.

    A task's update of one of them is merged into a weight of its own: added to the common weight it
    would act in the other modules, too (huggingface/peft#2018, transformers#45127).

    The configuration then says that the embeddings are not tied: transformers would tie them again
    when the model is loaded.

    Args:
        model: the base model, changed in place; what it computes stays the same.
        paths: of tensors or modules that will be changed; what is not in the model is left out.

    Returns:
        The weights that are no longer shared.
    """
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    modules = dict(model.named_modules(remove_duplicate=False))
    changed: set[str] = set()
    for path in paths:
        while path and path not in modules:
            path = path.rpartition(".")[0]
        if path:
            own = modules[path].named_parameters(path, remove_duplicate=False)
            changed.update(name for name, _ in own)
    untied = []
    for name in sorted(changed):
        parent, _, own_name = name.rpartition(".")
        parameter = modules[parent].get_parameter(own_name)
        others = owners.get(id(parameter), set()) - {name}
        # The same module under two names is one module, whose update acts in both places anyhow.
        if any(modules[o.rpartition(".")[0]] is not modules[parent] for o in others):
            new = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            setattr(modules[parent], own_name, new)
            untied.append(name)
    return untied


def say_untied(model: nn.Module) -> None:
    """Make the configuration say whether input and output embeddings are tied, as they now are."""
    inputs, outputs = (
        getattr(find(), "weight", None) if callable(find := getattr(model, name, None)) else None
        for name in ("get_input_embeddings", "get_output_embeddings")
    )
    if inputs is None or outputs is None or inputs is outputs:
        return
    config: object = getattr(model, "config", None)
    find_text = getattr(config, "get_text_config", None)
    for one in (config, find_text() if callable(find_text) else None):
        if getattr(one, "tie_word_embeddings", False):
            setattr(one, "tie_word_embeddings", False)  # noqa: B010
