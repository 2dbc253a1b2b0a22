"""A tokenizer of a few words, made here."""

from __future__ import annotations

from typing import Any

import huggingface_hub.constants
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[END]", "the", "row", "is", "good", "bad", "a", "b", "c", "d", "e"]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    model = WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    made = Tokenizer(model)
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]"
    )


@pytest.fixture(autouse=True)
def no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets: Any = pytest.importorskip("datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
