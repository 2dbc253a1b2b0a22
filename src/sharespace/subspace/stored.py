"""How updates are stored, by layer and task: what a byte budget chose, counted, with its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

from sharespace.subspace.parts import size_at
from sharespace.subspace.reconstruct import rank
from sharespace.subspace.state import Coefficients, Private, Task

Way: TypeAlias = Literal["whole", "leading", "private", "nothing"]


@dataclass(frozen=True)
class Tally:
    """Updates that are stored in one way."""

    updates: int = 0
    nbytes: int = 0
    """As stored; of those in a subspace without its bases, which are common."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.updates + other.updates, self.nbytes + other.nbytes)


@dataclass(frozen=True)
class Stored:
    """The updates of a layer, a task or a model, by the way in which they are stored."""

    whole: Tally = Tally()
    """In all directions of the layer's subspace, or of their family's."""
    leading: Tally = Tally()
    """In its leading directions only; the coefficients of the others would be zero."""
    private: Tally = Tally()
    """Outside of it, each by its own truncated SVD."""
    nothing: Tally = Tally()
    """Not at all, because the bytes did not reach so far; or the update is zero."""

    @property
    def inside(self) -> Tally:
        """In the subspace."""
        return self.whole + self.leading

    @property
    def total(self) -> Tally:
        """All of them."""
        return self.inside + self.private + self.nothing

    def __add__(self, other: Stored) -> Stored:
        return Stored(
            self.whole + other.whole,
            self.leading + other.leading,
            self.private + other.private,
            self.nothing + other.nothing,
        )


@dataclass(frozen=True)
class Storing:
    """How a model stores its updates."""

    layers: Mapping[str, Stored]
    tasks: Mapping[str, Stored]
    ways: Mapping[str, Mapping[str, Way]]
    """Task -> module that it adapts -> how its update there is stored."""

    @property
    def total(self) -> Stored:
        """Of all updates."""
        return sum(self.layers.values(), Stored())


class Dimensions(Protocol):
    """What is asked of a layer, whether it is read or only named in a manifest."""

    @property
    def k(self) -> tuple[int, int]: ...

    @property
    def parts(self) -> tuple[tuple[int, int], ...]: ...


def way(value: Coefficients, layer: Dimensions) -> Way:
    """How an update is stored."""
    if not value.nbytes or not rank(value):
        return "nothing"
    if isinstance(value, Private):
        return "private"
    if not all(value.used):
        return "nothing"
    own = size_at(layer.parts or (layer.k,), value.begin)
    return "whole" if value.used in (own, layer.k) else "leading"


def storing(tasks: Iterable[Task], dimensions: Mapping[str, Dimensions]) -> Storing:
    """Count how the updates of these tasks are stored; no task is held.

    Args:
        tasks: of a model.
        dimensions: module -> layer, of all its layers.
    """
    layers = dict.fromkeys(dimensions, Stored())
    found: dict[str, Stored] = {}
    ways: dict[str, dict[str, Way]] = {}
    for task in tasks:
        ways[task.name] = {m: way(c, dimensions[m]) for m, c in task.coefficients.items()}
        mine = Stored()
        for module, how in ways[task.name].items():
            one = _one(how, task.coefficients[module].nbytes)
            layers[module] += one
            mine += one
        found[task.name] = mine
    return Storing(layers, found, ways)


def _one(how: Way, nbytes: int) -> Stored:
    return replace(Stored(), **{how: Tally(1, nbytes)})
