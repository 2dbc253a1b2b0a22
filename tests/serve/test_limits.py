"""One source of each setting: positions, padding, stop texts and the generation's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, RobertaConfig
from transformers import RobertaForSequenceClassification as Roberta

from serve.conftest import tokenizer
from serve.mixed.test_batch import without_heads
from serve.test_faults import ask
from sharespace import Share
from sharespace.errors import OptionError
from sharespace.serve.base_model import ServedModel
from sharespace.serve.engine import Engine, EngineLimits
from sharespace.serve.mixed import MixedTasks
from sharespace.serve.requests import Classify, ClassLogits, Embed, Generate, Sampling, Vector
from tuner.spaces import seeded, space


def test_positions_counted_from_the_padding_token() -> None:
    """RoBERTa: 34 rows, 32 positions; its padding token is the config's, not the tokenizer's."""
    config = RobertaConfig(
        vocab_size=258, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    model = seeded(lambda: Roberta(config))
    share = Share(without_heads(space(model, tasks=("a",)), "classifier"))
    served = ServedModel(MixedTasks(model, share), tokenizer(pad_left=False), "base")
    assert served.longest == 32
    served.check(Classify("a", (5,) * 32))
    with pytest.raises(OptionError, match="longer than 32"):
        served.check(Classify("a", (5,) * 33))
    rows = [Classify("a", (5,) * 32), Classify("a", (6, 7, 8))]
    together, alone = served.classify(rows), [served.classify([row])[0] for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, ClassLogits)
        assert isinstance(other, ClassLogits)
        torch.testing.assert_close(torch.tensor(one.logits), torch.tensor(other.logits))


def test_learned_positions_of_neighbours() -> None:
    """Each fits alone; together the long prompt would go on past the last position."""
    config = GPT2Config(vocab_size=258, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    model = seeded(lambda: GPT2LMHeadModel(config))
    share = Share(without_heads(space(model, tasks=("a",)), "lm_head"))
    served = ServedModel(MixedTasks(model, share), tokenizer(pad_left=True), "base")
    engine = Engine(served, EngineLimits(wait=0.2))
    long = Generate("a", (90,) * 28, Sampling(max_tokens=4, temperature=0))
    short = Generate("a", (74, 75), Sampling(max_tokens=30, temperature=1, seed=0))
    expected = [ask(engine, long)[0], ask(engine, short)[0]]
    assert ask(engine, long, short) == expected
    assert engine.close(60)
    # Padding on the left would move a text to other positions.
    rows = [Embed("a", (5, 6)), Embed("a", (5,) * 20)]
    both, alone = served.embed(rows)[0], served.embed(rows[:1])[0]
    assert isinstance(both, Vector)
    assert isinstance(alone, Vector)
    torch.testing.assert_close(torch.tensor(both.values), torch.tensor(alone.values))


def test_settings_of_the_generation_and_stop_at_a_special_token(
    llama: Path, texts: Share, caplog: pytest.LogCaptureFixture
) -> None:
    def engine(**fields: float) -> Engine:
        model = LlamaForCausalLM.from_pretrained(llama)
        for name, value in fields.items():
            setattr(model.generation_config, name, value)
        own = tokenizer(pad_left=True)
        own.add_special_tokens({"unk_token": "A"})
        return Engine(ServedModel(MixedTasks(model, texts), own, "base"))

    request = Generate("a", (5, 6, 7), Sampling(max_tokens=12, temperature=0))
    plain, changed = engine(), engine(repetition_penalty=50.0, top_k=3)
    assert ask(plain, request) == ask(changed, request)
    assert "repetition_penalty=50.0" in caplog.text
    with pytest.raises(OptionError, match="special token 'A'"):
        plain.submit(Generate("a", (5,), Sampling(stop=("xA",))), lambda _: None)
    number = plain.served.tokenizer.get_vocab()["A"]

    def always_that_token(_module: object, _arguments: object, output: Any) -> None:
        output.logits[..., number].fill_(1e4)

    handle = plain.served.model.register_forward_hook(always_that_token)
    stopped = Generate("a", (5, 6), Sampling(max_tokens=9, temperature=0, stop=("A",)))
    assert ask(plain, stopped) == [""]
    handle.remove()
    assert plain.close(60)
    assert changed.close(60)
