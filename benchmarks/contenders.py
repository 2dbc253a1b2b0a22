"""sharespace and its peers behind one interface: build from PEFT directories, give back, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

Paths: TypeAlias = Mapping[str, Path]
Factors: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""Module -> (up, down) of a task's update, *without* LoRA's scaling where a peer knows none."""

NAMES = ("sharespace", "lorashare", "vlora-dev")
_IMPORTS = {"sharespace": "sharespace", "lorashare": "lorashare", "vlora-dev": "vlora"}


@dataclass(frozen=True)
class Built:
    """A model that a contender made."""

    factors: Callable[[str], Factors]
    """Reconstruction of a task."""
    scaled: bool
    """True: LoRA's scaling is in the factors already."""
    save: Callable[[Path], object]
    """Write to a new folder, through the contender's own API."""


def installed(name: str) -> bool:
    return find_spec(_IMPORTS[name]) is not None


def build(name: str, paths: Paths, k: int) -> Built:
    """A model of ``k`` components by a contender's public API.

    The peers keep k components per LoRA *factor* (lorashare: of its columns; vlora-dev: of the
    flattened factor, which is r times as large).
    """
    return {"sharespace": _sharespace, "lorashare": _lorashare, "vlora-dev": _vlora}[name](paths, k)


def _sharespace(paths: Paths, k: int) -> Built:
    from sharespace import Share

    return of_share(Share.from_adapters(dict(paths), k=k))


def of_share(share: Any) -> Built:
    """A Share model, however it was built."""

    def factors(task: str) -> Factors:
        return {m: (u.up, u.down) for m, u in share.updates(task).items()}

    return Built(factors, True, share.save)


def _lorashare(paths: Paths, k: int) -> Built:
    from lorashare import SHAREModel

    model = SHAREModel.from_adapters(
        {n: str(p) for n, p in paths.items()}, num_components=k, device="cpu"
    )

    def factors(task: str) -> Factors:
        weights = model.reconstruct(task)
        modules = [key.removesuffix(".lora_A.weight") for key in weights if ".lora_A." in key]
        return {
            m.removeprefix("base_model.model."): (
                weights[f"{m}.lora_B.weight"],
                weights[f"{m}.lora_A.weight"],
            )
            for m in modules
        }

    return Built(factors, False, model.save_pretrained)


def _vlora(paths: Paths, k: int) -> Built:
    from vlora import init_subspace

    model = init_subspace(list(paths.values()), task_ids=list(paths), num_components=k)

    def factors(task: str) -> Factors:
        found = model.reconstruct(task)
        return {m: (found.lora_b[m], found.lora_a[m]) for m in found.layer_names}

    return Built(factors, False, model.save)
