"""Coefficients and the bases they belong to: a file says which, and others are refused.

Public reports of the kind: huggingface/trl#3252, hiyouga/LlamaFactory#5218.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from learn.nets import Points, logits, net, shared
from sharespace import Share, ShareConfig
from sharespace.errors import MismatchError, StoreNotFoundError
from sharespace.store import prune

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    shared().save(tmp_path / "s.share")
    return tmp_path / "s.share"


def model(store: Path, **options: Any) -> Any:
    config = ShareConfig(share=str(store), task="new", p=2, init_weights=False, **options)
    return peft.get_peft_model(net(), config)


def merge_another(store: Path) -> None:
    """Somebody else merges at the cap: bases of the same shape, and other ones."""
    from learn.nets import adapter

    Share.load(store).merge([adapter("c", 9)]).save()


@pytest.mark.parametrize("basis", [False, True])
def test_a_checkpoint_of_another_version_is_refused(
    store: Path, tmp_path: Path, basis: bool
) -> None:
    before = model(store, save_basis=basis)
    before.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    merge_another(store)
    after = model(store, save_basis=basis, seed=5)
    untouched = logits(after)
    with pytest.raises(MismatchError, match=r"version 1.*share_version=1"):
        after.load_adapter(str(tmp_path / "a"), "default")
    torch.testing.assert_close(logits(after), untouched)
    state = peft.get_peft_model_state_dict(before)
    with pytest.raises(MismatchError, match="share_version=1"):
        peft.set_peft_model_state_dict(after, state)
    same = model(store, share_version=1, save_basis=basis, seed=5)
    same.load_adapter(str(tmp_path / "a"), "default")
    torch.testing.assert_close(logits(same), logits(before))


def test_a_state_dict_of_another_version_is_refused(store: Path) -> None:
    """As FSDP's FULL_STATE_DICT and users' own checkpoints are loaded: past PEFT, bases and all."""
    before = model(store)
    state = before.state_dict()
    merge_another(store)
    after = model(store, seed=5)
    with pytest.raises(MismatchError, match=r"module .*other bases.*share_version=N"):
        after.load_state_dict(state)
    same = model(store, share_version=1, seed=5)
    same.load_state_dict({name: value.bfloat16() for name, value in state.items()})
    same.load_state_dict(state)
    torch.testing.assert_close(logits(same), logits(before))


def test_a_trainer_does_not_resume_on_bases_that_others_merged_into(
    store: Path, tmp_path: Path
) -> None:
    def trained(resume: bool, **options: Any) -> Any:
        adapted = model(store, **options)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "run"), max_steps=4, save_steps=2, use_cpu=True,
            report_to="none", disable_tqdm=True, logging_strategy="no", learning_rate=0.01,
            dataloader_pin_memory=False,
        )  # fmt: skip
        resumed = str(tmp_path / "run" / "checkpoint-2") if resume else None
        trainer = Trainer(model=adapted, args=arguments, train_dataset=Points())
        trainer.train(resume_from_checkpoint=resumed)
        return logits(adapted)

    expected = trained(False)
    merge_another(store)
    with pytest.raises(MismatchError, match=r"version 1.*share_version=1"):
        trained(True)
    torch.testing.assert_close(trained(True, share_version=1), expected)


def test_a_version_that_is_gone_is_said_with_what_helps(store: Path, tmp_path: Path) -> None:
    before = model(store)
    before.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    shutil.copytree(store, tmp_path / "copy.share")
    merge_another(store)
    prune(store, keep=1)
    with pytest.raises(StoreNotFoundError, match=r"version 1.*belong to its bases.*a copy of the"):
        peft.PeftModel.from_pretrained(net(), str(tmp_path / "a"))
    config = ShareConfig.from_pretrained(str(tmp_path / "a"))
    config.share = str(tmp_path / "copy.share")
    again = peft.PeftModel.from_pretrained(net(), str(tmp_path / "a"), config=config)
    torch.testing.assert_close(logits(again), logits(before))


def test_files_of_before_have_no_mark(store: Path, tmp_path: Path) -> None:
    before = model(store)
    before.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    file = tmp_path / "a" / WEIGHTS
    tensors = load_file(file)
    del tensors["base_model.model.sharespace_basis_id"]
    save_file(tensors, file, {"format": "pt"})
    again = peft.PeftModel.from_pretrained(net(), str(tmp_path / "a"))
    torch.testing.assert_close(logits(again), logits(before))
