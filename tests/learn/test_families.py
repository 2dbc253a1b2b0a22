"""Training, fine-tuning and calibrating where groups of tasks have subspaces of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builders import frame, gauss
from learn.nets import FACTORS, SHAPES, Points, accuracy, net
from sharespace import Share
from sharespace.learn import TaskMethod, TrainingSettings, adapt, calibrate, finetune
from sharespace.serve.mixed import MixedTasks
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate
from sharespace.subspace.coefficients import PerTask


def member(name: str, seed: int, number: int) -> Adapter:
    """Of a family: all its updates are in two directions a side, which the seed names."""
    updates = {
        m: LayerUpdate(
            0.1 * (frame(n, 2, seed) @ gauss(seed + number, 2, 2)).float(),
            (gauss(seed + 700 + number, 2, 2) @ frame(d, 2, seed + 1).mT).float(),
        )
        for m, (n, d) in SHAPES.items()
    }
    return Adapter.from_updates(name, updates, base=BaseModel("tiny/net"))


def members() -> list[Adapter]:
    first = [member(f"a{i}", 10, i) for i in range(30)]
    return [*first, *(member(f"b{i}", 5000, i) for i in range(25))]


BUDGET = 4 * (sum(4 * (n + d) for n, d in SHAPES.values()) + 2 * 55 * 4) + 64
"""Two subspaces of two directions in both modules, and their tasks' cores."""


@pytest.fixture(scope="module")
def share() -> Share:
    made = Share.from_adapters(members(), budget=BUDGET)
    assert all(layer.groups == ((2, 2), (2, 2)) for layer in made.model.layers.values())
    return made


def batches() -> list[dict[str, Tensor]]:
    return [{"x": (gauss(i, 16, 10) * 0.6 ** torch.arange(10)).float()} for i in range(6)]


def test_rows_of_several_families(share: Share) -> None:
    model = net().eval()
    x = Points().x[:3]
    with torch.no_grad():
        wanted = [applied_alone(share, name, x[i : i + 1]) for i, name in enumerate(("a0", "b0"))]
        plain = model(x=x[2:3])["logits"]
        mixed = MixedTasks(model, share)
        with mixed.tasks(["a0", "b0", None]):
            found = model(x=x)["logits"]
    torch.testing.assert_close(found, torch.cat([*wanted, plain]), rtol=1e-4, atol=1e-5)


def applied_alone(share: Share, task: str, x: Tensor) -> Tensor:
    model = net().eval()
    for module, update in share.updates(task).items():
        weight = model.get_submodule(module).weight
        assert isinstance(weight, Tensor)
        weight += update.scaling * update.up @ update.down
    found: Tensor = model(x=x)["logits"]
    return found


def test_a_new_task_is_learned_in_all_subspaces_and_merged(share: Share) -> None:
    training = TrainingSettings(
        max_steps=40, learning_rate=3e-2, per_device_train_batch_size=16, use_cpu=True
    )
    learned = adapt(
        net(),
        share,
        Points(),
        training,
        task="new",
        method=TaskMethod(p=3, phi=1, **FACTORS),
    )
    assert accuracy(learned.model) > accuracy(net()) + 0.2
    merged = share.merge(learned.adapter)
    assert merged.fidelity().bytes.basis + merged.fidelity().bytes.coefficients <= BUDGET
    assert merged.task("new").ledger.bound < 1


@pytest.mark.parametrize("task", ["a3", "b3"])
def test_a_finetuned_task_stays_in_its_own_subspace(share: Share, task: str) -> None:
    training = TrainingSettings(
        max_steps=30, learning_rate=3e-2, per_device_train_batch_size=16, use_cpu=True
    )
    done = finetune(net(), share, Points(), training, task=task, heads=False)
    for module, before in share.task(task).coefficients.items():
        after = done.share.task(task).coefficients[module]
        assert not isinstance(before, PerTask)
        assert not isinstance(after, PerTask)
        assert after.offset == before.offset
        assert after.nbytes == before.nbytes
    again = finetune(net(), done.share, Points(), replace(training, max_steps=1), task=task)
    assert accuracy(done.model) == pytest.approx(accuracy(again.model), abs=0.05)


@pytest.mark.parametrize("task", ["a3", "b3"])
def test_calibrating_stays_in_the_tasks_own_subspace(share: Share, task: str) -> None:
    original = next(a for a in members() if a.name == task)
    spoiled = share.retrained(
        task, {m: (gauss(1, 2, 2).float(), gauss(2, 2, 2).float()) for m in SHAPES}, {}
    )
    found = calibrate(net(), spoiled, original, batches(), ridge=1e-9)
    assert found.before > 0.5
    assert found.after < 1e-3
    for module, before in share.task(task).coefficients.items():
        after = found.share.task(task).coefficients[module]
        assert not isinstance(before, PerTask)
        assert not isinstance(after, PerTask)
        assert after.offset == before.offset
