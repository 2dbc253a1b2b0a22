"""Adapters that come in batches, merged one batch after the other, and what simpler ways keep."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from experiments.generation.base import Base
from experiments.generation.many import Stack, Updates
from experiments.generation.scoring import Score, Tests, score
from sharespace import Share
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.plan import own_ranks
from sharespace.tuner import applied

Method = Literal["share", "joint"]
Record = dict[str, Any]
Name = TypeVar("Name")


@dataclass(frozen=True, eq=False)
class Stream:
    """Adapters in the order in which they come."""

    base: Base
    adapters: Mapping[str, Adapter]
    tests: Mapping[str, Tests]
    batches: Sequence[Sequence[str]]
    """Names of tasks."""

    def score(self, updates: Mapping[str, Updates]) -> Record:
        """Of some tasks with these updates."""
        tests = [self.tests[name] for name in updates]
        return record(score(self.base, tests, Stack.of(updates)))


def in_batches(
    names: Sequence[Name], count: int, seed: int, some: int | None = None
) -> list[list[Name]]:
    """Tasks in a random order, as many in each batch; all of them, unless only some are wanted."""
    order = random.Random(seed).sample(names, len(names) if some is None else some)
    size = -(-len(order) // count)
    return [order[i : i + size] for i in range(0, len(order), size)]


def record(scores: Mapping[str, Score]) -> Record:
    """As JSON."""
    return {name: asdict(score) for name, score in scores.items()}


def originals(stream: Stream) -> Record:
    """Of the adapters as they came."""
    return stream.score({name: updates_of(a) for name, a in stream.adapters.items()})


def updates_of(adapter: Adapter) -> dict[str, LayerUpdate]:
    """Module -> update."""
    return {module: adapter.layer(module) for module in adapter.shapes}


def merged(stream: Stream, method: Method, k: int) -> tuple[Record, Share]:
    """Batch after batch into one Share model of at most k directions a side.

    Returns:
        ``after``: scores of each batch right after its merge; ``final``: of all tasks at the end;
        ``steps``: sizes and errors after each merge. And the last Share model.
    """
    first, *later = stream.batches
    share = Share.from_adapters([stream.adapters[name] for name in first], k=k, method=method)
    after = stream.score({name: share.updates(name) for name in first})
    steps = [kept(stream, share)]
    for names in later:
        share = share.merge([stream.adapters[name] for name in names])
        after |= stream.score({name: share.updates(name) for name in names})
        steps.append(kept(stream, share))
    final = stream.score({name: share.updates(name) for name in share.tasks})
    return {"after": after, "final": final, "steps": steps}, share


def kept(stream: Stream, share: Share) -> Record:
    """Bytes, and errors against the adapters as they came.

    Explained variance is 1 less the mean squared relative error of all tasks and modules, so that
    every task and module counts alike.
    """
    fidelity = share.fidelity([stream.adapters[name] for name in share.tasks])
    errors = [task.layers.values() for task in fidelity.tasks.values()]
    squares = [layer.relative_error**2 for layers in errors for layer in layers]
    return {
        "tasks": len(share.tasks),
        "share_bytes": fidelity.bytes.basis + fidelity.bytes.coefficients,
        "adapter_bytes": fidelity.bytes.adapters,
        "relative_error": fidelity.mean_relative_error,
        "explained_variance": 1 - fmean(squares),
    }


def base_alone(stream: Stream) -> Record:
    """No adapter."""
    return record(score(stream.base, list(stream.tests.values()), None))


def mean_adapter(stream: Stream) -> Record:
    """One update for all: the mean of all adapters' updates."""
    updates = [updates_of(a) for a in stream.adapters.values()]
    mean = {
        module: LayerUpdate(
            torch.cat([u[module].scaling * u[module].up for u in updates], dim=1) / len(updates),
            torch.cat([u[module].down for u in updates]),
        )
        for module in updates[0]
    }
    with applied(stream.base.model, mean):
        return base_alone(stream)


def random_basis(stream: Stream, k: int, seed: int) -> Record:
    """Every adapter projected onto random bases of dimension k."""
    shapes = next(iter(stream.adapters.values())).shapes
    generator = torch.Generator().manual_seed(seed)
    bases = {
        module: (_random(s.out_features, k, generator), _random(s.in_features, k, generator))
        for module, s in shapes.items()
    }
    return stream.score(
        {name: projected(updates_of(a), bases) for name, a in stream.adapters.items()}
    )


def _random(side: int, k: int, generator: torch.Generator) -> Tensor:
    """side x k, orthonormal."""
    basis: Tensor = torch.linalg.qr(torch.randn(side, k, generator=generator))[0]
    return basis


def projected(updates: Updates, bases: Mapping[str, tuple[Tensor, Tensor]]) -> Updates:
    """What module -> (left, right) bases hold of updates."""
    return {
        module: LayerUpdate(left @ (left.mT @ u.up), (u.down @ right) @ right.mT, u.scaling)
        for module, u in updates.items()
        for left, right in [bases[module]]
    }


def own_svd(stream: Stream, share: Share) -> Record:
    """Every adapter cut by its own SVD, all together in the bytes of this Share model."""
    ranks = own_ranks(share.model, list(stream.adapters.values()))
    return stream.score(
        {
            name: {m: truncated(u, ranks[m][name]) for m, u in updates_of(a).items()}
            for name, a in stream.adapters.items()
        }
    )


def truncated(update: LayerUpdate, rank: int) -> LayerUpdate:
    """The best update of a smaller rank."""
    u, s, v = split(update)
    return LayerUpdate((u[:, :rank] * s[:rank]).float(), v[:, :rank].mT.float())


def split(update: LayerUpdate) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of dW, by way of its factors: u, s and v, float64."""
    left, upper = torch.linalg.qr(update.scaling * update.up.double())
    right, lower = torch.linalg.qr(update.down.mT.double())
    u, s, v = torch.linalg.svd(upper @ lower.mT)
    return left @ u, s, right @ v.mT


def in_order(stream: Stream, batches: bool) -> list[list[str]]:
    """Names of the tasks as they come: in their batches, or all at once."""
    if batches:
        return [list(batch) for batch in stream.batches]
    return [[name for batch in stream.batches for name in batch]]
