"""A tiny Llama and a tiny classifier with tokenizers of their own, and a server on a real port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="extra 'train' is not installed")
pytest.importorskip("fastapi", reason="extra 'serve' is not installed")

import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from serve.mixed.test_batch import with_heads, without_heads
from sharespace import Share
from sharespace.serve.base_model import ServedModel
from sharespace.serve.engine import Engine, EngineLimits
from sharespace.serve.http import HttpSettings, make_app
from sharespace.serve.process import ConnectionLimits, ServeSettings, load_base, server_config
from tuner.spaces import seeded, space

TASKS = ("a", "b", "c")
ADMIN = "let-me-in"


def tokenizer(pad_left: bool) -> PreTrainedTokenizerFast:
    """Bytes as tokens, so that any text has some."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {"<pad>": 0, "<eos>": 1, **{c: i + 2 for i, c in enumerate(sorted(alphabet))}}
    found = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left" if pad_left else "right",
        chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    )


def save_llama(folder: Path) -> Path:
    """A tiny language model of random weights, with a tokenizer, saved into a folder."""
    config = LlamaConfig(
        vocab_size=258, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, eos_token_id=1,
        max_position_embeddings=128,
    )  # fmt: skip
    seeded(lambda: LlamaForCausalLM(config)).save_pretrained(folder)
    tokenizer(pad_left=True).save_pretrained(folder)
    return folder


def tasks_of(llama: Path) -> Share:
    """Tasks of the language model in a folder."""
    model = LlamaForCausalLM.from_pretrained(llama)
    return Share(without_heads(space(model, tasks=TASKS), "lm_head"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model."""
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier of three labels."""
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=258, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, num_labels=3, max_position_embeddings=64,
    )  # fmt: skip
    seeded(lambda: BertForSequenceClassification(config)).save_pretrained(folder)
    tokenizer(pad_left=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(llama: Path) -> Share:
    """Tasks of the language model."""
    return tasks_of(llama)


@pytest.fixture(scope="session")
def labels(bert: Path) -> Share:
    """Tasks of the classifier; b has five labels of its own."""
    model = BertForSequenceClassification.from_pretrained(bert)
    share = Share(without_heads(space(model, tasks=TASKS), "classifier"))
    own = {"classifier.weight": torch.randn(5, 16), "classifier.bias": torch.randn(5)}
    return with_heads(share, {"b": own})


Serve = Callable[..., Any]


@contextmanager
def engine_of(folder: Path, share: Share, **limits: Any) -> Iterator[Engine]:
    """An engine that is closed at the end."""
    engine = Engine(load_base(str(folder), share, name="base"), EngineLimits(**limits))
    try:
        yield engine
    finally:
        assert engine.close(60)


@contextmanager
def server_of(
    engine: Engine,
    path: Path | None = None,
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - it is frozen
    stored: Share | None = None,
    **settings: Any,
) -> Iterator[str]:
    """The address of a server on a free port, on a real socket."""
    http = HttpSettings(**{"admin_token": ADMIN, **settings})
    watch = engine.watch
    app = make_app(engine, path=path, settings=http, stored=stored)
    with address_of(app, limits) as address:
        yield address
    # An engine tells one app of its batches: the one that it had before has them again.
    engine.watch = watch


@contextmanager
def address_of(app: Any, limits: ConnectionLimits) -> Iterator[str]:
    """The address of any app."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(app, ServeSettings(connections=limits)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@pytest.fixture(scope="session")
def text_engine(llama: Path, texts: Share) -> Iterator[Engine]:
    with engine_of(llama, texts) as engine:
        yield engine


@pytest.fixture(scope="session")
def text_server(text_engine: Engine) -> Iterator[str]:
    with server_of(text_engine) as address:
        yield address


@pytest.fixture(scope="session")
def served(text_engine: Engine) -> ServedModel:
    return text_engine.served
