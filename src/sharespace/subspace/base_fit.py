"""Whether tasks fit a base model: its modules must be there, and of the shapes of the updates.

What is asked is names and shapes alone, so that the same answer can be had wherever a task comes
in: from a model in memory, or from a list of its modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from sharespace.errors import MismatchError
from sharespace.subspace.adapter import ModuleShape
from sharespace.subspace.state import ShareModel

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
