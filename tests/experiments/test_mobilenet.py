"""The ImageNet backbone of the experiments on images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from experiments.harness.mobilenet import load_mobilenet

from shared_data import SHARED
from sharespace.errors import MismatchError, OptionError

WEIGHTS = SHARED / "data" / "backbones" / "mobilenet_v1_025_128"
IMAGES = SHARED / "data" / "images" / "cifar100"
CLASSES = {"chimpanzee": 367, "lion": 291, "skunk": 361}
"""CIFAR-100's name -> number among the 1000 classes of ImageNet."""

here = pytest.mark.skipif(
    not (WEIGHTS.is_dir() and IMAGES.is_dir()), reason="weights and images are not here"
)


@here
def test_names_what_it_was_trained_on() -> None:
    model = load_mobilenet(WEIGHTS)
    with np.load(IMAGES / "compact.npz") as found:
        images, labels = found["x_test"], found["y_test"]
    names = (IMAGES / "labels.txt").read_text().split()
    for name, number in CLASSES.items():
        chosen = torch.from_numpy(images[labels == names.index(name)]).permute(0, 3, 1, 2)
        large = torch.nn.functional.interpolate(
            chosen.float() / 127.5 - 1, size=128, mode="bicubic", antialias=True
        )
        with torch.no_grad():
            logits = model(large).logits
        assert (logits.argmax(1) - 1 == number).float().mean() > 0.2, name


@here
def test_takes_adapters_on_its_1x1_convolutions() -> None:
    model = load_mobilenet(WEIGHTS)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = model(images).logits
        config = peft.LoraConfig(r=2, target_modules=[f"layer.{i}.convolution" for i in (1, 25)])
        adapted = peft.get_peft_model(model, config)(images).logits
    torch.testing.assert_close(adapted, plain)


def test_refuses_what_is_not_such_a_network(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such file"):
        load_mobilenet(tmp_path)
    np.savez(tmp_path / "weights.npz", a=np.zeros(3))
    with pytest.raises(MismatchError, match=r"lacks MobilenetV1\.Conv2d_0\.weights"):
        load_mobilenet(tmp_path)


@here
def test_refuses_another_width() -> None:
    with pytest.raises(MismatchError, match="other shapes"):
        load_mobilenet(WEIGHTS, multiplier=0.5)
