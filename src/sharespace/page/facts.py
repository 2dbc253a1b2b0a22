"""Everything that a report says, as plain values; no markup, nothing that changes by the hour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sharespace.evaluate import ScoreMatrix
from sharespace.page.families import Relations
from sharespace.page.study import Study
from sharespace.shapes import ModuleShape
from sharespace.store import Operation
from sharespace.subspace.fidelity import TaskFidelity
from sharespace.subspace.state import Settings
from sharespace.subspace.stored import Stored, Way


@dataclass(frozen=True)
class TaskFacts:
    """One task of the version."""

    name: str
    place: int
    """In the order in which the tasks came, from 1."""
    kept: TaskFidelity
    p: tuple[int, int]
    """Smallest and largest pseudo-rank of its layers."""
    stored: Stored
    """How its updates are stored."""
    ways: Mapping[str, Way]
    """Module -> how its update there is stored."""
    norm: float
    """|dW| over all layers when it came."""
    bytes: int
    """Of its files."""
    adapter_bytes: int
    format: str
    source: str
    sha256: str | None


@dataclass(frozen=True)
class LayerFacts:
    """One adapted module."""

    module: str
    shape: ModuleShape
    k: tuple[int, int]
    cap: tuple[int, int] | None
    stored: Stored = field(default_factory=Stored)
    """How the tasks' updates are stored."""
    basis: int = 0
    """Bytes of its bases."""
    streamed: bool = False
    """Adapters came into it out of core."""
    subspaces: int = 1
    """More than one where families of tasks have their own."""

    @property
    def at_cap(self) -> bool:
        """The next merge truncates here: it is at a cap that is below the side's full size."""
        full = min(self.shape.out_features, self.shape.in_features)
        return self.cap is not None and any(
            0 < most <= k < full for k, most in zip(self.k, self.cap, strict=True)
        )


@dataclass(frozen=True)
class VersionFacts:
    """One version of the history."""

    number: int
    created: str
    operation: Operation
    bounds: Mapping[str, float]
    """Task -> bound on its relative error by then."""
    bytes: int
    """Of the version's files, its manifest included."""
    new_bytes: int
    """Of those that no earlier version has."""
    adapters: int
    """What its tasks' adapters took."""
    turn: float | None
    """Mean principal angle between its subspaces and those of the version before that is there, in
    degrees; None: it is the first, or nothing can be compared."""


@dataclass(frozen=True)
class Parts:
    """Bytes of the version's files; they add up to all that it needs."""

    basis: int
    coefficients: int
    kept: int
    """Heads, biases and the like, as they came."""
    ledgers: int
    """Ledgers, settings and headers of the tasks' files."""
    manifest: int
    history: int
    """Files that only earlier versions need; not in ``total``."""
    adapters: int
    """Tensors of the adapters that the tasks came from."""
    private: int = 0
    """Of the coefficients: updates outside the subspaces."""

    @property
    def total(self) -> int:
        return self.basis + self.coefficients + self.kept + self.ledgers + self.manifest


@dataclass(frozen=True)
class Scores:
    """What a stream measured, where it is stored beside the Share model."""

    matrix: ScoreMatrix
    metrics: Mapping[str, str]
    """Task -> its metric's name, where the recipe states one."""
    notices: tuple[str, ...]
    """Why scores are missing."""


@dataclass(frozen=True, eq=False)
class Facts:
    """One version of a Share model."""

    name: str
    """Of the store's directory."""
    version: int
    created: str
    base: str | None
    settings: Settings
    dtype: str
    tasks: tuple[TaskFacts, ...]
    layers: tuple[LayerFacts, ...]
    parts: Parts
    versions: tuple[VersionFacts, ...]
    """Those that are there, up to this one, oldest first."""
    study: Study
    relations: Relations
    scores: Scores | None = None
    contributions: int = 0
    """Of workers, that were gathered up to this version."""
    left_out: int = 0
    """Tasks that are not compared with the others because there are too many."""

    @property
    def stored(self) -> Stored:
        """How all updates are stored."""
        return sum((task.stored for task in self.tasks), Stored())

    @property
    def k(self) -> list[int]:
        """The larger side of every layer with a subspace."""
        return [max(layer.k) for layer in self.layers if max(layer.k)]
