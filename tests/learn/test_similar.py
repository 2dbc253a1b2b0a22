"""Which known tasks a new one starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from builders import dense
from learn.nets import Points, adapter, net, snapshot, unchanged
from sharespace import Share, release
from sharespace.errors import OptionError
from sharespace.learn import Setup, TaskMethod, TrainingSettings, adapt, prepare
from sharespace.learn.directions import core_gradients
from sharespace.learn.starts import choose_start
from sharespace.learn.training import trainer_for
from sharespace.subspace.adapter import Adapter, LayerUpdate

TRAINING = TrainingSettings(
    max_steps=50, learning_rate=1e-2, per_device_train_batch_size=32, use_cpu=True
)


class Told(Points):
    """Points whose labels an adapted net tells."""

    def __init__(self, updates: dict[str, LayerUpdate], count: int = 256) -> None:
        super().__init__(count)
        told = net()
        with torch.no_grad():
            for module, update in updates.items():
                told.get_submodule(module).weight += dense(update).float()  # type: ignore[operator]
            self.labels = told(x=self.x)["logits"].argmax(dim=1)


def updates_of(made: Adapter) -> dict[str, LayerUpdate]:
    return {m: made.layer(m) for m in made.shapes}


def test_the_right_relative_is_chosen_whatever_its_place() -> None:
    right = adapter("right", 11)
    data = Told(updates_of(right))
    for others in ([21, 22, 23], [31, 32, 33]):
        made = [adapter(f"other{s}", s) for s in others]
        share = Share.from_adapters([*made[:2], right, made[2]], variance=1.0)
        learned = adapt(net(), share, data, SHORT, task="new")
        assert learned.start == "right"
        choice = learned.choice
        assert not choice.copies_heads
        assert choice.held_out == 64
        zero, *_ = choice.candidates
        best = min(choice.candidates, key=lambda candidate: candidate.loss)
        assert (zero.start, zero.gain, best.start) == ("zero", 0.0, "right")
        assert best.gain == pytest.approx(zero.loss - best.loss)
        assert best.gain > 2 * best.error
        assert f"{best.gain:.4f}" in str(choice)
        assert learned.adapter.started_from


SHORT = TrainingSettings(
    max_steps=10, learning_rate=1e-3, per_device_train_batch_size=32, use_cpu=True
)


@pytest.mark.parametrize("seed", range(4))
def test_no_start_where_no_task_is_related(seed: int) -> None:
    """Labels that the base model tells: every start leads away from it."""
    share = Share.from_adapters([adapter(f"other{s}", s + 10 * seed) for s in (1, 2)], variance=1.0)
    learned = adapt(net(), share, Told({}), SHORT, task="new")
    assert learned.start == "zero"
    assert not learned.adapter.started_from


def with_head(known: Adapter, labels: tuple[str, ...]) -> Adapter:
    """The adapter with a head of its own: that of the base model, turned by one label."""
    head = net().classifier
    kept = {
        f"base_model.model.classifier.{key}": value.roll(1, 0)
        for key, value in head.state_dict().items()
    }
    return replace(known, kept=kept, labels=labels)


def told_with(known: Adapter) -> Told:
    """Examples whose labels are those that the adapter with its head tells."""
    data = Told(updates_of(known))
    data.labels = (data.labels + 1) % 3
    return data


@pytest.mark.parametrize(
    ("stored", "new", "copied"),
    [
        (("a", "b", "c"), ("a", "b", "c"), True),
        ((), ("a", "b", "c"), True),  # Nobody named them: its head is better than a new one.
        (("a", "b", "c"), ("c", "a", "b"), False),
    ],
    ids=["the same names", "no names", "other names"],
)
def test_the_head_of_the_start_is_copied_where_the_labels_are_the_same(
    stored: tuple[str, ...], new: tuple[str, ...], copied: bool
) -> None:
    right = with_head(adapter("right", 11), stored)
    share = Share.from_adapters([adapter("other", 21), right], variance=1.0)
    model = net()
    model.config = SimpleNamespace(id2label=dict(enumerate(new)))  # type: ignore[assignment]
    method = TaskMethod(head_steps=None if copied else 0)
    training = replace(SHORT, max_steps=1, learning_rate=1e-12)
    learned = adapt(model, share, told_with(right), training, task="new", method=method)
    assert learned.choice.copies_heads == copied
    key = "base_model.model.classifier.weight"
    assert torch.allclose(learned.adapter.kept[key], right.kept[key]) == copied
    if stored == new:
        named = replace(method, start="right")
        release(learned.model)
        again = adapt(model, share, Told({}), training, task="new", method=named)
        assert again.choice.copies_heads


def test_known_tasks_are_mixed_with_trained_weights() -> None:
    right = adapter("right", 11)
    made = [adapter("far", 21), adapter("other", 22), right]
    share = Share.from_adapters(made, variance=1.0)
    method = TaskMethod(known=2, heads=())
    training = replace(SHORT, max_steps=40, learning_rate=3e-2)
    learned = adapt(net(), share, Told(updates_of(right)), training, task="new", method=method)
    assert learned.choice.mixture[0] == learned.start == "right"
    assert len(learned.choice.mixture) == len(learned.adapter.started_from) == 2
    cores = learned.trainable.coefficients - 2 * len(right.shapes)
    assert cores == sum(len(c) ** 2 for c in cores_of(learned.model))
    with pytest.raises(OptionError, match="known=2"):
        prepare(release(learned.model), share, "new", replace(method, start="zero"))
    mixed = prepare(net(), share, "new", TaskMethod(known=9, start="zero"))
    assert set(getattr(mixed.peft_config["default"], "known", None) or ()) == set(share.tasks)


def cores_of(model: nn.Module) -> list[Tensor]:
    return [p for n, p in model.named_parameters() if "sharespace_core" in n]


def test_without_examples_to_hold_out_the_start_is_zero_and_that_is_said() -> None:
    share = Share.from_adapters([adapter("a", 1)], variance=1.0)
    few = [Points(8)[i] for i in range(8)]
    learned = adapt(net(), share, few, SHORT, task="new")
    assert (learned.start, learned.choice.why) == (
        "zero",
        "there are too few examples to hold some out",
    )


def test_no_start_where_no_task_lowers_the_loss() -> None:
    right = adapter("wrong", 11)
    opposite = Adapter.from_updates(
        "wrong", {m: LayerUpdate(-u.up, u.down) for m, u in updates_of(right).items()}
    )
    share = Share.from_adapters([opposite], variance=1.0)
    data, short = (
        Told(updates_of(right)),
        TrainingSettings(max_steps=5, learning_rate=1e-3, use_cpu=True),
    )
    method = TaskMethod()
    assert adapt(net(), share, data, short, task="new", method=method).start == "zero"
    empty = share.remove("wrong")
    assert adapt(net(), empty, data, short, task="new", method=method).start == "zero"


def test_looking_changes_nothing_and_writes_nothing(tmp_path: object) -> None:
    share, model = Share.from_adapters([adapter("a", 1), adapter("b", 2)], k=3), net()
    before = snapshot(model)
    loud = {
        "output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 1,
        "eval_strategy": "steps",
    }  # fmt: skip
    called: list[str] = []
    setup = Setup(evaluation=Points(), metrics=lambda _: called.append("metrics") or {})  # type: ignore[func-returns-value]
    training = TrainingSettings(
        max_steps=10, learning_rate=1e-2, eval_steps=1, use_cpu=True, arguments=loud
    )
    choose_start(model, share, Points(), training, task="new", method=TaskMethod(), setup=setup)
    assert unchanged(model, before, flags=False)
    assert list(tmp_path.iterdir()) == []  # type: ignore[attr-defined]
    assert called == []


class Mixed(nn.Module):
    """One module of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gpt2 = nn.Linear(6, 8), Conv1D(8, 8)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.classifier = nn.Linear(16, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.gpt2(torch.relu_(self.linear(x))))
        h = self.grouped(torch.relu_(self.conv(h.reshape(-1, 2, 2, 2)))).flatten(1)
        return {"loss": nn.functional.cross_entropy(self.classifier(h), labels)}


