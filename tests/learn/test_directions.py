"""Directions chosen by the gradient: what they are, and what a core between them learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from learn.nets import Points, adapter, net
from sharespace import Share, ShareConfig
from sharespace.errors import OptionError
from sharespace.learn import (
    Setup,
    TaskMethod,
    TrainingSettings,
    adapt,
    choose_directions,
    fit,
    load_task,
    prepare,
)
from sharespace.learn.callbacks import ChooseDirections
from sharespace.learn.directions import TaskDirections, gradient_directions, place_directions
from sharespace.tuner import layers_of, publish

TRAINING = TrainingSettings(
    max_steps=60, learning_rate=3e-2, per_device_train_batch_size=16, use_cpu=True
)
CORE = TaskMethod(p=4, phi=2, form="core", directions="gradient", head_steps=20, start="zero")


def share() -> Share:
    return Share.from_adapters([adapter("a", 1), adapter("b", 2)], variance=1.0)


def trained_head(model: Any) -> Any:
    """A head with which the gradient means something."""
    torch.manual_seed(3)
    torch.nn.init.normal_(model.classifier.weight)
    return model


def frames(start: str = "zero") -> tuple[Any, dict[str, TaskDirections]]:
    method = TaskMethod(p=4, phi=2, form="core", start=start, head_steps=0, directions="random")
    model = prepare(trained_head(net()), share(), "new", method)
    return model, gradient_directions(model, Points(96), TRAINING, Setup())


def exact_gradients(count: int, start: str = "zero") -> dict[str, Tensor]:
    """dL/dW of both modules over the same examples, n x d, at W0 plus what is started from."""
    model, points = trained_head(net()), Points(count)
    with torch.no_grad():
        for module, update in share().updates(start).items() if start != "zero" else ():
            model.get_parameter(f"{module}.weight").add_(update.up @ update.down)
    model(points.x, points.labels)["loss"].backward()
    return {m: model.get_parameter(f"{m}.weight").grad for m in ("first", "second")}


def test_frames_are_orthonormal_and_new_directions_leave_the_basis() -> None:
    model, found = frames()
    for module, layer in layers_of(model, "default").items():
        frame = found[module]
        for known, new, basis in (
            (frame.left_known, frame.left_new, layer.left_basis),
            (frame.right_known, frame.right_new, layer.right_basis),
        ):
            together = torch.cat([basis.double() @ known, new], dim=1)
            torch.testing.assert_close(
                together.mT @ together, torch.eye(4).double(), atol=1e-5, rtol=0
            )
            assert (basis.double().mT @ new).abs().max() < 1e-6


@pytest.mark.parametrize("start", ["zero", "a"])
def test_new_directions_are_the_gradients_leading_ones_outside_the_bases(start: str) -> None:
    model, found = frames(start)
    # 96 examples in batches of 16 are all examples once, so the sum is the whole gradient.
    for module, gradient in exact_gradients(96, start).items():
        layer = layers_of(model, "default")[module]
        rest = gradient.double()
        rest = rest - layer.left_basis.double() @ (layer.left_basis.double().mT @ rest)
        best = torch.linalg.svd(rest)[1][:2].square().sum()
        seen = (found[module].left_new.mT @ rest).square().sum()
        assert seen > 0.98 * best


@pytest.mark.parametrize("start", ["zero", "a"])
def test_known_directions_are_those_of_the_core_gradient(start: str) -> None:
    model, found = frames(start)
    for module, gradient in exact_gradients(96, start).items():
        layer = layers_of(model, "default")[module]
        core = layer.left_basis.double().mT @ gradient.double() @ layer.right_basis.double()
        best = torch.linalg.svd(core)[1][:2].square().sum()
        frame = found[module]
        seen = torch.linalg.svd(frame.left_known.mT @ core @ frame.right_known)[1].square().sum()
        assert seen > 0.999 * best


def test_right_directions_see_inputs_of_unit_size() -> None:
    model, found = frames()
    place_directions(model, found)
    layer = layers_of(model, "default")["first"]
    z = Points(64).x @ layer.factors("default")[1]
    assert 0.7 < float(z.square().mean().sqrt()) < 1.4


def test_placing_does_not_change_the_output_and_only_the_core_is_trained() -> None:
    model, found = frames()
    x = Points(8).x
    before = model(x=x)["logits"]
    place_directions(model, found)
    assert torch.equal(model(x=x)["logits"], before)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[-2] for n in trained if "sharespace" in n} == {"sharespace_core"}


def test_a_core_of_few_numbers_learns_and_is_merged_whole() -> None:
    known = share()
    done = adapt(net(), known, Points(), TRAINING, task="new", method=CORE)
    assert done.trainable.coefficients == 2 * 4 * 4
    assert done.trainable.temporary == 0
    points = Points()
    expected = done.model(x=points.x)["logits"]
    accuracy = (expected.argmax(dim=1) == points.labels).float().mean()
    assert accuracy > 0.7
    merged = load_task(net(), known.merge(done.adapter), "new")
    torch.testing.assert_close(merged(x=points.x)["logits"], expected, atol=1e-4, rtol=1e-4)


def share_config(**options: Any) -> ShareConfig:
    return ShareConfig(share=publish(KNOWN.model), task="new", p=4, phi=2, **options)


KNOWN = share()


def placed(model: Any, trained: bool = False) -> list[Tensor]:
    """All frames of the adapter (and its cores), in the order of the parameters."""
    wanted = ("_coefficients.", "_temporary.", *(("sharespace_core.",) if trained else ()))
    return [p.detach().clone() for n, p in model.named_parameters() if any(w in n for w in wanted)]


def test_directions_are_chosen_for_any_training_loop() -> None:
    model = get_peft_model(trained_head(net()), share_config()).train()
    points = Points(96)
    batches = [
        {"x": points.x[i : i + 16], "labels": points.labels[i : i + 16]} for i in range(0, 96, 16)
    ]
    before = model(**batches[0])["logits"]
    choose_directions(model, batches, seed=TRAINING.seed)
    assert model.training
    assert torch.equal(model(**batches[0])["logits"], before)
    expected = prepare(trained_head(net()), KNOWN, "new", TaskMethod(p=4, phi=2, start="zero"))
    place_directions(expected, frames()[1])
    for module, layer in layers_of(model, "default").items():
        other = layers_of(expected, "default")[module]
        for mine, its in zip(
            layer.factors("default")[1:], other.factors("default")[1:], strict=True
        ):
            span = torch.linalg.qr(its)[0]
            torch.testing.assert_close(span @ (span.mT @ mine), mine, atol=1e-3, rtol=1e-3)


def test_choosing_is_refused_where_it_would_mean_nothing() -> None:
    points = Points(16)
    batch = {"x": points.x, "labels": points.labels}
    model = get_peft_model(net(), share_config())
    with pytest.raises(OptionError, match="none"):
        choose_directions(model, [])
    with pytest.raises(OptionError, match="no loss"):
        choose_directions(model, [{"x": points.x}])
    with pytest.raises(OptionError, match="form='core'"):
        choose_directions(get_peft_model(net(), share_config(form="factors")), [batch])
    with torch.no_grad():
        layers_of(model, "default")["first"].sharespace_core["default"].fill_(1.0)
    with pytest.raises(OptionError, match="before the first step"):
        choose_directions(model, [batch])


def test_a_callback_chooses_once_and_not_again_after_a_checkpoint(tmp_path: Path) -> None:
    def trained(steps: int, name: str, resume: Path | None = None) -> Any:
        model = get_peft_model(net(), share_config())
        training = replace(
            TRAINING,
            max_steps=steps,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            arguments={
                "output_dir": str(tmp_path / name), "save_strategy": "steps", "save_steps": 2
            },
        )  # fmt: skip
        fit(model, Points(), training, Setup(callbacks=[ChooseDirections()], resume=resume))
        return model

    whole = trained(4, "whole")
    frozen, random = placed(whole), placed(get_peft_model(net(), share_config()))
    assert not any(torch.equal(a, b) for a, b in zip(frozen, random, strict=True))
    again = trained(4, "again", tmp_path / "whole" / "checkpoint-2")
    for mine, its in zip(placed(whole, True), placed(again, True), strict=True):
        assert torch.equal(mine, its)


def test_a_side_without_room_takes_all_directions_from_the_subspace() -> None:
    """A layer whose left basis is everything has new directions on the right alone."""
    wide = Share.from_adapters([adapter("a", 1, rank=10), adapter("b", 2, rank=10)], variance=1.0)
    assert wide.model.layers["second"].k[0] == 12
    model = prepare(trained_head(net()), wide, "new", TaskMethod(start="zero"))
    layer = layers_of(model, "default")["second"]
    assert "default" not in layer.sharespace_left_temporary
    place_directions(model, gradient_directions(model, Points(96), TRAINING, Setup()))
    p = len(layer.sharespace_core["default"])
    assert p == 8
    right = layer.sharespace_right_temporary
    assert ("default" in right) == (wide.model.layers["second"].k[1] < 14)
    left = layer.sharespace_left_coefficients["default"]
    torch.testing.assert_close(left.mT @ left, torch.eye(p), atol=1e-4, rtol=0)
