"""Rows of one batch that belong to different tasks, in evaluation and in training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from sharespace.errors import MismatchError, OptionError
from sharespace.tuner import ShareConfig, SubspaceLayer
from tuner.spaces import gradients, published, randomise, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning"),
]
NAMES = ("__base__", "default", "other")


@pytest.fixture(autouse=True)
def no_warnings_of_generation() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="transformers")
        yield


def bert() -> Any:
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, num_labels=3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return seeded(lambda: BertForSequenceClassification(config))


def gpt2() -> Any:
    config = GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=1, eos_token_id=39, pad_token_id=0,
    )  # fmt: skip
    return seeded(lambda: GPT2LMHeadModel(config))


def t5() -> Any:
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=39, dropout_rate=0.0,
    )  # fmt: skip
    return seeded(lambda: T5ForConditionalGeneration(config))


def two_tasks(base: Any, first: list[str], second: list[str], **options: Any) -> Any:
    """A model with the adapters "default" and "other", whose modules overlap in part."""
    from peft import get_peft_model

    share = published(base)
    model = get_peft_model(base, ShareConfig(share=share, target_modules=first, **options))
    randomise(model)
    config = ShareConfig(share=share, target_modules=second, phi=1, seed=4, **options)
    model.add_adapter("other", config)
    model.set_adapter("other")
    randomise(model, seed=8)
    model.set_adapter("default")
    return model.eval()


def bert_model() -> Any:
    return two_tasks(bert(), ["query", "value"], ["value", "dense"], task_type="SEQ_CLS")


def tokens(rows: int = 6, length: int = 5) -> Tensor:
    return torch.randint(1, 39, (rows, length), generator=torch.Generator().manual_seed(2))


def alone(model: Any, name: str, **inputs: Any) -> Any:
    """What one adapter says to the whole batch."""
    if name == "__base__":
        with model.disable_adapter():
            return model(**inputs)
    model.set_adapter(name)
    return model(**inputs)


def test_each_row_goes_through_its_own_adapter() -> None:
    model, x = bert_model(), tokens()
    rows = [NAMES[i % 3] for i in range(6)]
    mixed = model(input_ids=x, adapter_names=rows).logits
    for i, name in enumerate(rows):
        one = alone(model, name, input_ids=x).logits[i]
        torch.testing.assert_close(mixed[i], one, rtol=1e-4, atol=1e-5)
    assert not any(m.routing for m in model.modules() if isinstance(m, SubspaceLayer))


def test_names_are_checked() -> None:
    model, x = bert_model(), tokens(2)
    with pytest.raises(OptionError, match=r"non-existing adapter\(s\): nobody"):
        model(input_ids=x, adapter_names=["default", "nobody"])
    with pytest.raises(ValueError, match="same as the number of inputs, but got 1 and 2"):
        model(input_ids=x, adapter_names=["default"])
    model.merge_adapter()
    with pytest.raises(ValueError, match="when there are merged adapters"):
        model(input_ids=x, adapter_names=["default", "other"])


@pytest.mark.parametrize("make", [gpt2, t5])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_task_a_row(make: Any, beams: int) -> None:
    targets = (["c_attn"], ["c_attn", "c_fc"]) if make is gpt2 else (["q"], ["q", "v", "wi"])
    model, x = two_tasks(make(), *targets), tokens(3)
    options: dict[str, Any] = {"max_new_tokens": 4, "num_beams": beams, "do_sample": False}
    options["attention_mask"] = torch.ones_like(x)
    found = model.generate(input_ids=x, adapter_names=list(NAMES), **options)
    outputs = []
    for i, name in enumerate(NAMES):
        one = {**options, "attention_mask": torch.ones_like(x[i : i + 1])}
        if name == "__base__":
            with model.disable_adapter():
                outputs.append(model.generate(input_ids=x[i : i + 1], **one))
        else:
            model.set_adapter(name)
            outputs.append(model.generate(input_ids=x[i : i + 1], **one))
    for i, one_row in enumerate(outputs):
        width = min(found.shape[1], one_row.shape[1])
        assert torch.equal(found[i, :width], one_row[0, :width]), NAMES[i]


def test_t5_is_saved_and_loaded(tmp_path: Any) -> None:
    """Its embedding is called ``shared.weight``."""
    from peft import PeftModel

    model = two_tasks(t5(), ["q"], ["q", "v"])
    model.set_adapter("default")
    model.peft_config["default"].save_basis = True
    inputs = {"input_ids": tokens(2), "decoder_input_ids": tokens(2, 3)}
    model.save_pretrained(tmp_path, selected_adapters=["default"], save_embedding_layers=False)
    config = ShareConfig.from_pretrained(str(tmp_path))
    assert config.basis_id == model.peft_config["default"].basis_id
    config.share = published(t5())
    found = PeftModel.from_pretrained(t5(), tmp_path, config=config)
    assert torch.equal(found(**inputs).logits, model(**inputs).logits)


def _loop(model: Any, x: Tensor, y: Tensor, rows: list[str]) -> dict[str, Tensor]:
    """Gradients of the batch's summed loss, task by task."""
    model.zero_grad()
    for name in dict.fromkeys(rows):
        index = [i for i, r in enumerate(rows) if r == name]
        out = model(input_ids=x[index], adapter_names=[name] * len(index)).logits
        loss = torch.nn.functional.cross_entropy(out, y[index], reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
    return gradients(model)


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "not reentrant"])
@pytest.mark.parametrize("after", ["nothing", "another forward pass"])
def test_mixed_tasks_in_one_training_batch(checkpointing: str, after: str) -> None:
    model, x = bert_model().train(), tokens()
    model.base_model.set_requires_grad(["default", "other"])
    y, rows = torch.tensor([0, 1, 2, 0, 1, 2]), ["default", "other", "other", "default"] * 2
    rows = rows[:6]
    expected = _loop(model, x, y, rows)
    model.zero_grad()
    if checkpointing != "none":
        options = {"use_reentrant": checkpointing == "reentrant"}
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    out = model(input_ids=x, adapter_names=rows).logits
    if after != "nothing":
        with torch.no_grad():
            model(input_ids=x)
    loss = torch.nn.functional.cross_entropy(out, y, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    got = gradients(model)
    assert set(got) == set(expected)
    assert any("other" in name for name in got)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_an_exception_in_the_forward_pass_leaves_no_routing() -> None:
    model = bert_model()
    with pytest.raises(IndexError):
        model(input_ids=torch.full((2, 3), 10_000), adapter_names=["default", "other"])
    x = tokens(1)
    torch.testing.assert_close(
        model(input_ids=x).logits, alone(model, "default", input_ids=x).logits
    )


def roberta(labels: int = 3) -> Any:
    """Its head is two layers."""
    config = RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, num_labels=labels, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return seeded(lambda: RobertaForSequenceClassification(config))


@pytest.mark.parametrize("active", ["default", "other"])
def test_heads_of_several_layers_and_adapters_without_one(active: str) -> None:
    """ "other" has no head of its own: its rows get the base model's, whichever is active."""
    model = two_tasks(roberta(), ["query"], ["value"])
    with_head = ShareConfig(
        share=model.peft_config["default"].share, target_modules=["query"],
        modules_to_save=["classifier"], seed=9,
    )  # fmt: skip
    model.add_adapter("headed", with_head)
    model.set_adapter("headed")
    randomise(model, seed=11)
    x, rows = tokens(4), ["headed", "other", "__base__", "headed"]
    model.eval().set_adapter(active)
    mixed = model(input_ids=x, adapter_names=rows).logits
    for i, name in enumerate(rows):
        one = alone(model, name, input_ids=x).logits[i]
        torch.testing.assert_close(mixed[i], one, rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        plain = model(input_ids=x, adapter_names=rows).logits
    torch.testing.assert_close(plain, roberta()(input_ids=x).logits)


def test_heads_for_different_numbers_of_labels_are_named() -> None:
    model, x = bert_model(), tokens(2)
    head = model.base_model.model.classifier
    head.modules_to_save["other"] = torch.nn.Linear(16, 5)
    with pytest.raises(MismatchError, match="same number of labels"):
        model(input_ids=x, adapter_names=["default", "other"])
