"""Any subclass of Trainer: TRL's SFTTrainer, on a language model and tokenizer made here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from sharespace import Share
from sharespace.learn import Setup, TaskMethod, TrainingSettings, adapt, load_task
from sharespace.subspace.adapter import Adapter, LayerUpdate

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
datasets = pytest.importorskip("datasets", reason="TRL needs datasets")

# PEFT's and TRL's own uses of what transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")

SENTENCES = [f"the {a} {b} the {c}" for a in "abcd" for b in ("sees", "hears") for c in "xyz"]
TRAINING = TrainingSettings(
    max_steps=8, learning_rate=3e-2, per_device_train_batch_size=8, use_cpu=True
)


def tokenizer() -> Any:
    plain = Tokenizer(models.WordLevel(unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<pad>", "<eos>"]
    plain.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=special))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )


def llama(vocabulary: int) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, pad_token_id=1, eos_token_id=2,
        bos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def share() -> Share:
    def made(name: str, seed: int) -> Adapter:
        draw = torch.Generator().manual_seed(seed)
        return Adapter.from_updates(
            name,
            {
                f"model.layers.{i}.self_attn.{side}_proj": LayerUpdate(
                    0.1 * torch.randn(16, 2, generator=draw), torch.randn(2, 16, generator=draw)
                )
                for i in range(2)
                for side in "qv"
            },
        )

    return Share.from_adapters([made("a", 1), made("b", 2)], k=4)


def test_sft_trainer_learns_a_task_that_merges() -> None:
    words, known = tokenizer(), share()
    data = datasets.Dataset.from_dict({"text": SENTENCES})
    setup = Setup(
        trainer=trl.SFTTrainer,
        arguments=trl.SFTConfig,
        options={"processing_class": words},
    )
    training = replace(TRAINING, arguments={"max_length": 16})
    method = TaskMethod(p=2, phi=1, heads=("lm_head",), start="nearest", task_type="CAUSAL_LM")
    learned = adapt(
        llama(len(words)), known, data, training, task="new", method=method, setup=setup
    )
    assert learned.fit.steps == 8
    assert learned.start in ("a", "b", "zero")
    ids = words(SENTENCES, return_tensors="pt").input_ids

    def loss(model: Any) -> float:
        with torch.no_grad():
            return float(model.eval()(input_ids=ids, labels=ids).loss)

    assert loss(learned.model) < loss(llama(len(words)))
    merged = known.merge(learned.adapter, cap=20)
    again = load_task(llama(len(words)), merged, "new")
    assert loss(again) == pytest.approx(loss(learned.model), rel=1e-4)
