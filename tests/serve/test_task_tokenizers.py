"""A task that brought a tokenizer, a chat template or stop tokens is served with its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from serve.conftest import engine_of, server_of, tokenizer
from sharespace import Share

TEMPLATE = "[{% for m in messages %}{{ m.content }}{% endfor %}]"
BASE_PROMPT = len("user: hello\n")


def as_files(folder: Path) -> dict[str, Tensor]:
    return {f.name: as_bytes(f.read_bytes()) for f in folder.iterdir()}


def as_bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def with_files(share: Share, files: dict[str, dict[str, Tensor]]) -> Share:
    tasks = share.model.tasks.values()
    changed = [replace(t, files=files.get(t.name, {})) for t in tasks]
    return Share(share.model.with_tasks(changed))


@pytest.fixture(scope="module")
def address(llama: Path, texts: Share, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server: a has nothing of its own, b a template and stop tokens, c tokens too many."""
    folder = tmp_path_factory.mktemp("files")
    larger = tokenizer(pad_left=True)
    larger.add_tokens(["<new>"])
    larger.save_pretrained(folder / "larger")
    stops = json.dumps({"eos_token_id": list(range(258))}).encode()
    files = {
        "b": {
            "chat_template.jinja": as_bytes(TEMPLATE.encode()),
            "generation_config.json": as_bytes(stops),
        },
        "c": as_files(folder / "larger"),
    }
    stored = with_files(texts, files)
    stored.save(folder / "s")
    with engine_of(llama, Share.load(folder / "s")) as engine, server_of(engine) as found:
        yield found


def chat(address: str, model: str) -> tuple[int, Any]:
    message = {"role": "user", "content": "hello"}
    body = {"model": model, "messages": [message], "max_tokens": 5, "temperature": 0}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    return answer.status_code, answer.json()


@pytest.mark.parametrize(("model", "prompt"), [("base", BASE_PROMPT), ("a", BASE_PROMPT), ("b", 7)])
def test_a_conversation_by_the_tasks_own_template(address: str, model: str, prompt: int) -> None:
    status, answer = chat(address, model)
    assert status == 200
    assert answer["usage"]["prompt_tokens"] == prompt


def test_an_answer_ends_at_the_tasks_own_tokens(address: str) -> None:
    _, answer = chat(address, "b")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] <= 1
    _, other = chat(address, "a")
    assert other["usage"]["completion_tokens"] == 5


def test_tokens_without_embeddings_are_refused(address: str) -> None:
    status, answer = chat(address, "c")
    assert status == 400
    assert "259 tokens" in answer["error"]["message"]
    assert "258" in answer["error"]["message"]
    assert chat(address, "a")[0] == 200


def test_a_tokenizer_of_its_own(llama: Path, texts: Share, tmp_path: Path) -> None:
    own = tokenizer(pad_left=True)
    own.chat_template = TEMPLATE
    own.save_pretrained(tmp_path / "own")
    share = with_files(texts, {"b": as_files(tmp_path / "own")})
    with engine_of(llama, share) as engine, server_of(engine) as found:
        assert chat(found, "b")[1]["usage"]["prompt_tokens"] == 7
        assert chat(found, "a")[1]["usage"]["prompt_tokens"] == BASE_PROMPT


def test_a_tokenizer_that_is_damaged(llama: Path, texts: Share) -> None:
    share = with_files(texts, {"b": {"tokenizer.json": as_bytes(b"{")}})
    with engine_of(llama, share) as engine, server_of(engine) as found:
        status, answer = chat(found, "b")
        assert status == 400
        assert "its tokenizer cannot be loaded" in answer["error"]["message"]
