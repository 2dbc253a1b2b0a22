"""Image sets on disk, and the tasks that the streams make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sharespace.errors import OptionError

Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one task."""

    images: Tensor
    """uint8 [examples, 3, height, width]."""
    labels: Tensor
    """int64 [examples], from 0."""
    classes: int
    names: tuple[str, ...]
    """Of the classes."""

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, wanted: Tensor) -> ImageSet:
        """Some of the examples."""
        return replace(self, images=self.images[wanted], labels=self.labels[wanted])


@dataclass(frozen=True)
class Source:
    """What a task is made of."""

    folder: str
    classes: tuple[int, ...] | None = None
    """Labels that belong to the task; None: all."""
    alphabet: str | None = None
    """Of Omniglot: the characters of one alphabet are the task."""
    change: str | None = None
    """A name of ``CHANGES``."""
    flips: bool = False
    """An example seen in a mirror is one of its class."""


def read(source: Source, data: Path, split: Split, limit: int | None = None) -> ImageSet:
    """A task's examples, at most ``limit``, drawn with seed 0 (the same for all seeds of a run).

    Args:
        data: folder with one folder a set, each with ``compact.npz``.

    Raises:
        OptionError: there is no such set, or no such alphabet.
    """
    arrays = _arrays(data / source.folder)
    images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if source.alphabet is not None:
        mine = arrays[f"alphabet_{split}"] == _alphabet(data / source.folder, source.alphabet)
        classes = sorted(set(arrays["y_train"][_train_alphabet(data, source)].tolist()))
        images, labels = images[mine], labels[mine]
    else:
        classes = list(source.classes or sorted(set(arrays["y_train"].tolist())))
        mine = np.isin(labels, classes)
        images, labels = images[mine], labels[mine]
    place = {label: i for i, label in enumerate(classes)}
    named = _names(data / source.folder)
    result = ImageSet(
        _channels_first(images),
        torch.tensor([place[label] for label in labels.tolist()]),
        len(classes),
        tuple(named[label] for label in classes),
    )
    # The sets are in the order of their classes.
    order = torch.randperm(len(result), generator=torch.Generator().manual_seed(0))
    result = result.rows(order[:limit])
    return _changed(result, source.change, seed=0 if split == "train" else 1)


def _train_alphabet(data: Path, source: Source) -> Any:
    number = _alphabet(data / source.folder, str(source.alphabet))
    return _arrays(data / source.folder)["alphabet_train"] == number


@cache
def _arrays(folder: Path) -> Mapping[str, Any]:
    file = folder / "compact.npz"
    if not file.is_file():
        raise OptionError(f"set {folder.name!r}", f"{file} is not there", "Check --data")
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _names(folder: Path) -> list[str]:
    return (folder / "labels.txt").read_text(encoding="utf-8").split()


def _alphabet(folder: Path, name: str) -> int:
    known = (folder / "alphabets.txt").read_text(encoding="utf-8").split()
    if name not in known:
        raise OptionError(f"alphabet {name!r}", "not in this set", f"Known: {', '.join(known)}")
    return known.index(name)


def _channels_first(images: Any) -> Tensor:
    """Grey images get three equal channels."""
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    if pixels.dim() == 3:
        return pixels[:, None].expand(-1, 3, -1, -1)
    return pixels.permute(0, 3, 1, 2)


def _noisy(images: Tensor, seed: int) -> Tensor:
    """Normal noise of standard deviation 80 (of 255)."""
    draw = torch.Generator().manual_seed(seed)
    noise = 80 * torch.randn(images[:, :1].shape, generator=draw)
    return (images + noise).clamp(0, 255).to(torch.uint8)


def _rotated(images: Tensor, _seed: int) -> Tensor:
    """A quarter turn."""
    return torch.rot90(images, 1, (2, 3))


def _inverted(images: Tensor, _seed: int) -> Tensor:
    return 255 - images


CHANGES: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "noisy": _noisy,
    "rotated": _rotated,
    "inverted": _inverted,
}


def _changed(examples: ImageSet, change: str | None, seed: int) -> ImageSet:
    if change is None:
        return examples
    return replace(examples, images=CHANGES[change](examples.images, seed))
