"""Coefficients and the bases they belong to: a file says which, and others are refused.

Public reports of the kind: huggingface/trl#3252, hiyouga/LlamaFactory#5218.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from learn.nets import logits, net, shared
from sharespace import Share, ShareConfig
from sharespace.errors import MismatchError

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


def test_files_of_before_have_no_mark(store: Path, tmp_path: Path) -> None:
    before = model(store)
    before.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    file = tmp_path / "a" / WEIGHTS
    tensors = load_file(file)
    del tensors["base_model.model.sharespace_basis_id"]
    save_file(tensors, file, {"format": "pt"})
    again = peft.PeftModel.from_pretrained(net(), str(tmp_path / "a"))
    torch.testing.assert_close(logits(again), logits(before))
