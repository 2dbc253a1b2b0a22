"""One feature vector an input, from hidden states of the base model.

Which layer matters more than anything else in the router. MiniLM (6 layers) on 6, 10 and 14 text
tasks: the middle layer routes 94 to 95 % right, the last one, where wording has given way to
meaning, 83 to 85 % (experiments/text_stream/results/router.json).

The base model as the router sees it: adapters off, evaluation mode, no gradients, one device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from sharespace.errors import OptionError

Pooling = Literal["mean", "first", "last"]
"""Over the tokens that are not padding: their mean, the first one (BERT's [CLS]), the last one
(models that read from left to right)."""

Layer: TypeAlias = int | Literal["middle", "last"]
"""Index into transformers' ``hidden_states`` (0: the embeddings), or the middle one of them, or the
model's output as it comes."""


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return _at(hidden, mask.argmax(dim=1))


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return _at(hidden, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1))


_POOLINGS = {"mean": _mean, "first": _first, "last": _last}

Batch: TypeAlias = Mapping[str, Any]
"""Keyword arguments of the model's forward; ``attention_mask`` [inputs, tokens] where there is
padding."""


def features(
    model: Module,
    batches: Iterable[Batch],
    *,
    pooling: Pooling = "mean",
    layer: Layer | Sequence[Layer] = "middle",
) -> Tensor:
    """Pooled hidden states of the base model.

    A PeftModel's adapters are off meanwhile, so that the features do not depend on the task that
    is active; the model's training mode is left as it was.

    Args:
        model: a transformers model; for ``layer="last"`` also any module whose output is a
            tensor or has ``last_hidden_state``: [inputs, tokens, d], or pooled to [inputs, d].
        batches: keyword arguments of its forward.
        pooling: how tokens become one vector.
        layer: whose states; of several layers the vectors are put side by side.

    Returns:
        float32 [inputs, d] on the CPU, in the order of the batches (d times the number of layers).

    Raises:
        OptionError: no batch, an unknown pooling, or an output without the states.
    """
    if pooling not in _POOLINGS:
        raise OptionError(f"pooling {pooling!r}", "unknown", f"One of {sorted(_POOLINGS)}")
    layers = (layer,) if isinstance(layer, int | str) else tuple(layer)
    asked = _asked(model, layers)
    pooled = []
    with as_base(model):
        for batch in batches:
            moved = on_device(model, batch)
            output = model(**{**moved, **asked})
            states = [_pooled(_hidden(output, chosen), moved, pooling) for chosen in layers]
            pooled.append(torch.cat(states, dim=1))
    if not pooled:
        raise OptionError("batches", "there is none", "Give at least one batch of inputs")
    return torch.cat(pooled).clone()  # outside of inference mode: a tensor like any other


def _asked(model: Module, layers: Sequence[Layer]) -> dict[str, bool]:
    """What the forward is asked for besides its inputs."""
    unknown = [x for x in layers if isinstance(x, str) and x not in ("middle", "last")]
    if unknown or not layers:
        what = f"layer {unknown[0]!r}" if unknown else "layer"
        raise OptionError(what, "not a layer", 'Use an index, "middle" or "last"')
    inner = [layer for layer in layers if layer != "last"]
    if inner and not hasattr(model, "config"):
        why = f"a {type(model).__name__} is no transformers model"
        raise OptionError(f"layer {inner[0]!r}", why, 'Use layer="last"')
    return {"output_hidden_states": True} if inner else {}


def _pooled(hidden: Tensor, batch: Batch, pooling: Pooling) -> Tensor:
    if hidden.ndim == 2:
        return hidden.float().cpu()
    if hidden.ndim != 3:
        why = f"{hidden.ndim} dimensions, not [inputs, tokens, d] or [inputs, d]"
        raise OptionError("hidden states", why, "Pool them in the model, to one vector an input")
    return _POOLINGS[pooling](hidden.float(), token_mask(batch, hidden)).cpu()


def _hidden(output: Any, layer: Layer) -> Tensor:
    if layer == "last":
        found = getattr(output, "last_hidden_state", output)
        if isinstance(found, Tensor):
            return found
        why = f"a {type(output).__name__} has no last_hidden_state"
        raise OptionError("the model's output", why, "Give the encoder (AutoModel)")
    states: Sequence[Tensor] = getattr(output, "hidden_states", None) or ()
    index = len(states) // 2 if layer == "middle" else layer
    if not -len(states) <= index < len(states):
        why = f"the model gives {len(states)} hidden states"
        raise OptionError(f"layer {layer!r}", why, 'Use one of them, or layer="last"')
    return states[index]


def _at(hidden: Tensor, position: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), position]


@contextmanager
def as_base(model: Module) -> Iterator[None]:
    """The model in evaluation mode, with the adapters of a PeftModel off; left as it was."""
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        adapters_off: Any = getattr(model, "disable_adapter", None)
        if adapters_off is not None:  # a PeftModel
            stack.enter_context(adapters_off())
        stack.enter_context(torch.inference_mode())
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():  # one by one: parts may be frozen in eval mode
                module.training = training


def base_modules(model: Module) -> dict[str, Module]:
    """The modules by their paths in the base model, also where a PeftModel is around it."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    return dict(base.named_modules())


def on_device(model: Module, batch: Batch) -> dict[str, Any]:
    """The batch where the model's first parameter is."""
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    return {key: v.to(device) if isinstance(v, Tensor) else v for key, v in batch.items()}


def token_mask(batch: Batch, tokens: Tensor) -> Tensor:
    """1 for each token that counts, 0 for padding, as ``tokens`` [inputs, tokens, d] has them.

    Raises:
        OptionError: the batch's mask has another shape, or leaves an input without a token.
    """
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones(tokens.shape[:2], device=tokens.device)
    if mask.shape != tokens.shape[:2]:
        why = f"shape {tuple(mask.shape)}, while the tokens are {tuple(tokens.shape[:2])}"
        raise OptionError("attention_mask", why, "Give one value for each token of each input")
    if not bool(mask.any(dim=1).all()):
        raise OptionError("attention_mask", "an input has no token", "Leave empty inputs out")
    on: Tensor = mask.to(tokens.device, torch.float32)
    return on
