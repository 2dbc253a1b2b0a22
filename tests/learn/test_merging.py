"""What any training loop made of a PeftModel, merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from builders import dense
from learn.nets import Points, logits, net, shared
from sharespace import Share
from sharespace.errors import MismatchError, OptionError, TaskExistsError, UnsupportedAdapterError
from sharespace.learn import load_task, merge_from
from sharespace.tuner import ShareConfig, publish


def own_loop(model: Any, steps: int = 20) -> None:
    points = Points()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x=points.x, labels=points.labels)["loss"].backward()
        optimizer.step()


def lora(name: str = "default", **options: Any) -> Any:
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["first", "second"], modules_to_save=["classifier"],
        **options,
    )  # fmt: skip
    return peft.get_peft_model(net(), config, adapter_name=name)


def test_a_share_config_model_trained_by_an_own_loop() -> None:
    share = shared()
    config = ShareConfig(
        share=publish(share.model), task="new", p=3, phi=2, modules_to_save=["classifier"]
    )
    model = peft.get_peft_model(net(), config)
    own_loop(model)
    merged = merge_from(share, model, cap=20)
    assert merged.tasks == ("a", "b", "new")
    again = load_task(net(), merged, "new")
    assert torch.allclose(logits(again), logits(model), atol=1e-4)
    assert merge_from(share, model, task="other").tasks == ("a", "b", "other")
    with pytest.raises(TaskExistsError):
        merge_from(merged, model)


@pytest.mark.parametrize("name", ["default", "mine"])
def test_a_plain_lora_model(name: str, tmp_path: Path) -> None:
    share, model = shared(), lora(name, use_rslora=True)
    own_loop(model)
    merged = merge_from(share, model, task="new", adapter=name, cap=20)
    again = load_task(net(), merged, "new")
    assert torch.allclose(logits(again), logits(model), atol=1e-4)
    merged.save(tmp_path / "x.share")
    stored = Share.load(tmp_path / "x.share")
    again = load_task(net(), stored, "new")
    assert torch.allclose(logits(again), logits(model), atol=1e-4)


def test_what_is_stored_is_the_update_itself() -> None:
    share, model = shared(), lora()
    own_loop(model)
    merged = merge_from(share, model, task="new", cap=20)
    for module, update in merged.updates("new").items():
        delta = model.base_model.model.get_submodule(module).get_delta_weight("default")
        assert torch.allclose(dense(update).float(), delta.detach(), atol=1e-5)


def test_what_cannot_be_merged_is_refused() -> None:
    share = shared()
    with pytest.raises(OptionError, match="task=NAME"):
        merge_from(share, lora())
    with pytest.raises(OptionError, match="'mine'"):
        merge_from(share, lora(), task="new", adapter="mine")
    with pytest.raises(OptionError, match="'default'"):
        merge_from(share, net(), task="new")
    ia3 = peft.get_peft_model(
        net(), peft.IA3Config(target_modules=["first"], feedforward_modules=[])
    )
    with pytest.raises(UnsupportedAdapterError):
        merge_from(share, ia3, task="new")
    other = peft.get_peft_model(net(hidden=15), peft.LoraConfig(target_modules=["first"]))
    with pytest.raises(MismatchError):
        merge_from(share, other, task="new")
