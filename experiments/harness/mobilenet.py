"""MobileNet v1 of TF-slim, with its ImageNet weights, as the model of transformers.

The weights are one ``.npz`` of the checkpoint's variables, "/" in their names replaced by ".".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharespace.errors import MismatchError, OptionError
from sharespace.extras import require

WEIGHTS = "weights.npz"
_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
"""Name in a batch norm of torch -> in TF."""
_ROOT = "MobilenetV1"


def load_mobilenet(folder: Path, *, multiplier: float = 0.25, image_size: int = 128) -> Any:
    """The frozen classifier in evaluation mode; its ``mobilenet_v1`` is the backbone.

    Images are float32 [examples, 3, height, width] in [-1, 1]; the 1001 logits begin with
    "background".

    Args:
        folder: has ``weights.npz``.
        multiplier: width of the network.
        image_size: for the configuration only; the network takes any.

    Raises:
        OptionError: there is no such file.
        MismatchError: it is not of such a network.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", "train")
    config = transformers.MobileNetV1Config(
        depth_multiplier=multiplier, image_size=image_size, num_labels=1001
    )
    model = transformers.MobileNetV1ForImageClassification(config)
    file = folder / WEIGHTS
    if not file.is_file():
        raise OptionError(str(file), "there is no such file", "Give the folder of the weights")
    with np.load(file) as arrays:
        state = torch_state({name: arrays[name] for name in arrays.files}, file)
    _fill(model, state, file)
    _adaptable(model.mobilenet_v1)
    return model.eval().requires_grad_(False)


def torch_state(variables: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """The checkpoint's variables under transformers' names and in torch's layout.

    Args:
        variables: name -> array; convolutions (height, width, in, out), depthwise ones
            (height, width, channels, 1).
        file: for messages.

    Raises:
        MismatchError: a variable is missing.
    """
    names = dict(_sources())
    missing = [source for source in names.values() if source not in variables]
    if missing:
        raise MismatchError(
            str(file), f"lacks {missing[0]}", "Give weights of TF-slim's MobileNet v1"
        )
    return {name: _turned(source, variables[source]) for name, source in names.items()}


def _sources() -> list[tuple[str, str]]:
    """Pairs: transformers' name, TF's name."""
    places = [("mobilenet_v1.conv_stem", f"{_ROOT}.Conv2d_0", "weights")]
    for block in range(1, 14):
        first = 2 * (block - 1)
        depth = f"{_ROOT}.Conv2d_{block}_depthwise"
        places.append((f"mobilenet_v1.layer.{first}", depth, "depthwise_weights"))
        point = f"{_ROOT}.Conv2d_{block}_pointwise"
        places.append((f"mobilenet_v1.layer.{first + 1}", point, "weights"))
    pairs = []
    for place, source, kind in places:
        pairs.append((f"{place}.convolution.weight", f"{source}.{kind}"))
        for name, tf_name in _NORM.items():
            pairs.append((f"{place}.normalization.{name}", f"{source}.BatchNorm.{tf_name}"))
    pairs.append(("classifier.weight", f"{_ROOT}.Logits.Conv2d_1c_1x1.weights"))
    pairs.append(("classifier.bias", f"{_ROOT}.Logits.Conv2d_1c_1x1.biases"))
    return pairs


def _turned(source: str, value: Any) -> Tensor:
    """In torch's layout: (out, in, height, width), (channels, 1, height, width), (out, in)."""
    tensor = torch.from_numpy(np.asarray(value, dtype=np.float32))
    if source.endswith("depthwise_weights"):
        return tensor.permute(2, 3, 0, 1).contiguous()
    if ".Logits." in source and tensor.dim() == 4:
        return tensor[0, 0].T.contiguous()
    return tensor.permute(3, 2, 0, 1).contiguous() if tensor.dim() == 4 else tensor


def _fill(model: Any, state: Mapping[str, Tensor], file: Path) -> None:
    """Every weight, or an error."""
    try:
        keys = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        why = "its tensors have other shapes"
        raise MismatchError(str(file), why, "Give the multiplier of its width") from error
    absent = [key for key in keys.missing_keys if not key.endswith("num_batches_tracked")]
    if absent or keys.unexpected_keys:
        raise MismatchError(str(file), f"lacks {absent}", "Give weights of TF-slim's MobileNet v1")


def _adaptable(backbone: Any) -> None:
    """Let 1x1 convolutions take adapters: TF's padding, none for them, asks the convolution for
    its stride, and PEFT's layers have none."""
    config = copy.copy(backbone.config)
    config.tf_padding = False
    for layer in backbone.layer:
        if layer.convolution.kernel_size == (1, 1):
            layer.config = config
