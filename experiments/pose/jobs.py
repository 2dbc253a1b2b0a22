"""The rendered categories as tasks: data, models and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.common.mobilenet import load_mobilenet
from experiments.pose.features import Features, features
from experiments.pose.images import category
from experiments.pose.model import Head, UpperMobileNet, train_head, upper_mobilenet
from experiments.pose.rotations import turns
from experiments.pose.settings import GROUPS, Size
from experiments.pose.task import PoseTask

_BATCH = 125
"""Views in a batch."""
BACKBONE = "mobilenet_v1_025_128"


@dataclass(frozen=True, eq=False)
class Base:
    """The backbone, and where the data is."""

    backbone: Any
    """A ``MobileNetV1Model``."""
    meshes: Path
    cache: Path
    name: str = BACKBONE


def group_of(name: str) -> Tensor | None:
    """The rotations that leave an object as it is; None: only the identity."""
    return turns(*GROUPS[name]) if name in GROUPS else None


def load_base(data: Path, cache: Path) -> Base:
    """The backbone of ``DATA/backbones``.

    Raises:
        OptionError, MismatchError, MissingExtraError: see ``load_mobilenet``.
    """
    model = load_mobilenet(data / "backbones" / BACKBONE)
    return Base(model.mobilenet_v1, data / "meshes", cache)


def make_task(base: Base, name: str, size: Size, seed: int, *, held_out: int = 0) -> PoseTask:
    """One task. Its head starts from what is best on the frozen backbone, for every method.

    Args:
        base: backbone and meshes.
        name: of the category.
        size: how much of everything.
        seed: of the head; the images are the same for all seeds.
        held_out: so many of the training views take the place of the clean test views, and
            nothing is trained on them.
    """
    train, known = _views(base, name, size)
    tests = dict(known)
    if held_out:
        kept = len(train) - held_out
        train, tests["clean"] = train.subset(kept), train.after(kept)
    return PoseTask(name, train, tests, _maker(base, size, train, seed), group_of(name))


def make_tasks(base: Base, names: Sequence[str], size: Size, seed: int) -> list[PoseTask]:
    """The tasks of a stream, in order."""
    return [make_task(base, name, size, seed) for name in names]


@cache
def _views(base: Base, name: str, size: Size) -> tuple[Features, dict[str, Features]]:
    """Of training and of all test sets; the same for all seeds, so read once."""
    images = category(
        base.meshes,
        name,
        train=size.train,
        test=size.test,
        pixels=size.pixels,
        cache=base.cache,
        limits=size.limits,
    )
    train = features(images.train, base.backbone, lower=size.lower, cache=base.cache)
    tests = {
        test: features(found, base.backbone, lower=size.lower, cache=base.cache)
        for test, found in images.tests.items()
    }
    return train, tests


def _maker(base: Base, size: Size, train: Features, seed: int) -> Callable[[], UpperMobileNet]:
    def with_head(head: Head) -> UpperMobileNet:
        return upper_mobilenet(base.backbone, size.lower, head, size.bins, size.cells)

    width = base.backbone.layer[-1].convolution.out_channels * size.cells**2
    plain = with_head(Head(torch.zeros(2, width), sum(size.bins.counts)))
    with torch.no_grad():
        seen = torch.cat([plain.features(h.float()) for h in torch.split(train.hidden, _BATCH)])
    head = train_head(seen, train.angles, size.bins, seed, size.head_steps)
    return lambda: with_head(head)
