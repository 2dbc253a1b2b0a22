"""TRL's trainers: SFT as any Trainer, DPO and KTO with their reference adapters."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from sharespace import Share, ShareConfig
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


def share() -> Share:
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
    method = TaskMethod(
        p=2, phi=1, heads=("lm_head",), start="auto", task_type="CAUSAL_LM", form="factors"
    )
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


@pytest.mark.parametrize("copies", [1, 12])
def test_sft_trainer_chooses_its_rate(copies: int) -> None:
    """From raw text, which TRL turns into tokens: 24 texts in folds, 288 by one split."""
    words = tokenizer()
    setup = Setup(
        trainer=trl.SFTTrainer, arguments=trl.SFTConfig, options={"processing_class": words}
    )
    training = replace(TRAINING, learning_rate="auto", arguments={"max_length": 16})
    method = TaskMethod(p=2, form="core", phi=1, heads=("lm_head",), task_type="CAUSAL_LM")
    data = datasets.Dataset.from_dict({"text": SENTENCES * copies})
    learned = adapt(
        llama(len(words)), share(), data, training, task="new", method=method, setup=setup
    )
    choice = learned.fit.choice
    assert choice is not None
    assert choice.folds == (4 if copies == 1 else 1)
    assert choice.loss < choice.untrained


# References: TRL adds an adapter "ref" with the configuration of "default"


@pytest.fixture(params=[{"phi": 1}, {"form": "core", "phi": 1}, {"save_basis": True}], ids=str)
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A Share model, and an adapter that was trained in its first version; another one has come."""
    store, saved = tmp_path / "tasks.share", tmp_path / "sft"
    share().save(store)
    config = ShareConfig(
        share=str(store), task="new", p=2, modules_to_save=["lm_head"], task_type="CAUSAL_LM",
        **request.param,
    )  # fmt: skip
    model = peft.get_peft_model(llama(len(tokenizer())), config)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(saved, save_embedding_layers=False)
    Share.load(store).merge(made("c", 5)).save()
    return store, saved


def preferences(name: str) -> Any:
    rows: list[Any]
    rows = [{"prompt": "the a sees", "chosen": f" the {c}", "rejected": " a b"} for c in "xyz"]
    if name == "KTO":
        rows = [
            {"prompt": row["prompt"], "completion": row[kind], "label": kind == "chosen"}
            for row in rows
            for kind in ("chosen", "rejected")
        ]
    return datasets.Dataset.from_list(rows)


@pytest.mark.parametrize("name", ["DPO", "KTO"])
def test_the_reference_is_the_policy_as_it_was_loaded(
    policy: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    words = tokenizer()
    base = llama(len(words))
    model = peft.PeftModel.from_pretrained(base, str(policy[1]), is_trainable=True)
    arguments = getattr(trl, f"{name}Config")(
        str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=3, use_cpu=True, bf16=False,
        report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1, learning_rate=0.05,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = getattr(trl, f"{name}Trainer")(
        model, args=arguments, train_dataset=preferences(name), processing_class=words
    )
    ids = words(SENTENCES, return_tensors="pt").input_ids
    before = said(model, ids)
    trainer.train()
    first, second = (log["loss"] for log in trainer.state.log_history[:2])
    # DPO: ln 2; KTO: half of what is wanted, half of what is not.
    assert first == pytest.approx(math.log(2) if name == "DPO" else 0.5, abs=1e-4)
    assert second != pytest.approx(first, abs=1e-3)
    after = said(model, ids)
    model.set_adapter("ref")
    torch.testing.assert_close(said(model, ids), before)
    assert not torch.allclose(after, before, atol=1e-2)


def said(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits
