"""Makes ``store-v1``, a store of schema version 1 that every later release must read.

Run it once; it refuses to overwrite. The values have a closed form and are exact in every dtype,
so they depend on no random generator.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sharespace.store import Operation, commit
from sharespace.subspace.adapter import BaseModel, ModuleShape, Provenance
from sharespace.subspace.coefficients import Core, Factors, PerTask
from sharespace.subspace.layer import Certificate, LayerSubspace
from sharespace.subspace.state import BuildSettings, Ledger, ShareModel, Task

PATH = Path(__file__).parent / "store-v1"

QUERY, VALUE, CONV = "encoder.10.query", "encoder.9.value", "unet.conv_in"
WEIRD = "../\ud800/日本\n🎉"


def numbers(first: int, *shape: int) -> Tensor:
    """Eighths, some negative, none zero."""
    count = int(torch.Size(shape).numel())
    signs = [1 if i % 3 else -1 for i in range(count)]
    flat = [signs[i] * ((first + i) % 15 + 1) / 8 for i in range(count)]
    return torch.tensor(flat, dtype=torch.float32).reshape(shape)


def columns(rows: int, k: int, first: int) -> Tensor:
    """Orthonormal exactly: columns of a signed permutation."""
    found = torch.zeros(rows, k)
    for j in range(k):
        found[(first + 3 * j) % rows, j] = -1.0 if j % 2 else 1.0
    return found


def layers(k: int) -> dict[str, LayerSubspace]:
    return {
        QUERY: LayerSubspace(ModuleShape(4, 5), columns(4, k, 0), columns(5, k, 1)),
        VALUE: LayerSubspace(
            ModuleShape(5, 4), columns(5, k, 2), columns(4, k, 3), (3, 4), Certificate(0.5, 0.25, 0)
        ),
        CONV: LayerSubspace(
            ModuleShape(4, 8, "conv", (2, 2)), columns(4, k, 1), columns(8, k, 0), (3, 3)
        ),
    }


def first_task() -> Task:
    modules = (QUERY, VALUE, CONV)
    core = numbers(3, 2, 2)
    core[1, 1] = -0.0
    return Task(
        name=WEIRD,
        coefficients={
            QUERY: Factors(numbers(1, 2, 1), numbers(2, 2, 1)),
            VALUE: Core(core),
            CONV: PerTask(numbers(5, 4, 1), numbers(6, 8, 1)),
        },
        ledger=Ledger(
            modules,
            torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64),
            torch.tensor([[0.25], [0.0], [0.125]], dtype=torch.float64),
            ("init",),
        ),
        kept={
            "classifier.weight": numbers(7, 2, 3).to(torch.bfloat16),
            "classifier.bias": numbers(8, 2).to(torch.float16),
            "position_ids": torch.arange(3),
            "flag": torch.tensor(True),
        },
        config={"r": 1, "lora_alpha": 2.5, "target_modules": ["query"], "bias": None},
        provenance=Provenance("peft", "someone/adapter", "ab" * 32),
        adapter_bytes=1234,
    )


def second_task(k: int) -> Task:
    """Learned; uses the last direction of a subspace of k."""
    left = numbers(9, k, 2)
    return Task(
        name="second",
        coefficients={QUERY: Factors(left, torch.zeros(k, 2))},
        ledger=Ledger(
            (QUERY,),
            torch.zeros(1, dtype=torch.float64),
            torch.zeros(1, 0, dtype=torch.float64),
            (),
        ),
    )


def version(number: int) -> ShareModel:
    """Version 1: k = 2, one task. Version 2: k = 3 after an exact merge, two tasks."""
    k = number + 1
    old = first_task()
    if number == 2:
        found = dict(old.coefficients)
        factors, core = found[QUERY], found[VALUE]
        assert isinstance(factors, Factors)
        assert isinstance(core, Core)
        pad = torch.nn.functional.pad
        left, right = pad(factors.left, (0, 0, 0, 1)), pad(factors.right, (0, 0, 0, 1))
        found |= {QUERY: Factors(left, right), VALUE: Core(pad(core.matrix, (0, 1, 0, 1)))}
        old = replace(old, coefficients=found)
    tasks = [old] if number == 1 else [old, second_task(k)]
    return ShareModel(
        base=BaseModel("org/base", "main"),
        settings=BuildSettings("joint", p=1, cap=3, budget=10**6, seed=7),
        dtype=torch.float32,
        layers=layers(k),
        tasks={task.name: task for task in tasks},
    )


def make(path: Path) -> None:
    """Write both versions to a new store."""
    first = commit(path, version(1), operation=Operation("init", (WEIRD,)), expected_parent=None)
    commit(path, version(2), operation=Operation("add", ("second",)), expected_parent=first)
    (path / "lock").unlink()  # it names the machine


if __name__ == "__main__":
    make(PATH)
