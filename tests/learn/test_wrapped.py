"""Models that something wraps, as a whole or in parts: the task has the modules of the bare model.

Public reports of the kind: MakazhanAlpamys/Soup#335, huggingface/peft#2957.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from learn.nets import logits, net, shared
from learn.test_merging import own_loop
from sharespace.errors import MismatchError
from sharespace.learn import load_task, merge_from, prepare
from sharespace.learn.merging import contribute
from sharespace.serve.mixed import MixedTasks
from sharespace.tuner import ShareConfig, applied, collect, publish
from tuner.spaces import ALIVE

# Of dynamo itself, where it looks at tensors between two compiled parts.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def compiled_parts(model: Any) -> Any:
    inner = model.base_model.model if isinstance(model, peft.PeftModel) else model
    inner.first = torch.compile(inner.first, backend="eager")
    inner.second = torch.compile(inner.second, backend="eager")
    return model


def checkpointed_parts(model: Any) -> Any:
    inner = model.base_model.model if isinstance(model, peft.PeftModel) else model
    inner.first = checkpoint_wrapper(inner.first)
    return model


def compiled_data_parallel(model: Any) -> Any:
    return nn.DataParallel(compiled(model))


WAYS = [compiled, compiled_parts, checkpointed_parts, compiled_data_parallel, nn.DataParallel]


def config(share: Any, **options: Any) -> ShareConfig:
    ALIVE.append(share.model)
    return ShareConfig(
        share=publish(share.model), task="new", p=3, phi=2, modules_to_save=["classifier"],
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("wrap", WAYS)
def test_merged_and_handed_in_as_the_bare_model(wrap: Any, tmp_path: Path) -> None:
    share = shared()
    model = peft.get_peft_model(net(), config(share))
    wrapped = wrap(model)
    own_loop(wrapped, steps=3)
    merged = merge_from(share, wrapped, cap=20)
    assert set(merged.model.layers) == set(share.model.layers)
    assert set(merged.task("new").kept) == {
        f"base_model.model.classifier.{name}" for name in ("weight", "bias")
    }
    torch.testing.assert_close(
        logits(load_task(net(), merged, "new")), logits(model), atol=1e-4, rtol=0
    )
    assert set(collect(wrapped, "new").shapes) == set(share.model.layers)
    assert contribute(wrapped, tmp_path / "inbox").task == "new"
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    again = peft.PeftModel.from_pretrained(net(), str(tmp_path / "saved"))
    torch.testing.assert_close(logits(again), logits(model))


@pytest.mark.parametrize("wrap", WAYS)
def test_a_wrapped_base_is_adapted_and_serves(wrap: Any) -> None:
    share = shared()
    x = torch.randn(2, 10)
    expected = load_task(net(), share, "a")(x=x)["logits"]
    base = wrap(net())
    base(x)
    mixed = MixedTasks(base, share)
    with mixed.tasks(["a", "a"]), torch.no_grad():
        torch.testing.assert_close(base(x)["logits"], expected, atol=1e-5, rtol=1e-5)
    mixed.remove()
    with applied(base, share.updates("a")), torch.no_grad():
        found = base(x)["logits"]
    assert not torch.allclose(found, base(x)["logits"])
    model = prepare(wrap(net()), share, "new")
    own_loop(model, steps=1)
    assert set(merge_from(share, model).model.layers) == set(share.model.layers)


def test_what_was_compiled_before_the_adapter_came_runs_it() -> None:
    share, base = shared(), net()
    run = compiled(base)
    run(torch.ones(1, 10))
    model = peft.get_peft_model(base, config(share, init_weights=False))
    with torch.no_grad():
        torch.testing.assert_close(run(torch.ones(1, 10)), model(torch.ones(1, 10)))


def test_a_model_without_the_adapter_is_refused_whatever_wraps_it() -> None:
    with pytest.raises(MismatchError, match="the model has none of that name"):
        collect(compiled(net()), "new")
