"""Trained in two processes, with parameters cut into parts or not, and merged as one's task."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from sharespace import Share
from sharespace.errors import MismatchError
from sharespace.learn.callbacks import MergeIntoShare

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform != "linux",
    reason="needs torch.distributed with gloo",
)
WAYS = ["data parallel", "FSDP", "fully_shard"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` (BERT) and ``tasks.share`` (two tasks of LoRA adapters)."""
    path = tmp_path_factory.mktemp("fsdp")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=28, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, num_labels=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(path / "base")
    for name in ("a0", "a1"):
        base = transformers.BertForSequenceClassification.from_pretrained(path / "base")
        lora = peft.LoraConfig(
            r=2, target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False
        )
        model = peft.get_peft_model(base, lora)
        model.save_pretrained(path / name, save_embedding_layers=False)
    Share.from_adapters([path / "a0", path / "a1"], k=8).save(path / "tasks.share")
    return path


@pytest.fixture(scope="module")
def record(folder: Path) -> Any:
    """What two processes have found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("fsdp_worker.py"))]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(port), str(folder)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)[-6000:]
    return json.loads((folder / "record.json").read_bytes())


@pytest.mark.parametrize("way", WAYS)
def test_the_trainer_s_task_is_committed_once(record: Any, way: str) -> None:
    """By accelerate's FSDP; ``fully_shard`` with gradient checkpointing."""
    wrapper = {"data parallel": "DistributedDataParallel", "FSDP": "FullyShardedDataParallel"}
    assert record[way]["kind"][1] == wrapper.get(way, "FSDPPeftModelForSequenceClassification")
    assert record[way]["tasks"] == ["a0", "a1", *WAYS[: WAYS.index(way) + 1]]
    torch.testing.assert_close(
        torch.tensor(record[way]["logits"]), torch.tensor(record[way]["trained"]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", ["share", "lora"])
@pytest.mark.parametrize("way", WAYS)
def test_merged_and_handed_in_as_by_one_process(record: Any, way: str, kind: str) -> None:
    """``fully_shard`` below ``torch.compile``."""
    got = record[f"{way}, by hand"][kind]
    torch.testing.assert_close(torch.tensor(got["merged"]), torch.tensor(got["alone"]))
    assert len(got["files"]) == 1


def test_what_cannot_be_gathered_is_refused_in_one_line(record: Any) -> None:
    alone, inner = record["one process"]
    assert "not every process asked for them within 1 seconds" in alone
    assert "Give the model that FSDP made" in inner


def test_zero_3_is_refused_before_the_training(folder: Path) -> None:
    """DeepSpeed marks the parameters that it has cut, and leaves nothing in them."""
    base = transformers.BertForSequenceClassification.from_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["query"]))
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number
    callback = MergeIntoShare(folder / "tasks.share", task="new")
    with pytest.raises(MismatchError, match=r"^MergeIntoShare: DeepSpeed ZeRO-3.*ZeRO-2 or FSDP"):
        callback.on_train_begin(None, transformers.TrainerState(), None, model=model)
