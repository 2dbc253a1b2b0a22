"""Merging at the end of a Trainer's run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import Trainer, TrainingArguments

from learn.nets import Points, adapter, logits, net, shared
from sharespace import Share
from sharespace.errors import OptionError, StoreConflictError, StoreNotFoundError, TaskExistsError
from sharespace.learn import callbacks, load_task
from sharespace.learn.callbacks import MergeIntoShare
from sharespace.learn.merging import merge_trained
from sharespace.tuner import ShareConfig


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.share"
    shared(k=8).save(path)
    return path


def model(store: Path, task: str | None = "new") -> Any:
    config = ShareConfig(share=str(store), task=task, p=3, phi=1, modules_to_save=["classifier"])
    return peft.get_peft_model(net(), config)


def train(model: Any, callback: MergeIntoShare, folder: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=6, learning_rate=3e-2, use_cpu=True, report_to="none",
        disable_tqdm=True, save_strategy="no", logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=Points(), callbacks=[callback]).train()


def test_the_trained_task_is_committed(store: Path, tmp_path: Path) -> None:
    trained = model(store)
    train(trained, MergeIntoShare(store, cap=20), tmp_path)
    share = Share.load(store)
    assert (share.version, share.tasks) == (2, ("a", "b", "new"))
    assert torch.allclose(logits(load_task(net(), share, "new")), logits(trained), atol=1e-4)


def commits_in_between(monkeypatch: pytest.MonkeyPatch, store: Path, times: int) -> None:
    """Somebody else commits after the store was read and before the merge is saved."""
    real, left = merge_trained, list(range(times))

    def merge(share: Share, *args: Any, **kwargs: Any) -> Share:
        if left:
            Share.load(store).merge(adapter(f"other{left.pop()}", len(left) + 7)).save()
        return real(share, *args, **kwargs)

    monkeypatch.setattr(callbacks, "merge_trained", merge)


def test_what_others_commit_meanwhile_is_kept(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits_in_between(monkeypatch, store, 2)
    train(model(store, None), MergeIntoShare(store, task="new"), tmp_path)
    assert set(Share.load(store).tasks) == {"a", "b", "other0", "other1", "new"}


def test_it_gives_up_when_others_never_stop(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits_in_between(monkeypatch, store, 9)
    with pytest.raises(StoreConflictError):
        train(model(store), MergeIntoShare(store), tmp_path)


def test_what_would_fail_at_the_end_fails_at_the_beginning(store: Path, tmp_path: Path) -> None:
    for task in ("a", ""):
        with pytest.raises((TaskExistsError, OptionError)):
            train(model(store, "a" if task else None), MergeIntoShare(store), tmp_path)
    with pytest.raises(StoreNotFoundError):
        train(model(store), MergeIntoShare(tmp_path / "none.share"), tmp_path)
    with pytest.raises(OptionError, match="PeftModel"):
        train(net(), MergeIntoShare(store, task="new"), tmp_path)
    assert Share.load(store).version == 1
