"""Bases in which weak directions count for more: is it that which keeps the scores?

    python -m experiments.generation.spectrum --data DATA/text --k 24

After ``weighing``, whose file it adds to; nothing is trained. The paper's method looks at factors,
whose singular values are about the roots of those of dW, so that a task's weaker directions count
for more than in ``joint``. Here ``joint`` chooses its bases for updates with the roots of their
singular values, and the updates themselves are projected onto them. At each batch this starts anew
from what is left of the known tasks, so that they count as much as the newcomers again; the same
without roots is the control.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from experiments.common.runs import write
from experiments.generation import script
from experiments.generation.many import Updates
from experiments.generation.merging import Stream, projected, updates_of
from experiments.generation.weighing import own_stream
from torch import Tensor

from sharespace import Share
from sharespace.subspace.adapter import Adapter, LayerUpdate


@dataclass(frozen=True)
class Variant:
    """One way to choose the bases."""

    roots: bool
    batches: bool

    @property
    def label(self) -> str:
        """Its key in the file."""
        counted = "joint of the roots" if self.roots else "joint, what is left counts anew"
        return f"{counted}, {'batches' if self.batches else 'at once'}"


VARIANTS = (Variant(True, True), Variant(True, False), Variant(False, True))


def main() -> None:
    parser = script.parser(__doc__, "")
    parser.add_argument("--k", type=int, nargs="+", help="default: the experiment's")
    chosen = parser.parse_args()
    ready = script.begin(chosen)
    stream = own_stream(ready, chosen.cache)
    file = chosen.out / "weighing.json"
    results = json.loads(file.read_text())
    for k in chosen.k or ready.size.dimensions:
        mine = results["scores"].setdefault(str(k), {})
        for variant in (v for v in VARIANTS if v.label not in mine):
            mine[variant.label] = attempt(stream, variant, k)
            write(file, results)
            mean = fmean(s["percent"] for s in mine[variant.label]["final"].values())
            print(f"k = {k}, {variant.label}: {mean:.1f}", flush=True)


def attempt(stream: Stream, variant: Variant, k: int) -> dict[str, Any]:
    """Scores and errors at the end."""
    found = in_turn(stream, variant, k)
    squares = {
        name: [_error(stream.adapters[name].layer(m), u) for m, u in updates.items()]
        for name, updates in found.items()
    }
    return {
        "final": stream.score(found),
        "relative_error": {name: fmean(s) ** 0.5 for name, s in squares.items()},
        "explained_variance": 1 - fmean(fmean(s) for s in squares.values()),
    }


def in_turn(stream: Stream, variant: Variant, k: int) -> dict[str, Updates]:
    """What is left of every task after the last batch."""
    parts = stream.batches if variant.batches else [[n for b in stream.batches for n in b]]
    found: dict[str, Updates] = {}
    for names in parts:
        found |= {name: updates_of(stream.adapters[name]) for name in names}
        bases = chosen_bases(found, variant.roots, k)
        found = {name: projected(updates, bases) for name, updates in found.items()}
    return found


def chosen_bases(
    found: Mapping[str, Updates], roots: bool, k: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> left and right basis."""
    changed = {
        name: {m: with_roots(u) for m, u in updates.items()} if roots else updates
        for name, updates in found.items()
    }
    adapters = [Adapter.from_updates(name, updates) for name, updates in changed.items()]
    layers = Share.from_adapters(adapters, k=k).model.layers
    return {m: (layer.left_basis, layer.right_basis) for m, layer in layers.items()}


def with_roots(update: LayerUpdate) -> LayerUpdate:
    """The update with the roots of its singular values."""
    left, upper = torch.linalg.qr(update.scaling * update.up.double())
    right, lower = torch.linalg.qr(update.down.mT.double())
    u, s, v = torch.linalg.svd(upper @ lower.mT)
    return LayerUpdate(((left @ u) * s.sqrt()).float(), (right @ v.mT).mT.float())


def _error(original: LayerUpdate, found: LayerUpdate) -> float:
    """Squared, relative."""
    whole, mine = ((u.scaling * u.up.double()) @ u.down.double() for u in (original, found))
    return float((whole - mine).square().sum() / whole.square().sum())


if __name__ == "__main__":
    main()