def mixed_adapter(name: str, seed: int) -> Adapter:
    from sharespace.subspace.adapter import ModuleShape

    generator = torch.Generator().manual_seed(seed)
    sides = {"linear": (8, 6), "gpt2": (8, 8), "conv": (4, 18), "grouped": (4, 18)}
    shapes = {m: ModuleShape(*sides[m], "conv", (3, 3)) for m in ("conv", "grouped")}
    updates = {
        m: LayerUpdate(
            torch.randn(n, 2, generator=generator), torch.randn(2, d, generator=generator)
        )
        for m, (n, d) in sides.items()
    }
    return Adapter.from_updates(name, updates, shapes=shapes)


class Rows(Points):
    def __init__(self, cast: Callable[[Tensor], Tensor] = Tensor.float) -> None:
        super().__init__(32)
        self.x, self.labels = cast(self.x[:, :6]), self.labels % 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_cores_are_those_of_the_weights_projected(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, rows = Mixed().to(dtype), Rows(lambda x: x.to(dtype))
    share = Share.from_adapters([mixed_adapter("a", 1), mixed_adapter("b", 2)], k=3)
    batch = {"x": rows.x, "labels": rows.labels}
    weights = {m: model.get_parameter(f"{m}.weight") for m in ("linear", "gpt2", "conv")}
    full = torch.autograd.grad(model(**batch)["loss"], list(weights.values()))
    wrapped = prepare(model, share, "new")
    with trainer_for(wrapped, rows, TRAINING, Setup()) as trainer:
        found = core_gradients(wrapped, trainer, TRAINING)
    assert set(found) == set(weights)
    for module, gradient in zip(weights, full, strict=True):
        layer = share.model.layers[module]
        matrix = gradient.mT if module == "gpt2" else gradient.flatten(1)
        left, right = layer.left_basis.double(), layer.right_basis.double()
        expected = left.mT @ matrix.double() @ right
        close = 1e-5 if dtype == torch.float32 else 0.05
        assert float((found[module] - expected).norm()) <= close * float(expected.norm())
