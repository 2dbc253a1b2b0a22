"""Which base model a task belongs to, and the tokens that were added to it: through every door."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sharespace import Share
from sharespace.errors import MismatchError
from sharespace.gather import gather
from sharespace.learn import TaskMethod, contribute, finetune, merge_from, prepare
from sharespace.learn.callbacks import MergeIntoShare
from sharespace.learn.finetune import load_task
from sharespace.serve.mixed import MixedTasks
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate
from sharespace.subspace.base_weights import BaseWeightsWarning
from sharespace.tuner import ShareConfig, publish, release

TARGETS = ("q_proj", "v_proj")
TOKENS = torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(0))


def llama(seed: int = 0, name: str = "org/base", vocab: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.name_or_path = model.config._name_or_path = name
    return model


def known_task() -> Share:
    """One adapter of the modules, as it comes from a file: without base weights."""
    generator = torch.Generator().manual_seed(1)
    updates = {
        f"model.layers.{i}.self_attn.{target}": LayerUpdate(
            torch.randn(16, 3, generator=generator) / 8, torch.randn(3, 16, generator=generator)
        )
        for i in range(2)
        for target in TARGETS
    }
    adapter = Adapter.from_updates("known", updates, base=BaseModel("org/base"))
    return Share.from_adapters([adapter], variance=0.9999)


def trained(model: nn.Module, config: object) -> PeftModel:
    """The model after some steps, which only have to change something."""
    peft_model = get_peft_model(model, config)
    optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        peft_model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return peft_model.eval()


def share_config(share: Share, task: str = "new") -> ShareConfig:
    return ShareConfig(share=publish(share.model), task=task, p=2, task_type="CAUSAL_LM")


def lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules=list(TARGETS), task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Share:
    """The base weights came with the second task, and were stored."""
    path = tmp_path_factory.mktemp("pinned") / "s"
    share = known_task()
    assert not share.model.base_samples
    merged = merge_from(share, trained(llama(), share_config(share)))
    merged.save(path)
    found = Share.load(path)
    assert set(found.model.base_samples) == set(found.model.layers)
    return found


DOORS: dict[str, Callable[[Share, nn.Module], object]] = {
    "prepare": lambda share, model: prepare(
        model, share, "x", TaskMethod(p=2, heads=(), start="zero")
    ),
    "load_task": lambda share, model: load_task(model, share, "known"),
    "finetune": lambda share, model: finetune(model, share, None, None, task="known"),  # type: ignore[arg-type]
    "ShareConfig": lambda share, model: get_peft_model(model, share_config(share)),
    "MixedTasks": lambda share, model: MixedTasks(model, share),
    "merge_into_base": lambda share, model: share.merge_into_base(model, "known"),
    "merge_from": lambda share, model: merge_from(share, get_peft_model(model, lora()), task="x"),
}


@pytest.mark.parametrize("door", DOORS)
def test_another_base_of_the_same_shapes_is_refused(pinned: Share, door: str) -> None:
    other = llama(seed=7)
    before = {name: p.detach().clone() for name, p in other.named_parameters()}
    modules = list(dict(other.named_modules()))
    with pytest.raises(MismatchError, match=r"module 'model\.layers\.0.*has other weights"):
        DOORS[door](pinned, other)
    if door != "merge_from":  # LoRA's layers were put in before.
        assert list(dict(other.named_modules())) == modules
    after = {n.replace(".base_layer", ""): p for n, p in other.named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in before.items() if name in after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("door", ["prepare", "load_task", "ShareConfig", "MixedTasks"])
def test_the_same_base_in_16_bits_is_the_same(pinned: Share, door: str, dtype: torch.dtype) -> None:
    DOORS[door](pinned, llama().to(dtype))


def test_weights_that_agree_say_more_than_names(pinned: Share) -> None:
    mirror = trained(llama(name="mirror/copy"), share_config(pinned, "x"))
    merged = merge_from(pinned, mirror)
    assert (merged.tasks, merged.model.base.id) == (("known", "new", "x"), "org/base")


def test_another_name_is_refused_while_no_weights_are_known() -> None:
    share = known_task()
    model = trained(llama(name="org/another"), share_config(share))
    with pytest.raises(MismatchError, match=r"'org/another'.*'org/base'"):
        merge_from(share, model)
    merged = merge_from(share, model, base="org/base")
    assert merged.model.base.id == "org/base"
    assert merged.model.base_samples


@pytest.mark.parametrize("door", ["prepare", "load_task"])
def test_another_name_is_said_while_no_weights_are_known(pinned: Share, door: str) -> None:
    with pytest.warns(BaseWeightsWarning, match=r"'org/another'.*'org/base'"):
        DOORS[door](known_task(), llama(name="org/another"))
    DOORS[door](pinned, llama(name="org/another"))  # The weights agree.


def test_a_callback_refuses_before_the_training(tmp_path: Path, pinned: Share) -> None:
    known_task().save(tmp_path / "plain")
    wrong_name = get_peft_model(llama(name="org/another"), lora())
    with pytest.raises(MismatchError, match="org/another"):
        begin(MergeIntoShare(tmp_path / "plain", task="x"), wrong_name)
    begin(MergeIntoShare(tmp_path / "plain", task="x", base="org/base"), wrong_name)
    pinned.save(tmp_path / "pinned")
    with pytest.raises(MismatchError, match="has other weights"):
        begin(MergeIntoShare(tmp_path / "pinned", task="x"), get_peft_model(llama(7), lora()))
    begin(MergeIntoShare(tmp_path / "pinned", task="x"), get_peft_model(llama(), lora()))


def begin(callback: MergeIntoShare, model: nn.Module) -> None:
    callback.on_train_begin(None, None, None, model=model)  # type: ignore[arg-type]


def test_weights_that_are_not_at_hand_are_said(pinned: Share) -> None:
    """As 4-bit and offloaded ones: nothing can be compared, and training goes on."""
    model = llama(seed=7)
    model.model.layers[0].self_attn.q_proj.to("meta")
    with pytest.raises(MismatchError, match="v_proj"):
        MixedTasks(model, pinned)
    for door in ("MixedTasks", "ShareConfig", "prepare"):
        same = llama()
        quantised = torch.zeros(16, 16, dtype=torch.int8)
        same.model.layers[0].self_attn.q_proj.weight = nn.Parameter(quantised, requires_grad=False)
        with pytest.warns(BaseWeightsWarning, match=r"1 of 4 modules, 'model\.layers\.0\.self_"):
            DOORS[door](pinned, same)


def test_merged_weights_are_not_the_base(pinned: Share) -> None:
    """``merge_adapter`` changes the weights in place: they are no sign of another base."""
    model = trained(llama(), share_config(pinned, "other"))
    model.merge_adapter()
    assert "other" in merge_from(pinned, model).tasks


# Tokens that were added.


def resized(path: Path) -> LlamaForCausalLM:
    """A model from its own files, with six tokens more; their rows are random."""
    model = AutoModelForCausalLM.from_pretrained(path)
    model.resize_token_embeddings(70, mean_resizing=False)
    model.config._name_or_path = model.name_or_path = str(path)
    return model.eval()


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=tokens).logits
    return result


@pytest.mark.parametrize("kind", ["ShareConfig", "LoraConfig"])
def test_embeddings_of_added_tokens_are_kept(tmp_path: Path, kind: str) -> None:
    llama().save_pretrained(tmp_path / "base")
    share = known_task()
    config = share_config(share) if kind == "ShareConfig" else lora()
    model = trained(resized(tmp_path / "base"), config)
    added = torch.arange(60, 70)[None]
    wanted = logits(model, added)
    merged = merge_from(share, model, task="new")
    assert {key.rpartition("model.")[2] for key in merged.task("new").kept} == {
        "embed_tokens.weight",
        "lm_head.weight",
    }
    merged.save(tmp_path / "s")
    Share.load(tmp_path / "s").export("new", tmp_path / "out")
    exported = PeftModel.from_pretrained(resized(tmp_path / "base"), tmp_path / "out")
    assert torch.allclose(logits(exported, added), wanted, atol=1e-4)
    # And in the subspace, where PEFT keeps them as modules trained whole.
    loaded = load_task(resized(tmp_path / "base"), merged, "new")
    assert torch.allclose(logits(loaded.eval(), added), wanted, atol=1e-4)
    release(loaded)


def test_embeddings_as_they_were_are_not_kept(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    share = known_task()
    assert not merge_from(share, trained(model, share_config(share))).task("new").kept
    assert not merge_from(share, trained(copy.deepcopy(llama()), lora()), task="l").task("l").kept


def test_a_contribution_of_another_base_is_set_aside(tmp_path: Path, pinned: Share) -> None:
    """The samples travel with it; what agrees is merged, what does not is refused by itself."""
    Share(pinned.model).save(tmp_path / "s")
    contribute(trained(llama(), lora()), tmp_path / "inbox", task="right")
    contribute(trained(llama(seed=7), lora()), tmp_path / "inbox", task="wrong")
    outcome = gather(tmp_path / "s", tmp_path / "inbox")
    assert Share.load(tmp_path / "s").tasks == ("known", "new", "right")
    assert "has other weights" in str(outcome)
