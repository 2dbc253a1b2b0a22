"""Share models, and contributions to them, without a network: tiny and quick."""

from __future__ import annotations

from pathlib import Path

import torch

from builders import gauss, update
from sharespace.gather import BasisReference, Contribution, Coordinates, PlainFactors, encode
from sharespace.linalg.dimension import Dimension
from sharespace.store import Operation, Version, checkout, commit
from sharespace.subspace.adapter import Adapter, BaseModel, ModuleShape, fingerprint
from sharespace.subspace.build import initialise
from sharespace.subspace.merge import merge
from sharespace.subspace.state import BuildSettings, ShareModel, basis_id

BASE = BaseModel("tiny/base")
SHAPES = {"q": (12, 10), "v": (8, 10)}
ALL = {m: ModuleShape(n, d) for m, (n, d) in SHAPES.items()}


def adapter(name: str, seed: int, rank: int = 1) -> Adapter:
    found = {m: update(n, d, rank, 10 * seed + i) for i, (m, (n, d)) in enumerate(SHAPES.items())}
    return Adapter.from_updates(name, found, base=BASE)


def start(path: Path, *, cap: int | None = None, budget: int | None = None) -> Version:
    """A store of one task, with room to grow unless there is a cap."""
    settings = BuildSettings(cap=cap, budget=budget)
    dimension = Dimension(budget=budget) if budget else Dimension(variance=1.0)
    model = initialise([adapter("first", 1)], dimension, settings)
    if cap:
        model = merge(model, [adapter("second", 2)], cap=cap)
    return commit(path, model, operation=Operation("init"), expected_parent=None)


def grow(path: Path, name: str, seed: int) -> Version:
    """One more version, with other bases."""
    opened = checkout(path)
    model = merge(opened.model, [adapter(name, seed)])
    operation = Operation("add", (name,))
    return commit(path, model, operation=operation, expected_parent=opened.version)


def trained(
    model: ShareModel, task: str, seed: int, *, p: int = 2, phi: int = 1, version: int | None = 1
) -> Contribution:
    """As if a worker had trained in these bases; small temporary directions, and a head."""
    updates = {}
    for i, (module, layer) in enumerate(model.layers.items()):
        draw = 100 * seed + i
        (n, d), (k, m) = SHAPES[module], layer.k
        updates[module] = Coordinates(
            gauss(draw, k + phi, p).float(),
            gauss(draw + 1, m + phi, p).float(),
            gauss(draw + 2, n, phi).float() if phi else None,
            gauss(draw + 3, d, phi).float() if phi else None,
        )
    return Contribution(
        task,
        BASE,
        model.fingerprint,
        BasisReference(basis_id(model), version),
        updates,
        {"base_model.model.head.weight": gauss(seed, 3, 8).float()},
        {"peft_type": "LORA", "r": p},
    )


def plain(task: str, seed: int, rank: int = 1, base: BaseModel = BASE) -> Contribution:
    """An adapter that knows nothing of a Share model."""
    found = adapter(task, seed, rank)
    updates = {}
    for module, shape in ALL.items():
        read = found.layer(module)
        updates[module] = PlainFactors(read.up, read.down, read.scaling, shape)
    return Contribution(task, base, fingerprint(ALL), None, updates)


def put(inbox: Path, found: Contribution) -> str:
    """Hand in; the file's name."""
    name, data = encode(found)
    inbox.mkdir(exist_ok=True)
    (inbox / name).write_bytes(data)
    return name


def dense_of(model: ShareModel, found: Contribution, module: str) -> torch.Tensor:
    """n x d in float64, by the definition."""
    one = found.updates[module]
    if isinstance(one, PlainFactors):
        return one.scaling * one.up.double() @ one.down.double()
    layer = model.layers[module]
    sides = []
    for basis, new, matrix in (
        (layer.left_basis, one.left_temporary, one.left),
        (layer.right_basis, one.right_temporary, one.right),
    ):
        parts = [basis.double()] if new is None else [basis.double(), new.double()]
        sides.append(torch.cat(parts, dim=1) @ matrix.double())
    return sides[0] @ sides[1].mT
