"""Weights that several modules of a base model share, such as those of input and output embeddings.

A task's update of one of them is merged into a weight of its own: added to the common weight it
would act in the other modules, too (huggingface/peft#2018, transformers#45127).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def untie(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Give modules weights of their own where other modules share them.

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
