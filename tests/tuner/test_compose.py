"""Adapters put together, scaled and exchanged in one model, against the sums of their updates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from sharespace import Share
from sharespace.errors import MismatchError, OptionError, TaskNotFoundError
from sharespace.learn import merge_from
from sharespace.tuner import ShareConfig, hotswap_task, publish, rescale_adapter_scale
from tuner.spaces import seeded, space

X = torch.randn(3, 10, generator=torch.Generator().manual_seed(5))


def base() -> nn.Sequential:
    made: nn.Sequential = seeded(
        lambda: nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 9))
    )
    return made


@pytest.fixture
def share() -> Share:
    return Share(space(base(), tasks=("one", "two", "three")))


def model_of(share: Share, *tasks: str, **options: Any) -> Any:
    """A model with an adapter for each of these tasks, known or new."""
    name = publish(share.model)
    first, *others = tasks
    model = get_peft_model(
        base(), ShareConfig(share=name, task=first, **options), adapter_name=first
    )
    for task in others:
        model.add_adapter(task, ShareConfig(share=name, task=task, **options))
    return model.eval()


def delta(model: Any, adapter: str) -> list[Tensor]:
    layers = (model.base_model.model[0], model.base_model.model[2])
    return [layer.get_delta_weight(adapter).detach() for layer in layers]


@pytest.mark.parametrize("kind", ["linear", "cat", "svd"])
def test_a_weighted_adapter_is_the_sum(share: Share, kind: str, tmp_path: Path) -> None:
    """Of known tasks, and of new ones with temporary directions and a start."""
    model = model_of(share, "one", "two")
    new: dict[str, Any] = {"phi": 2, "p": 3, "start": "three", "init_weights": False}
    model.add_adapter("new", ShareConfig(share=publish(share.model), task="new", **new))
    core: dict[str, Any] = {"phi": 1, "p": 2, "form": "core", "init_weights": False}
    model.add_adapter("core", ShareConfig(share=publish(share.model), task="core", **core))
    for layer in (model.base_model.model[0], model.base_model.model[2]):
        layer.set_scale("two", 2.0)
    weights = {"one": 0.7, "two": -0.4, "new": 1.5, "core": -1.0}
    model.add_weighted_adapter(list(weights), list(weights.values()), "sum", kind)
    for i, found in enumerate(delta(model, "sum")):
        wanted = torch.stack([w * delta(model, n)[i] for n, w in weights.items()]).sum(0)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.endswith(".sum"))
    model.set_adapter("sum")
    with torch.no_grad():
        wanted = model(X)
    merged = merge_from(share, model, task="sum", adapter="sum")
    updates = merged.updates("sum")
    for name, dense in zip(("0", "2"), delta(model, "sum"), strict=True):
        stored = (updates[name].up @ updates[name].down).float()
        torch.testing.assert_close(stored, dense, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(base(), tmp_path / "sum").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(X), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "weights", "new", "kind", "why"),
    [
        (["one", "two"], [1, 1], "one", "linear", "there is an adapter 'one'"),
        (["one", "x"], [1, 1], "sum", "linear", "not all of these adapters"),
        (["one", "two"], [1], "sum", "linear", "not one weight"),
        (["one", "one"], [1, 1], "sum", "linear", "not one weight"),
        ([], [], "sum", "linear", "not one weight"),
        (["one", "two"], [1, 1], "sum", "ties", "'ties' is none of linear, cat, svd"),
    ],
)
def test_what_cannot_be_added_is_refused(
    share: Share, names: list[str], weights: list[float], new: str, kind: str, why: str
) -> None:
    model = model_of(share, "one", "two")
    with pytest.raises(OptionError, match=why):
        model.add_weighted_adapter(names, weights, new, kind)
    assert set(model.peft_config) == {"one", "two"}


def test_scales_are_rescaled_for_a_block(share: Share) -> None:
    model = model_of(share, "one")
    layer = model.base_model.model[0]
    layer.set_scale("one", 3.0)
    full = layer.get_delta_weight("one").detach()
    with rescale_adapter_scale(model, 0.5):
        torch.testing.assert_close(layer.get_delta_weight("one").detach(), 0.5 * full)
    assert layer.scaling == {"one": 3.0}
    with pytest.raises(OptionError, match="no ShareConfig"), rescale_adapter_scale(base(), 0.5):
        pass
    with pytest.raises(OptionError, match="not a number"), rescale_adapter_scale(model, True):
        pass


def test_a_task_is_exchanged_in_place(share: Share) -> None:
    model = model_of(share, "one")
    model.base_model.model[0].set_scale("one", 2.0)
    before = dict(model.named_parameters())
    hotswap_task(model, "two", adapter="one")
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert model.peft_config["one"].task == "two"
    for found, wanted in zip(
        delta(model, "one"), delta(model_of(share, "two"), "two"), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_a_task_that_lacks_a_module_leaves_it_as_it_is(share: Share) -> None:
    task = share.task("two")
    half = Share(share.model.with_tasks([share.task("one"), _part(task, "0")]))
    model = model_of(half, "one")
    hotswap_task(model, "two", adapter="one")
    first, second = delta(model, "one")
    assert float(first.norm()) > 0
    assert not second.any()


def _part(task: Any, module: str) -> Any:
    return replace(task, coefficients={module: task.coefficients[module]})


def test_a_task_of_other_sizes_is_not_exchanged(share: Share) -> None:
    model = model_of(share, "one", p=3)
    hotswap_task(model, "two", adapter="one")
    with pytest.raises(TaskNotFoundError):
        hotswap_task(model, "nobody", adapter="one")
    new = model_of(share, "new", p=3, phi=1, init_weights=False)
    was = delta(new, "new")
    with pytest.raises(MismatchError, match="left_"):
        hotswap_task(new, "two", adapter="new")
    for found, wanted in zip(delta(new, "new"), was, strict=True):
        assert torch.equal(found, wanted)
