"""Makes ``store-v2``, a store of schema version 2: groups of tasks with subspaces of their own.

Run it once; it refuses to overwrite. Every later release must read it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from golden.make_store_v1 import columns, numbers
from sharespace.store import Operation, commit
from sharespace.subspace.adapter import BaseModel, ModuleShape
from sharespace.subspace.coefficients import Coefficients, Core, Factors, PerTask
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import BuildSettings, Ledger, ShareModel, Task

PATH = Path(__file__).parent / "store-v2"

QUERY, VALUE = "encoder.0.query", "encoder.0.value"
PARTS = ((2, 1), (1, 2), (2, 2))


def layers() -> dict[str, LayerSubspace]:
    """Three subspaces of overlapping directions in one module, one subspace in the other."""
    left = torch.cat([columns(6, k, i) for i, (k, _) in enumerate(PARTS)], dim=1)
    right = torch.cat([columns(5, k, 2 * i) for i, (_, k) in enumerate(PARTS)], dim=1)
    return {
        QUERY: LayerSubspace(ModuleShape(6, 5), left, right, (5, 5), groups=PARTS),
        VALUE: LayerSubspace(ModuleShape(4, 5), columns(4, 2, 0), columns(5, 2, 1)),
    }


def task(name: str, query: Coefficients, value: Coefficients) -> Task:
    return Task(
        name=name,
        coefficients={QUERY: query, VALUE: value},
        ledger=Ledger(
            (QUERY, VALUE),
            torch.tensor([1.0, 2.0], dtype=torch.float64),
            torch.tensor([[0.25], [0.0]], dtype=torch.float64),
            ("init",),
        ),
    )


def model() -> ShareModel:
    """A task in each of the three, one stored per task, and one that uses all directions."""
    first, second = torch.zeros(5, 1), torch.zeros(5, 1)
    first[:2], second[:1] = numbers(1, 2, 1), numbers(2, 1, 1)
    left, right = torch.zeros(5, 1), torch.zeros(5, 1)
    left[2:3], right[1:3] = numbers(3, 1, 1), numbers(4, 2, 1)
    core = torch.zeros(5, 5)
    core[3:, 3:] = numbers(5, 2, 2)
    one = Factors(numbers(6, 2, 1), numbers(7, 2, 1))
    tasks = [
        task("first", Factors(first, second), one),
        task("second", Factors(left, right, offset=(2, 1)), one),
        task("third", Core(core, offset=(3, 3)), Core(numbers(8, 2, 2))),
        task("alone", PerTask(numbers(9, 6, 1), numbers(10, 5, 1)), one),
        task("everywhere", Core(numbers(11, 5, 5)), one),
    ]
    return ShareModel(
        base=BaseModel("org/base", "main"),
        settings=BuildSettings("joint", budget=10**6),
        dtype=torch.float32,
        layers=layers(),
        tasks={found.name: found for found in tasks},
    )


def make(path: Path) -> None:
    """Write it to a new store."""
    made = model()
    commit(path, made, operation=Operation("init", tuple(made.tasks)), expected_parent=None)
    (path / "lock").unlink()  # it names the machine


if __name__ == "__main__":
    make(PATH)
