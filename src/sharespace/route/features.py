"""One feature vector for each input, and what the router remembers of a task's features.

``features`` pools hidden states of the base model; ``Statistics`` keeps their number, mean and
scatter, and never an input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from sharespace.errors import MismatchError, OptionError

Pooling = Literal["mean", "first", "last"]
"""How tokens become one vector: the mean of those that are not padding, the first of them (BERT's
[CLS]), or the last of them (models that read from left to right)."""

Layer: TypeAlias = int | Literal["middle", "last"]
"""Index into transformers' ``hidden_states`` (0: the embeddings), the middle one of them, or the
model's output as it comes."""

ModelInputs: TypeAlias = Mapping[str, object]
"""Keyword arguments of the model's forward; ``attention_mask`` [inputs, tokens] where there is
padding."""


def features(
    model: Module,
    batches: Iterable[ModelInputs],
    *,
    pooling: Pooling = "mean",
    # MiniLM (6 layers) on 6, 10 and 14 text tasks: the middle layer routes 94 to 95 % of the inputs
    # right, the last one, where wording has given way to meaning, 83 to 85 %
    # (experiments/text_stream/results/router.json). No other choice here matters as much.
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
        layer: the layer whose states are pooled; vectors of several layers stand side by side.

    Returns:
        float32 [inputs, d] on the CPU, in the order of the batches (d times the number of layers).

    Raises:
        OptionError: there is no batch, the pooling or the layer is unknown, or the output lacks the
            hidden states.
    """
    if pooling not in _POOLINGS:
        raise OptionError(f"pooling {pooling!r}", "unknown", f"One of {sorted(_POOLINGS)}")
    layers = (layer,) if isinstance(layer, int | str) else tuple(layer)
    output_options = _output_options(model, layers)
    pooled = []
    with base_model_only(model):
        for batch in batches:
            inputs = on_device(model, batch)
            output = model(**{**inputs, **output_options})
            states = [_pooled(_hidden(output, index), inputs, pooling) for index in layers]
            pooled.append(torch.cat(states, dim=1))
    if not pooled:
        raise OptionError("batches", "there is none", "Give at least one batch of inputs")
    # A copy made outside of inference mode: autograd refuses to save an inference tensor, and a
    # user may train on the features.
    return torch.cat(pooled).clone()


def _output_options(model: Module, layers: Sequence[Layer]) -> dict[str, bool]:
    """The arguments that make the forward return the wanted hidden states."""
    unknown = [x for x in layers if isinstance(x, str) and x not in ("middle", "last")]
    if unknown or not layers:
        what = f"layer {unknown[0]!r}" if unknown else "layer"
        raise OptionError(what, "not a layer", 'Use an index, "middle" or "last"')
    inner = [layer for layer in layers if layer != "last"]
    if inner and not hasattr(model, "config"):
        why = f"a {type(model).__name__} is no transformers model"
        raise OptionError(f"layer {inner[0]!r}", why, 'Use layer="last"')
    return {"output_hidden_states": True} if inner else {}


def _hidden(output: object, layer: Layer) -> Tensor:
    if layer == "last":
        last = getattr(output, "last_hidden_state", output)
        if isinstance(last, Tensor):
            return last
        why = f"a {type(output).__name__} has no last_hidden_state"
        raise OptionError("the model's output", why, "Give the encoder (AutoModel)")
    states: Sequence[Tensor] = getattr(output, "hidden_states", None) or ()
    index = len(states) // 2 if layer == "middle" else layer
    if not -len(states) <= index < len(states):
        why = f"the model gives {len(states)} hidden states"
        raise OptionError(f"layer {layer!r}", why, 'Use one of them, or layer="last"')
    return states[index]


def _pooled(hidden: Tensor, inputs: ModelInputs, pooling: Pooling) -> Tensor:
    """[inputs, d] of hidden states [inputs, tokens, d]; vectors that are pooled already pass."""
    if hidden.ndim == 2:
        return hidden.float().cpu()
    if hidden.ndim != 3:
        why = f"{hidden.ndim} dimensions, not [inputs, tokens, d] or [inputs, d]"
        raise OptionError("hidden states", why, "Pool them in the model, to one vector an input")
    # Summed in float32 also where the model runs in float16, whose range ends at 65504.
    return _POOLINGS[pooling](hidden.float(), token_mask(inputs, hidden)).cpu()


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    # argmax gives the first of equal maxima, so this finds the first real token on either side of
    # the padding.
    return _at(hidden, mask.argmax(dim=1))


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return _at(hidden, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1))


def _at(hidden: Tensor, position: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), position]


_POOLINGS = {"mean": _mean, "first": _first, "last": _last}


@contextmanager
def base_model_only(model: Module) -> Iterator[None]:
    """The model in evaluation mode, with the adapters of a PeftModel off; left as it was.

    Args:
        model: a base model, or a PeftModel around one.
    """
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        adapters_off: Any = getattr(model, "disable_adapter", None)
        if adapters_off is not None:  # Only a PeftModel has adapters to turn off.
            stack.enter_context(adapters_off())
        stack.enter_context(torch.inference_mode())
        model.eval()
        try:
            yield
        finally:
            # One module at a time, because ``model.train()`` would also wake parts that the user
            # has frozen in evaluation mode, such as batch normalisation.
            for module, training in modes.items():
                module.training = training


def base_modules(model: Module) -> dict[str, Module]:
    """The modules by their paths in the base model, also where a PeftModel is around it.

    Args:
        model: a base model, or a PeftModel around one.
    """
    base: Any = getattr(model, "get_base_model", lambda: model)()
    return dict(base.named_modules())


def on_device(model: Module, batch: ModelInputs) -> dict[str, object]:
    """The batch on the device of the model's first parameter; a model without any is on the CPU.

    Args:
        model: where the batch is to go.
        batch: the model's arguments by name.
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    return {key: v.to(device) if isinstance(v, Tensor) else v for key, v in batch.items()}


def token_mask(batch: ModelInputs, tokens: Tensor) -> Tensor:
    """float32 [inputs, tokens]: 1 for each token that counts, 0 for padding.

    Args:
        batch: keyword arguments of the model's forward, with ``attention_mask`` or without padding.
        tokens: [inputs, tokens, d], the states that the mask is for.

    Raises:
        OptionError: the batch's mask has another shape, or leaves an input without a token.
    """
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones(tokens.shape[:2], device=tokens.device)
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape[:2]:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        why = f"shape {shape}, while the tokens are {tuple(tokens.shape[:2])}"
        raise OptionError("attention_mask", why, "Give one value for each token of each input")
    # The mean of no tokens would be 0 / 0: NaN features, found only much later.
    if not bool(mask.any(dim=1).all()):
        raise OptionError("attention_mask", "an input has no token", "Leave empty inputs out")
    return mask.to(tokens.device, torch.float32)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Number, mean and scatter of one task's features.

    They are sufficient for a Gaussian. Two sets of inputs are put together by the parallel update
    of Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances" (1979), all in float64.
    """

    count: int
    """Number of inputs seen."""
    mean: Tensor
    """Mean of their features, float64 [d]."""
    scatter: Tensor
    """float64 [d, d], exactly symmetric: sum over the inputs of (x - mean)(x - mean)^T."""

    def __post_init__(self) -> None:
        d = len(self.mean) if self.mean.ndim == 1 else 0
        fits = d > 0 and self.scatter.shape == (d, d) and self.count > 0
        if not fits or {self.mean.dtype, self.scatter.dtype} != {torch.float64}:
            why = (
                f"count {self.count}, mean {tuple(self.mean.shape)} {self.mean.dtype}, "
                f"scatter {tuple(self.scatter.shape)} {self.scatter.dtype}"
            )
            raise OptionError("statistics", why, "Make them with Statistics.from_features")

    @classmethod
    def from_features(cls, features: Tensor) -> Statistics:
        """Statistics of features.

        Args:
            features: [inputs, d] of any float dtype, from ``features``.

        Raises:
            OptionError: there are no inputs, it is not a matrix, or a value is not finite.
        """
        if features.ndim != 2 or not features.numel():
            why = f"shape {tuple(features.shape)}, not [inputs, d]"
            raise OptionError("features", why, "Give one row for each input")
        if not bool(torch.isfinite(features).all()):
            raise OptionError("features", "not all are finite", "Look at the model and its inputs")
        # In float64, and about the mean: a sum of squares minus a squared sum cancels where the
        # mean is far from zero.
        x = features.detach().cpu().double()
        mean = x.mean(dim=0)
        centred = x - mean
        return cls(len(x), mean, _symmetric(centred.mT @ centred))

    @property
    def dimension(self) -> int:
        """Length d of a feature vector."""
        return len(self.mean)

    def add(self, other: Statistics) -> Statistics:
        """Statistics of both sets of inputs together.

        Args:
            other: statistics of other inputs, of the same dimension.

        Raises:
            MismatchError: the features have another dimension.
        """
        check_dimension("statistics", other.dimension, self.dimension)
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = (self.count * self.mean + other.count * other.mean) / count
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        return Statistics(count, mean, self.scatter + other.scatter + between)


def check_dimension(what: str, dimension: int, wanted: int) -> None:
    """Refuse features of another dimension.

    Args:
        what: whose features they are, for the error.
        dimension: length of a feature vector that is given.
        wanted: length that fits.

    Raises:
        MismatchError: ``dimension`` is not ``wanted``.
    """
    if dimension != wanted:
        raise MismatchError(
            what,
            f"dimension {dimension}, while the router's features have {wanted}",
            "Take all features from the same base model, in the same way",
        )


def _symmetric(matrix: Tensor) -> Tensor:
    """The lower triangle, mirrored: a product is symmetric only up to rounding."""
    # A router's file holds the lower triangle alone, and gives back the same bits.
    lower = matrix.tril()
    return lower + lower.tril(-1).mT
