"""The layers of the PEFT method: a frozen module plus tasks' updates in one subspace.

::

    h = W0 x + s [beta, beta'] [E; e] ([F; f]^T [alpha, alpha']^T x)         form "factors"
    h = W0 x + s [beta, beta'] [E; e] C ([F; f]^T [alpha, alpha']^T x)       form "core"

W0, beta and alpha are frozen, beta and alpha are shared by all adapters of the layer; E, F, e, f
and the temporary directions beta', alpha' belong to one adapter. In the form "core" only C (p x p)
is trained, and [E; e], [F; f] say which p directions it works in. An adapter that starts from known
tasks has s sum over j of a_j dW_j x beside, with frozen dW_j and weights a_j that may be trained
(``KnownUpdates``): more columns of the same two factors. The factors are multiplied out
before they meet the inputs, so that a row costs what it costs in a LoRA of rank p, whatever k is;
only in training the right one may take the way through alpha^T x, which saves memory.
Kaushik et al., arXiv 2602.06043, section 3; docs/method.md, "Training forms".
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from torch.nn import functional

from sharespace.errors import MismatchError, OptionError
from sharespace.linalg.updates import compacted, product_energy
from sharespace.subspace.adapter import LayerUpdate
from sharespace.tuner.modules import device_of, is_transposed, refuse_other_bases
from sharespace.tuner.start import KnownUpdates, StartValues

_NARROW_RATIO = 4
"""The way through alpha^T x is taken where x is at least this many times wider."""

_LEFT, _RIGHT = "sharespace_left_coefficients", "sharespace_right_coefficients"

_NEW_LEFT, _NEW_RIGHT = "sharespace_left_temporary", "sharespace_right_temporary"

_CORE = "sharespace_core"

_KNOWN = (
    "sharespace_known_left",
    "sharespace_known_right",
    "sharespace_known_left_outside",
    "sharespace_known_right_outside",
)
"""The factors of ``KnownUpdates``, by its fields' names."""

_KNOWN_WEIGHTS = "sharespace_known_weights"

BASE = "__base__"
"""PEFT's name for the base model without any adapter."""


