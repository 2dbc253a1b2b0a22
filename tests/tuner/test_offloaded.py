"""Bases whose weights accelerate keeps on disk, and bases that have no weights yet."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import GPT2LMHeadModel

from sharespace import MixedTasks, Share, ShareConfig
from sharespace.errors import MismatchError
from sharespace.learn import TaskMethod, TrainingSettings, adapt, contribute, load_task, merge_from
from sharespace.subspace.base_weights import BaseWeightsWarning
from sharespace.tuner import applied
from tuner.spaces import randomise, space
from tuner.test_routing import gpt2

WHERE = {
    "transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "cpu",
    "transformer.h.1": "disk", "transformer.ln_f": "cpu", "lm_head": "cpu",
}  # fmt: skip
X = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def quiet_libraries() -> Iterator[None]:
    with warnings.catch_warnings():
        # That offloaded weights cannot be compared is said, and tested in test_base.
        warnings.simplefilter("ignore", BaseWeightsWarning)
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")
        for module in ("transformers", "peft", "accelerate", "torch"):
            warnings.filterwarnings("ignore", module=module)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``base`` (GPT-2) and ``s``, a Share model with tasks "a" and "b"."""
    gpt2().save_pretrained(tmp_path / "base")
    layers = space(gpt2(), tasks=("a", "b")).layers
    names = [name for name in layers if name.startswith("transformer.h")]
    Share(space(gpt2(), tasks=("a", "b"))).save(tmp_path / "s")
    assert {"transformer.h.1.attn.c_attn", "transformer.h.1.mlp.c_proj"} <= set(names)
    return tmp_path


def base(folder: Path, offloaded: bool) -> Any:
    options = {"device_map": WHERE, "offload_folder": folder / "off"} if offloaded else {}
    model = GPT2LMHeadModel.from_pretrained(folder / "base", **options).eval()
    assert model.transformer.h[1].attn.c_attn.weight.is_meta == offloaded
    return model


@torch.no_grad()
def logits(model: Any, **options: Any) -> Any:
    return model.eval()(input_ids=X, **options).logits


def test_offloaded_tasks_answer_as_loaded_ones(folder: Path) -> None:
    share = Share.load(folder / "s")
    answers = []
    for offloaded in (False, True):
        mixed = MixedTasks(base(folder, offloaded), share)
        with mixed.tasks(["a", "b", None]):
            answers.append(logits(mixed.model))
    torch.testing.assert_close(answers[1], answers[0])
    model = load_task(base(folder, True), share, "b")
    torch.testing.assert_close(logits(model)[1], answers[0][1])


def config(folder: Path) -> ShareConfig:
    return ShareConfig(share=str(folder / "s"), task="new", p=2, phi=1, task_type="CAUSAL_LM")


def test_trained_merged_and_handed_in_as_on_a_loaded_base(folder: Path) -> None:
    share = Share.load(folder / "s")
    results = []
    for offloaded in (False, True):
        model = get_peft_model(base(folder, offloaded), config(folder))
        randomise(model)
        model(input_ids=X, labels=X).loss.backward()
        trained = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        optimizer.step()
        merged = merge_from(share, model, cap=20)
        contribute(model, folder / f"inbox-{offloaded}", plain=True)
        model.save_pretrained(folder / f"saved-{offloaded}", save_embedding_layers=False)
        results.append((trained, logits(model), dict(merged.model.layers), merged))
    (gradients, said, layers, merged), (offloaded_gradients, offloaded_said, others, _) = results
    torch.testing.assert_close(offloaded_gradients, gradients)
    torch.testing.assert_close(offloaded_said, said)
    assert set(others) == set(layers)
    for offloaded in (False, True):
        again = load_task(base(folder, offloaded), merged, "new")
        torch.testing.assert_close(logits(again), said, atol=1e-4, rtol=1e-4)
    unloaded = get_peft_model(base(folder, False), config(folder))
    unloaded.load_adapter(str(folder / "saved-True"), "trained")
    unloaded.set_adapter("trained")
    torch.testing.assert_close(logits(unloaded), said)


def test_adapt_learns_on_an_offloaded_base(folder: Path) -> None:
    training = TrainingSettings(
        max_steps=3, learning_rate=1e-2, per_device_train_batch_size=3, use_cpu=True
    )
    rows = [{"input_ids": row, "labels": row} for row in X]
    share, method = Share.load(folder / "s"), TaskMethod(p=2, phi=1, heads=())
    learned = [
        adapt(base(folder, offloaded), share, rows, training, task="new", method=method).adapter
        for offloaded in (False, True)
    ]
    for module in learned[0].shapes:
        torch.testing.assert_close(learned[1].layer(module).up, learned[0].layer(module).up)


def test_an_update_is_merged_into_an_offloaded_base(folder: Path) -> None:
    model = get_peft_model(base(folder, True), config(folder))
    randomise(model)
    said = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), said, atol=1e-5, rtol=1e-4)


def test_weights_that_are_nowhere_are_not_changed_in_silence(folder: Path) -> None:
    share = Share.load(folder / "s")
    with (
        pytest.raises(MismatchError, match=r"h\.1.*offloaded"),
        applied(base(folder, True), share.updates("a")),
    ):
        pass
    with torch.device("meta"):
        nowhere = GPT2LMHeadModel(gpt2().config)
    with pytest.raises(MismatchError, match="not loaded"), MixedTasks(nowhere, share).tasks(["a"]):
        pass


def test_a_base_without_weights_is_adapted_and_filled(folder: Path) -> None:
    with torch.device("meta"):
        nowhere = GPT2LMHeadModel(gpt2().config)
    options = config(folder)
    options.task = "a"
    model = get_peft_model(nowhere, options)
    # Positions and the like, which are no weights, are made anew.
    weights = {f"base_model.model.{k}": v for k, v in _keys(model, base(folder, False)).items()}
    model.load_state_dict(weights, strict=False, assign=True)
    assert not any(parameter.is_meta for parameter in model.parameters())
    expected = logits(load_task(base(folder, False), Share.load(folder / "s"), "a"))
    torch.testing.assert_close(logits(model), expected)


def _keys(model: Any, loaded: Any) -> dict[str, Any]:
    """The loaded model's weights, by the names that adapted modules give them."""
    inner = dict(model.base_model.model.named_modules())
    named = (key.rpartition(".") for key in loaded.state_dict())
    return {
        f"{path}.base_layer.{name}" if hasattr(inner[path], "base_layer") else f"{path}.{name}": (
            loaded.state_dict()[f"{path}.{name}"]
        )
        for path, _, name in named
    }


def test_peft_s_own_way_of_loading_onto_disk_offloaded_bases_is_refused(folder: Path) -> None:
    """It would place the model anew, and leave NaN in the place of what is not LoRA's."""
    model = get_peft_model(base(folder, False), config(folder))
    model.save_pretrained(folder / "saved", save_embedding_layers=False)
    places = {f"base_model.model.{name}": place for name, place in WHERE.items()}
    for options in ({}, {"device_map": places, "offload_folder": str(folder / "new")}):
        with pytest.raises(MismatchError, match=r"on disk.*load_adapter\(PATH, NAME\)"):
            PeftModel.from_pretrained(base(folder, True), str(folder / "saved"), **options)
