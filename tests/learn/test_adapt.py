"""New tasks learned in the subspace, and merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from builders import dense
from learn.nets import (
    FACTORS,
    SHAPES,
    Points,
    accuracy,
    adapter,
    logits,
    net,
    only_padded,
    shared,
    snapshot,
    unchanged,
)
from sharespace import Share
from sharespace.errors import (
    MismatchError,
    OptionError,
    SharespaceError,
    TaskExistsError,
    TaskNotFoundError,
)
from sharespace.formats import read_adapter
from sharespace.formats.lora_config import COMPONENTS
from sharespace.learn import Adapted, Setup, TaskMethod, TrainingSettings, adapt, load_task, prepare
from sharespace.subspace.adapter import Adapter
from sharespace.tuner import release

TRAINING = TrainingSettings(
    max_steps=40, learning_rate=3e-2, per_device_train_batch_size=16, use_cpu=True
)


def learn(share: Share, method: TaskMethod, training: TrainingSettings = TRAINING) -> Adapted:
    return adapt(net(), share, Points(), training, task="new", method=method)


def released(learned: Adapted) -> nn.Module:
    return release(learned.model)


@pytest.mark.parametrize(
    ("phi", "start"),
    [(0, "zero"), (1, "zero"), (2, "zero"), (0, "a"), (1, "mean"), (2, "auto")],
)
def test_a_merged_task_is_the_trained_one_and_no_other_changes(phi: int, start: str) -> None:
    share = shared()
    learned = learn(share, TaskMethod(p=3, phi=phi, start=start, form="factors"))
    assert accuracy(learned.model) > accuracy(net()) + 0.2
    trained = logits(learned.model)
    merged = share.merge(learned.adapter, cap=20)
    again = load_task(net(), merged, "new")
    assert torch.allclose(logits(again), trained, atol=1e-4)
    for module, layer in share.model.layers.items():
        grown = merged.model.layers[module]
        assert torch.equal(grown.left_basis[:, : layer.k[0]], layer.left_basis)
        assert torch.equal(grown.right_basis[:, : layer.k[1]], layer.right_basis)
        for name in share.tasks:
            before, after = (x.task(name).coefficients[module] for x in (share, merged))
            assert only_padded(before, after)
    assert learned.start in ("zero", "a", "b") if start == "auto" else learned.start == start


def test_temporary_directions_survive_the_merge() -> None:
    """The published code drops them: coefficients without the directions they belong to."""
    share = shared(k=2)
    learned = learn(share, TaskMethod(p=2, phi=2, **FACTORS))
    merged = share.merge(learned.adapter, cap=20)
    dropped = 0.0
    for module, update in merged.updates("new").items():
        trained, layer = dense(learned.adapter.layer(module)), share.model.layers[module]
        left, right = layer.left_basis.double(), layer.right_basis.double()
        inside = left @ (left.mT @ trained @ right) @ right.mT
        assert float((dense(update) - trained).norm()) <= 1e-5 * float(trained.norm())
        dropped = max(dropped, float((inside - trained).norm()) / float(trained.norm()))
    assert dropped > 0.3, "the case must need the temporary directions"


def test_coefficients_only_need_no_new_direction() -> None:
    share = shared()
    merged = share.merge(learn(share, TaskMethod(p=3, phi=0, **FACTORS)).adapter)
    for module, layer in share.model.layers.items():
        assert merged.model.layers[module].k == layer.k
        assert torch.equal(merged.model.layers[module].left_basis, layer.left_basis)


def test_at_the_cap_the_model_does_not_grow() -> None:
    share = shared()
    learned = learn(share, TaskMethod(p=3, phi=2, **FACTORS))
    merged = share.merge(learned.adapter)
    assert all(layer.k == (4, 4) for layer in merged.model.layers.values())
    lost = merged.fidelity(against=learned.adapter).tasks["new"]
    assert 0 < lost.relative_error <= lost.bound


def test_what_is_trained_is_counted() -> None:
    learned = learn(
        shared(),
        TaskMethod(p=3, phi=2, **FACTORS),
        replace(TRAINING, max_steps=1),
    )
    rows = sum(4 + 2 + 4 + 2 for _ in SHAPES)
    assert learned.trainable.coefficients == 3 * rows
    assert learned.trainable.temporary == 2 * sum(n + d for n, d in SHAPES.values())
    assert learned.trainable.heads == 12 * 3 + 3
    assert learned.trainable.total == sum(
        p.numel() for p in learned.model.parameters() if p.requires_grad
    )


def test_heads_are_learned_and_kept_or_left_alone() -> None:
    short = replace(TRAINING, max_steps=5)
    base = net()
    with_head = learn(shared(), TaskMethod(p=2, **FACTORS), short).adapter
    key = "base_model.model.classifier.weight"
    assert not torch.equal(with_head.kept[key], base.classifier.weight)
    without = learn(shared(), TaskMethod(p=2, heads=(), **FACTORS), short)
    assert dict(without.adapter.kept) == {}
    assert without.trainable.heads == 0
    assert torch.equal(released(without).get_submodule("classifier").weight, base.classifier.weight)  # type: ignore[arg-type]


def test_the_base_model_comes_back_as_it_was() -> None:
    model = net()
    before = snapshot(model)
    learned = adapt(
        model,
        shared(),
        Points(),
        replace(TRAINING, max_steps=5),
        task="x",
        method=TaskMethod(phi=1, **FACTORS),
    )
    assert unchanged(released(learned), before, flags=False)


def test_one_seed_gives_one_result_and_another_another() -> None:
    method, short = (
        TaskMethod(p=2, phi=1, seed=3, dropout=0.2, **FACTORS),
        replace(TRAINING, max_steps=8, seed=5),
    )
    first, second = learn(shared(), method, short), learn(shared(), method, short)
    assert torch.equal(logits(first.model), logits(second.model))
    assert first.fit.loss == second.fit.loss
    others = [
        learn(shared(), replace(method, seed=4), short),
        learn(shared(), method, replace(short, seed=6)),
    ]
    assert all(not torch.equal(logits(first.model), logits(x.model)) for x in others)


def test_a_task_type_makes_peft_s_own_model() -> None:
    model = net()
    model.config = {"model_type": "net"}  # type: ignore[assignment]
    model.prepare_inputs_for_generation = None  # type: ignore[assignment]
    wrapped = prepare(
        model,
        shared(),
        "new",
        TaskMethod(task_type="FEATURE_EXTRACTION", **FACTORS),
    )
    assert type(wrapped).__name__ == "PeftModelForFeatureExtraction"


REFUSED: dict[str, tuple[TaskMethod, str, type[SharespaceError]]] = {
    "known task": (TaskMethod(**FACTORS), "a", TaskExistsError),
    "unknown head": (
        TaskMethod(heads=("score",), **FACTORS),
        "new",
        OptionError,
    ),
    "head in the subspace": (
        TaskMethod(heads=("second",), **FACTORS),
        "new",
        OptionError,
    ),
    "start": (TaskMethod(start="c", form="factors"), "new", TaskNotFoundError),
    "auto needs data": (TaskMethod(start="auto", form="factors"), "new", OptionError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_the_model_as_it_was(case: str) -> None:
    method, task, error = REFUSED[case]
    model = net()
    before = snapshot(model)
    with pytest.raises(error):
        prepare(model, shared(), task, method)
    assert unchanged(model, before)
    assert prepare(model, shared(), "new", TaskMethod(**FACTORS)) is not None


def test_another_base_model_is_refused_before_anything_is_put_in_it() -> None:
    model = net(hidden=15)
    before = snapshot(model)
    with pytest.raises(MismatchError, match=r"'first' \(14x10\): is 15x10 here"):
        prepare(model, shared(), "new")
    smaller = net()
    del smaller.second
    with pytest.raises(MismatchError, match=r"'second'.*not in this model"):
        prepare(smaller, shared(), "new")
    assert unchanged(model, before)
    assert type(smaller.first) is nn.Linear


def test_a_model_with_peft_layers_is_refused_until_it_is_released() -> None:
    model, share = net(), shared()
    first = prepare(model, share, "new")
    for wrapped in (first, model):
        with pytest.raises(MismatchError, match="release"):
            prepare(wrapped, share, "other")
        with pytest.raises(MismatchError, match="release"):
            load_task(wrapped, share, "a")
    assert prepare(release(first), share, "other") is not None


class Broken(Points):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        raise RuntimeError("disk on fire")


FAILING: dict[str, Callable[..., Any]] = {
    "data": lambda m, s, method: adapt(m, s, Broken(), TRAINING, task="new", method=method),
    "patience": lambda m, s, method: adapt(
        m, s, Points(), replace(TRAINING, early_stopping_patience=1), task="new", method=method
    ),
    "trainer": lambda m, s, method: adapt(
        m, s, Points(), TRAINING, task="new", method=method, setup=Setup(options={"no": 1})
    ),
}


@pytest.mark.parametrize("start", ["zero", "auto"])
@pytest.mark.parametrize("case", FAILING)
def test_training_that_fails_gives_the_base_model_back(case: str, start: str) -> None:
    model, share = net(), shared()
    before = snapshot(model)
    with pytest.raises((RuntimeError, OptionError, TypeError)):
        FAILING[case](model, share, TaskMethod(start=start, form="factors"))
    assert unchanged(model, before, flags=False)
    assert adapt(model, share, Points(), replace(TRAINING, max_steps=1), task="new").fit.steps == 1


def test_a_component_s_modules_are_found_in_the_model_that_is_it() -> None:
    made = adapter("a", 1)
    inside = Adapter.from_updates(
        "a", {f"unet.{m}": made.layer(m) for m in made.shapes}, base=made.base
    )
    share = Share.from_adapters(inside, k=2)
    method = TaskMethod(p=2, component="unet", start="auto", form="factors")
    learned = adapt(
        net(), share, Points(), replace(TRAINING, max_steps=5), task="new", method=method
    )
    assert set(learned.adapter.shapes) == {"unet.first", "unet.second"}
    assert share.merge(learned.adapter).tasks == ("a", "new")


class Pipeline(nn.Module):
    """A component under its name, as a pipeline's adapters name its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = net()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = self.unet(x, labels)
        return found


@pytest.mark.parametrize("component", ["unet", None])
def test_a_task_of_a_pipeline_is_exported_under_its_component_once(
    component: str | None, tmp_path: Path
) -> None:
    made = adapter("a", 1)
    inside = Adapter.from_updates(
        "a",
        {f"unet.{m}": made.layer(m) for m in made.shapes},
        base=made.base,
        config={} if component else {COMPONENTS: ["unet"]},
    )
    share = Share.from_adapters(inside, k=2)
    method = TaskMethod(p=2, heads=(), component=component, **FACTORS)
    model = net() if component else Pipeline()
    training = replace(TRAINING, max_steps=2)
    learned = adapt(model, share, Points(), training, task="new", method=method)
    (file,) = share.merge(learned.adapter).export("new", tmp_path / "new", to="diffusers")
    assert set(read_adapter(file).shapes) == {"unet.first", "unet.second"}
    assert all(key.startswith("unet.") and "unet.unet" not in key for key in load_file(file))