class SubspaceLayer(BaseTunerLayer):
    """What all kinds of layers have in common; see PEFT's ``BaseTunerLayer``."""

    adapter_layer_names = (_LEFT, _RIGHT, _NEW_LEFT, _NEW_RIGHT, _CORE, *_KNOWN, _KNOWN_WEIGHTS)
    other_param_names = ("sharespace_dropout", "scaling")

    training: bool
    left_basis: Tensor
    """beta, n x k_left; a buffer that all adapters of the layer share."""
    right_basis: Tensor
    """alpha, d x k_right; a buffer as well."""

    def __init__(self, base_layer: nn.Module, left_basis: Tensor, right_basis: Tensor) -> None:
        self.base_layer = base_layer
        self.sharespace_left_coefficients = nn.ParameterDict({})
        self.sharespace_right_coefficients = nn.ParameterDict({})
        self.sharespace_left_temporary = nn.ParameterDict({})
        self.sharespace_right_temporary = nn.ParameterDict({})
        self.sharespace_core = nn.ParameterDict({})
        self.sharespace_known_left = nn.ParameterDict({})
        self.sharespace_known_right = nn.ParameterDict({})
        self.sharespace_known_left_outside = nn.ParameterDict({})
        self.sharespace_known_right_outside = nn.ParameterDict({})
        self.sharespace_known_weights = nn.ParameterDict({})
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.sharespace_dropout = nn.ModuleDict({})
        self.scaling: dict[str, float] = {}
        self.routing: RowAdapters | None = None
        self.out_features, self.in_features = sides(self.get_base_layer())
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        device = self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        # Their names must not contain the method's prefix: transformers rewrites such keys.
        self.register_buffer("left_basis", left_basis.to(device).contiguous())
        self.register_buffer("right_basis", right_basis.to(device).contiguous())
        self._register_load_state_dict_pre_hook(refuse_other_bases, with_module=True)

    def update_layer(
        self, name: str, values: StartValues, *, dropout: float, inference_mode: bool
    ) -> None:
        """Add an adapter, or replace the one of that name.

        Args:
            name: name of the adapter in the model.
            values: coefficients, temporary directions, core and known tasks' updates to begin
                with; they are copied.
            dropout: probability with which an input of the update is zeroed in training.
            inference_mode: True: the adapter is not trained.
        """
        for attribute in self.adapter_layer_names:
            if name in (by_name := getattr(self, attribute)):
                del by_name[name]
        self.sharespace_left_coefficients[name] = _parameter(values.left_coefficients)
        self.sharespace_right_coefficients[name] = _parameter(values.right_coefficients)
        if values.left_temporary.shape[1]:
            self.sharespace_left_temporary[name] = _parameter(values.left_temporary)
        if values.right_temporary.shape[1]:
            self.sharespace_right_temporary[name] = _parameter(values.right_temporary)
        frozen: tuple[str, ...] = ()
        if values.core is not None:
            self.sharespace_core[name] = _parameter(values.core)
            frozen = (_LEFT, _RIGHT, _NEW_LEFT, _NEW_RIGHT)
        if values.known is not None:
            frozen += self._put_known(name, values.known)
        self.frozen_peft_weight_names.pop(name, None)
        if frozen:
            self.frozen_peft_weight_names[name] = frozen
        self.sharespace_dropout[name] = nn.Dropout(dropout) if dropout else nn.Identity()
        # 1 and not lora_alpha / r: coefficients carry their own scale. PEFT and diffusers set it.
        self.scaling[name] = 1.0
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _put_known(self, name: str, known: KnownUpdates) -> tuple[str, ...]:
        """Put known tasks' updates in place; the names of those parameters that stay frozen."""
        factors = (known.left, known.right, known.left_outside, known.right_outside)
        for attribute, factor in zip(_KNOWN, factors, strict=True):
            if factor.shape[1]:
                getattr(self, attribute)[name] = _parameter(factor)
        self.sharespace_known_weights[name] = _parameter(known.weights)
        return _KNOWN if known.trained else (*_KNOWN, _KNOWN_WEIGHTS)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """To the base layer's device, in float32 as it is.

        PEFT's goes through the base layer's dtype: in 16 bits that rounds the coefficients of known
        tasks, and makes new parameters, so that what is frozen would be trained.
        """
        target = device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        for parameter in self._parameters_of(adapter_name):
            if target is not None and parameter.device.type != "meta":
                parameter.data = parameter.data.to(target)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[Any, Any]:
        """PEFT's, but where offloaded weights compute; on the CPU for a base that has none yet."""
        device, dtype = super()._get_base_layer_device_and_dtype(base_layer)
        if device is not None and device.type == "meta":
            device = device_of(base_layer) or torch.device("cpu")
        return device, dtype

    def cast(self, adapter_name: str, dtype: torch.dtype) -> None:
        """Keep an adapter's parameters in another dtype; they stay the same objects.

        Args:
            adapter_name: name of the adapter in the model.
            dtype: floating-point dtype.
        """
        for parameter in self._parameters_of(adapter_name):
            parameter.data = parameter.data.to(dtype)

    def _parameters_of(self, adapter_name: str) -> list[nn.Parameter]:
        dictionaries = (getattr(self, name) for name in self.adapter_layer_names)
        return [by_name[adapter_name] for by_name in dictionaries if adapter_name in by_name]

    @property
    def innermost(self) -> Any:
        """The module of the base model, below other tuners' layers if there are any."""
        return self.get_base_layer()

    def has(self, name: str) -> bool:
        """True where this layer is adapted by that adapter.

        Args:
            name: name of an adapter in the model.
        """
        return name in self.sharespace_left_coefficients

    def coefficients(self, name: str) -> tuple[Tensor, Tensor]:
        """The coefficients in the bases and the adapter's temporary directions.

        Args:
            name: name of an adapter of this layer.

        Returns:
            [E; e] C, (k_left + phi_left) x p, and [F; f], (k_right + phi_right) x p.
        """
        left = self.sharespace_left_coefficients[name]
        if name in self.sharespace_core:
            left = left @ self.sharespace_core[name]
        return left, self.sharespace_right_coefficients[name]

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """(B^, A^): n x p and d x p with dW = B^ A^^T, in the dtype of the coefficients.

        Args:
            name: name of an adapter of this layer.
        """
        return self._left(name), self._right(name)

    def _left(self, name: str, *, exact: bool = False) -> Tensor:
        """Left factor; ``exact``: float64 on the CPU, whatever dtype is trained in."""
        coefficients = _as_asked(self.coefficients(name)[0], exact)
        learned = _times(self.left_basis, self.sharespace_left_temporary, coefficients, name)
        if not self.starts_from_known(name):
            return learned
        return torch.cat([learned, self._known_left(name, exact=exact)], dim=1)

    def _right(self, name: str, *, exact: bool = False) -> Tensor:
        """Right factor; ``exact``: float64 on the CPU, whatever dtype is trained in."""
        coefficients = _as_asked(self.sharespace_right_coefficients[name], exact)
        learned = _times(self.right_basis, self.sharespace_right_temporary, coefficients, name)
        if not self.starts_from_known(name):
            return learned
        return torch.cat([learned, self._known_right(name, exact=exact)], dim=1)

    def values(self, name: str) -> StartValues:
        """Coefficients, temporary directions, core and known tasks' updates of an adapter as they
        are now.

        Args:
            name: name of an adapter of this layer.
        """
        none = self.left_basis.new_zeros(self.out_features, 0)
        none_right = self.right_basis.new_zeros(self.in_features, 0)
        core, known = self.sharespace_core, None
        if self.starts_from_known(name):
            known = KnownUpdates(
                self.sharespace_known_left[name],
                self.sharespace_known_right[name],
                _entry(self.sharespace_known_left_outside, name, none),
                _entry(self.sharespace_known_right_outside, name, none_right),
                self.sharespace_known_weights[name],
                _KNOWN_WEIGHTS not in self.frozen_peft_weight_names[name],
            )
        return StartValues(
            self.sharespace_left_coefficients[name],
            self.sharespace_right_coefficients[name],
            _entry(self.sharespace_left_temporary, name, none),
            _entry(self.sharespace_right_temporary, name, none_right),
            core[name] if name in core else None,  # noqa: SIM401
            known,
        )

    def starts_from_known(self, name: str) -> bool:
        """True where updates of known tasks are a part of the adapter's.

        Args:
            name: name of an adapter of this layer.
        """
        return name in self.sharespace_known_weights

    def _known_left(self, name: str, *, exact: bool = False) -> Tensor:
        """The left factor of sum over j of a_j dW_j, weights multiplied in: n x m r."""
        weights = _as_asked(self.sharespace_known_weights[name], exact)
        factor = _as_asked(self.sharespace_known_left[name], exact)
        directions = _times(self.left_basis, self.sharespace_known_left_outside, factor, name)
        return directions * weights.repeat_interleave(factor.shape[1] // len(weights))

    def _known_right(self, name: str, *, exact: bool = False) -> Tensor:
        """Its right factor, d x m r."""
        factor = _as_asked(self.sharespace_known_right[name], exact)
        return _times(self.right_basis, self.sharespace_known_right_outside, factor, name)

    @torch.no_grad()
    def update(self, name: str) -> LayerUpdate:
        """The adapter as trained so far: n x r and r x d, temporary directions and the updates of
        known tasks included.

        Without known tasks r is the pseudo-rank p, in float32. With them it is the numerical rank
        of the sum, in float64: what lies in the span of the bases stays there to their own
        rounding, so that a merge needs no new direction for it.

        Args:
            name: name of an adapter of this layer.
        """
        if self.starts_from_known(name):
            up, right = compacted(self._left(name, exact=True), self._right(name, exact=True))
            return LayerUpdate(up, right.mT.contiguous(), self.scaling[name])
        up, down = (factor.detach().float().cpu() for factor in self.factors(name))
        return LayerUpdate(up.clone(), down.mT.contiguous(), self.scaling[name])

    @torch.no_grad()
    def learned_norm(self, name: str, weights: Tensor | None = None) -> tuple[float, float]:
        """(|dW - start|, |dW|): Frobenius norms of what was learned and of the whole update.

        Args:
            name: name of an adapter of this layer.
            weights: a_j that the adapter began with, m numbers; None: those that it has.
        """
        left, right = self._left(name, exact=True), self._right(name, exact=True)
        whole = self.scaling[name] * math.sqrt(product_energy(left, right))
        if not self.starts_from_known(name):
            return whole, whole
        p = self.sharespace_right_coefficients[name].shape[1]
        now = _as_asked(self.sharespace_known_weights[name], True)
        moved = now - (now if weights is None else weights)
        known = _as_asked(self.sharespace_known_left[name], True)
        directions = _times(self.left_basis, self.sharespace_known_left_outside, known, name)
        directions = directions * moved.repeat_interleave(known.shape[1] // len(moved))
        energy = product_energy(torch.cat([left[:, :p], directions], dim=1), right)
        return self.scaling[name] * math.sqrt(energy), whole

    def get_delta_weight(self, adapter: str) -> Tensor:
        """dW in the shape of the base weight, in the dtype of the coefficients.

        Args:
            adapter: name of an adapter of this layer.
        """
        up, down = self.factors(adapter)
        # Half precision is multiplied in float32: slow, or not there at all, on CPUs.
        delta = self.scaling[adapter] * (up.float() @ down.float().mT)
        return self._as_weight(delta).to(up.dtype)

    @abstractmethod
    def _as_weight(self, delta: Tensor) -> Tensor:
        """dW (n x d) in the shape of the base weight."""

    @abstractmethod
    def _apply_update(self, name: str, x: Tensor) -> Tensor:
        """dW x, in the layout of the base layer's output."""

    def set_scale(self, adapter: str, scale: float) -> None:
        """Weigh one adapter; 1 is as trained. diffusers calls it.

        Args:
            adapter: name of an adapter in the model; one that this layer lacks is ignored.
            scale: factor of its update.
        """
        if adapter in self.scaling:
            self.scaling[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the weight of the active adapters.

        Args:
            scale: factor of the updates, on top of the weight that they have.
        """
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the weight of the active adapters; None: back to 1.

        Args:
            scale: divisor of the weights; None: set them to 1.
        """
        for name in self.active_adapters:
            if name in self.scaling:
                self.scaling[name] = 1.0 if scale is None else self.scaling[name] / scale

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active adapters' updates to the base weight.

        Args:
            safe_merge: check that the result is finite, before the base weight is changed.
            adapter_names: names of the adapters to merge; None: the active ones.

        Raises:
            MismatchError: with ``safe_merge``, the result holds NaN or infinity.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if not self.has(name):
                continue
            weight = self.get_base_weight()
            delta = self.get_delta_weight(name).to(weight.device)
            merged = (weight.to(delta.dtype) + delta).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise MismatchError(f"adapter {name!r}", "NaNs detected in the merged weights")
            self.set_base_weight(merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract what ``merge`` added."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if self.has(name):
                weight = self.get_base_weight()
                delta = self.get_delta_weight(name).to(weight.device)
                self.set_base_weight((weight.to(delta.dtype) - delta).to(weight.dtype))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: the update is additive and of low rank (PEFT's ``save_as_lora``).

        Args:
            adapter_name: name of an adapter; the answer is the same for all.
        """
        return True

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the active adapters', or each row's own (routing).

        Args:
            x: input of the base layer, rows first.
            args, kwargs: passed on to the base layer.
        """
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self._base(x, *args, **kwargs)
        if self.routing is not None:
            return self._mixed(x, self.routing.rows(len(x)), *args, **kwargs)
        result = self._base(x, *args, **kwargs)
        if self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if self.has(name):
                result = result + self._update_of(name, x).to(dtype)
        return result

    def _base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.quantization_backend is not None:
            # Backpropagation may fail where a view of a 4-bit layer's result is changed.
            result = self.quantization_backend.maybe_clone_base_result(result)
        return result

    def _update_of(self, name: str, x: Tensor) -> Tensor:
        dtype = self.sharespace_left_coefficients[name].dtype
        dropped = self.sharespace_dropout[name](self._cast_input_dtype(x, dtype))
        update = self._apply_update(name, dropped)
        return update if self.scaling[name] == 1 else self.scaling[name] * update

    def _mixed(self, x: Tensor, rows: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """Every row with its own adapter; a layer that an adapter lacks is the base layer."""
        if self.merged:
            raise OptionError(
                "adapter_names",
                "an update that is merged into the weights acts on every row",
                "Cannot pass `adapter_names` when there are merged adapters, please call "
                "`unmerge_adapter` first.",
            )
        result = self._base(x, *args, **kwargs)
        for name in dict.fromkeys(rows):
            if self.has(name):
                index = torch.tensor([i for i, r in enumerate(rows) if r == name], device=x.device)
                update = self._update_of(name, x[index]).to(result.dtype)
                result = result.index_add(0, index, update)
        return result


class SubspaceModule(nn.Module, SubspaceLayer):
    """What both kinds of layers are: a module, and a layer of PEFT."""

    def __init__(self, base_layer: nn.Module, left_basis: Tensor, right_basis: Tensor) -> None:
        super().__init__()
        SubspaceLayer.__init__(self, base_layer, left_basis, right_basis)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the adapters'; see ``SubspaceLayer.forward``.

        Args:
            x: input of the base layer, rows first.
            args, kwargs: passed on to the base layer.
        """
        return SubspaceLayer.forward(self, x, *args, **kwargs)


class SubspaceLinear(SubspaceModule):
    """Over ``nn.Linear``, Conv1D of transformers, or a quantised linear layer."""

    def _as_weight(self, delta: Tensor) -> Tensor:
        return delta.mT if is_transposed(self.innermost) else delta

    def _apply_update(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(self._coordinates(name, x), self._left(name))

    def _coordinates(self, name: str, x: Tensor) -> Tensor:
        """A^^T x; in training by way of alpha^T x where that is much smaller than x.

        Autograd then keeps k numbers a row for the gradient of F, not d. Temporary directions need
        x itself for theirs. Evaluation rounds in one way, whether or not gradients are wanted.
        """
        coefficients = self.sharespace_right_coefficients[name]
        d, k = self.right_basis.shape
        learns = self.training and torch.is_grad_enabled() and coefficients.requires_grad
        needs_x = name in self.sharespace_right_temporary or self.starts_from_known(name)
        if not learns or needs_x or d < _NARROW_RATIO * k:
            return functional.linear(x, self._right(name).mT)
        z = functional.linear(x, self.right_basis.to(coefficients.dtype).mT)
        return functional.linear(z, coefficients.mT)


class SubspaceConv(SubspaceModule):
    """Over a convolution, its weight seen as c_out x (c_in / groups * kernel cells)."""

    def _as_weight(self, delta: Tensor) -> Tensor:
        return delta.reshape(self.innermost.weight.shape)

    def _apply_update(self, name: str, x: Tensor) -> Tensor:
        up, down = self.factors(name)
        base = self.innermost
        if base.groups > 1:
            # Rows of dW belong to groups, so no common down convolution exists.
            grouped: Tensor = base._conv_forward(x, self._as_weight(up @ down.mT), None)
            return grouped
        kernel = down.mT.reshape(-1, *base.weight.shape[1:])
        hidden: Tensor = base._conv_forward(x, kernel, None)
        return functional.linear(hidden.movedim(1, -1), up).movedim(-1, 1)


def _parameter(value: Tensor) -> nn.Parameter:
    """A copy, as the value may be a stored task's own; contiguous, as FSDP cuts no other."""
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format))


def _entry(by_name: nn.ParameterDict, name: str, none: Tensor) -> Tensor:
    return by_name[name] if name in by_name else none  # noqa: SIM401


def _times(basis: Tensor, new: nn.ParameterDict, coefficients: Tensor, name: str) -> Tensor:
    """[basis, temporary] @ coefficients, in their dtype and on their device."""
    directions: Tensor = basis.to(coefficients)
    if name in new:
        directions = torch.cat([directions, new[name].to(coefficients)], dim=1)
    return torch.matmul(directions, coefficients)


def _as_asked(tensor: Tensor, exact: bool) -> Tensor:
    """As it is, or float64 on the CPU (not all accelerators have it) and without gradient."""
    return tensor.detach().cpu().double() if exact else tensor


def sides(module: Any) -> tuple[int, int]:
    """(n, d) of a module's weight; Conv1D of transformers and quantised weights as they act.

    Raises:
        MismatchError: a module of a kind that has no place in a subspace.
    """
    if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
        return module.out_channels, math.prod(module.weight.shape[1:])
    if is_transposed(module):
        rows, columns = module.weight.shape
        return int(columns), int(rows)
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)
    raise MismatchError(
        f"module of type {type(module).__name__}",
        "neither linear nor a convolution",
        "Leave it out of target_modules; embeddings and heads go into modules_to_save",
    )


@dataclass(frozen=True)
class RowAdapters:
    """Which adapter each row of a batch goes through (PEFT's ``adapter_names``).

    It stays on the layers until the next forward pass.

    Gradient checkpointing runs layers again in the backward pass, when a hook of the forward pass
    would be gone.
    """

    names: tuple[str, ...]
    """One name a row; ``"__base__"`` for the base model."""
    beams: int = 1
    """Beam search repeats each row that often, but not in an encoder."""

    def rows(self, count: int) -> tuple[str, ...]:
        """Names for a batch of ``count`` rows.

        Raises:
            OptionError: there are not as many names as rows.
        """
        if count == len(self.names):
            return self.names
        if count == len(self.names) * self.beams:
            return tuple(name for name in self.names for _ in range(self.beams))
        raise OptionError(
            "adapter_names",
            "every row needs the name of one adapter",
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(self.names)} and {count} respectively.",
        )
