"""Features: of the base model, of the tokens that count, of the layer that is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from sharespace.errors import OptionError
from sharespace.route import features


@pytest.fixture(scope="module")
def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return transformers.BertModel(config)


def _batch(padded_left: bool = False) -> dict[str, Tensor]:
    """Two inputs of 3 and 5 tokens."""
    ids = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    return {
        "input_ids": ids.flip(1) if padded_left else ids,
        "attention_mask": mask.flip(1) if padded_left else mask,
    }


class _Encoder(nn.Module):
    """Gives its input back; counts nothing, knows nothing."""

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return x


def test_mean_ignores_padding_and_follows_the_batches(bert: Any) -> None:
    both = features(bert, [_batch()])
    short = {k: v[:1, :3] for k, v in _batch().items()}
    long = {k: v[1:] for k, v in _batch().items()}
    assert both.shape == (2, 16)
    assert both.dtype == torch.float32
    assert torch.allclose(both, features(bert, [short, long]), atol=1e-5)


def test_layers_by_index_middle_last_and_side_by_side(bert: Any) -> None:
    bert.eval()
    states = bert(**_batch(), output_hidden_states=True).hidden_states
    mask = _batch()["attention_mask"].unsqueeze(-1)
    expected = [((h * mask).sum(1) / mask.sum(1)).detach() for h in states]
    for layer, index in ((0, 0), (2, 2), (-1, 4), ("middle", 2), ("last", 4)):
        found = features(bert, [_batch()], layer=layer)  # type: ignore[arg-type]
        assert torch.allclose(found, expected[index], atol=1e-6)
    two = features(bert, [_batch()], layer=("middle", "last"))
    assert torch.allclose(two, torch.cat([expected[2], expected[4]], dim=1), atol=1e-6)


@pytest.mark.parametrize(("pooling", "at"), [("first", 0), ("last", -1)])
@pytest.mark.parametrize("left", [False, True])
def test_first_and_last_are_tokens_that_count(pooling: Any, at: int, left: bool) -> None:
    x = torch.arange(20.0).reshape(2, 5, 2)
    mask = _batch(left)["attention_mask"]
    found = features(_Encoder(), [{"x": x, "attention_mask": mask}], pooling=pooling, layer="last")
    for row in range(2):
        assert torch.equal(found[row], x[row][mask[row].bool()][at])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT reads it
def test_adapters_are_off_and_the_model_is_left_as_it_was(bert: Any) -> None:
    plain = features(bert, [_batch()])
    config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    adapted = peft.get_peft_model(bert, config)
    adapted.train()
    with torch.no_grad():
        changed = adapted.eval()(**_batch()).last_hidden_state
    adapted.train()
    assert torch.equal(features(adapted, [_batch()]), plain)
    assert adapted.training
    with torch.no_grad():
        assert torch.equal(adapted.eval()(**_batch()).last_hidden_state, changed)
    adapted.unload()


def test_parts_in_evaluation_mode_stay_so() -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    net[1].eval()
    seen = features(_Wrapped(net), [{"x": torch.ones(2, 4)}], layer="last")
    assert torch.allclose(seen, torch.ones(2, 4), atol=1e-4)
    assert net[0].training
    assert not net[1].training


class _Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


def test_pooled_outputs_pass_and_the_result_can_be_trained_on() -> None:
    found = features(_Encoder(), [{"x": torch.ones(3, 4).double()}], layer="last")
    assert found.shape == (3, 4)
    loss = (found * torch.ones(4, requires_grad=True)).sum()
    loss.backward()  # type: ignore[no-untyped-call]


def test_what_cannot_be_used_is_refused(bert: Any) -> None:
    x = torch.ones(2, 3, 4)
    with pytest.raises(OptionError, match="none"):
        features(bert, [])
    with pytest.raises(OptionError, match="pooling 'max'"):
        features(bert, [_batch()], pooling="max")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="5 hidden states"):
        features(bert, [_batch()], layer=5)
    with pytest.raises(OptionError, match="'upper'"):
        features(bert, [_batch()], layer="upper")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="not a layer"):
        features(bert, [_batch()], layer=())
    with pytest.raises(OptionError, match="no transformers model"):
        features(_Encoder(), [{"x": x}])
    with pytest.raises(OptionError, match="dimensions"):
        features(_Encoder(), [{"x": torch.ones(1, 2, 3, 4)}], layer="last")
    with pytest.raises(OptionError, match="attention_mask"):
        features(_Encoder(), [{"x": x, "attention_mask": torch.ones(2, 4)}], layer="last")
    with pytest.raises(OptionError, match="no token"):
        features(_Encoder(), [{"x": x, "attention_mask": torch.zeros(2, 3)}], layer="last")
    with pytest.raises(OptionError, match="last_hidden_state"):
        features(_Logits(), [{"x": x}], layer="last")


class _Logits(nn.Module):
    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=x)
