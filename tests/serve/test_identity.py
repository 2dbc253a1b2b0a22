"""Every answer says what it was computed with, and is what that says, while tasks come and go."""

from __future__ import annotations

import json
import os
import random
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from serve.conftest import ADMIN, TASKS, engine_of, server_of, tokenizer
from serve.test_versions import PROMPT, turned, with_tasks
from sharespace import Share
from sharespace.errors import TaskNotFoundError, UnavailableError
from sharespace.serve.base_model import GeneratingRow
from sharespace.serve.engine import Engine
from sharespace.serve.identity import AnswerSource, content_hash, source_of
from sharespace.serve.requests import Generate, Piece, Sampling

MIXTURE = "a:0.5+b:-1"
REQUESTS = int(os.environ.get("SHARESPACE_ROUNDS", "300"))


def answer(engine: Engine, task: str | None) -> tuple[str, AnswerSource | None]:
    """A whole greedy answer and its source; raises what the engine says."""
    said: SimpleQueue[object] = SimpleQueue()
    engine.submit(Generate(task, PROMPT, Sampling(max_tokens=6, temperature=0)), said.put)
    text, sources = "", set()
    while True:
        piece = said.get(timeout=120)
        if isinstance(piece, Exception):
            raise piece
        assert isinstance(piece, Piece)
        text += piece.text
        sources.add(piece.source)
        if piece.finish is not None:
            assert len(sources) == 1
            return text, sources.pop()


def hash_of(source: AnswerSource | None) -> str | None:
    return None if source is None else source.sha256


def test_no_request_gets_anothers_answer(llama: Path, texts: Share) -> None:
    """Tasks are removed, changed and brought back under one name; SHARESPACE_ROUNDS=2500."""
    model = texts.model
    swapped = [model.tasks["b"].with_name("a"), model.tasks["a"].with_name("b"), model.tasks["c"]]
    versions = [
        texts,
        with_tasks(texts, [turned(task) for task in model.tasks.values()]),
        with_tasks(texts, swapped),
        texts.remove("b"),
        texts.rename("a", "x"),
    ]
    names = [*TASKS, "x", MIXTURE, "c:1+x:1", "nobody", None]
    with engine_of(llama, texts, batch=4) as engine:
        known: dict[str | None, str] = {}
        for share in versions:
            engine.replace(share)
            for name in names:
                try:
                    text, source = answer(engine, name)
                except TaskNotFoundError:
                    continue
                assert source == source_of(share, name)
                assert known.setdefault(hash_of(source), text) == text
        assert len(set(known.values())) > 5
        asked, stop = random.Random(0).choices(names, k=REQUESTS), threading.Event()

        def churn() -> None:
            draw = random.Random(1)
            while not stop.is_set():
                engine.replace(draw.choice(versions))

        def ask(name: str | None) -> bool:
            try:
                text, source = answer(engine, name)
            except TaskNotFoundError:
                return False
            assert (source is None) == (name is None)
            assert source is None or source.task == name
            assert known[hash_of(source)] == text
            return True

        changing = threading.Thread(target=churn)
        changing.start()
        try:
            with ThreadPoolExecutor(8) as clients:
                answered = list(clients.map(ask, asked))
        finally:
            stop.set()
            changing.join()
    assert 0 < sum(answered) < len(asked)
    assert not any(done for name, done in zip(asked, answered, strict=True) if name == "nobody")


def test_a_row_that_goes_on_after_its_task_was_changed_fails(texts: Share) -> None:
    said: list[object] = []
    asked = Generate("a", PROMPT, Sampling())
    row = GeneratingRow(asked, tokenizer(True), frozenset(), said.append, lambda: False)
    first = source_of(texts, "a")
    row.begin(first)
    row.push(5)
    row.begin(first)
    assert not any(isinstance(piece, UnavailableError) for piece in said)
    row.begin(source_of(with_tasks(texts, [turned(texts.task("a"))]), "a"))
    assert isinstance(said[-1], UnavailableError)
    assert row.finished


def test_the_hash_is_of_the_content(texts: Share, tmp_path: Path) -> None:
    hashes = {name: content_hash(texts.model, name) for name in TASKS}
    assert len(set(hashes.values())) == len(TASKS)
    texts.save(tmp_path / "s")
    stored = Share.load(tmp_path / "s")
    assert {name: content_hash(stored.model, name) for name in TASKS} == hashes
    assert content_hash(stored.rename("a", "x").model, "x") == hashes["a"]
    task = texts.task("a")
    for changed in (
        turned(task),
        replace(task, labels=("no", "yes")),
        replace(task, kept={"h": next(iter(task.coefficients.values())).tensors[0]}),
    ):
        assert content_hash(texts.model.with_tasks([changed]), "a") != hashes["a"]
    assert source_of(stored.remove("b"), "a") == AnswerSource("a", None, hashes["a"])


def post(url: str, body: dict[str, object], token: str = "") -> tuple[Any, str]:
    request = urllib.request.Request(
        url,
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.headers, response.read().decode()


def test_http_answers_say_it(
    llama: Path, texts: Share, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    share = texts.rename("c", "größe")
    share.save(tmp_path / "s")
    loaded = Share.load(tmp_path / "s")
    asked: dict[str, Any] = {"prompt": "hello", "max_tokens": 3, "temperature": 0}
    with engine_of(llama, loaded) as engine, server_of(engine, tmp_path / "s") as url:
        for name in ("a", MIXTURE, "größe"):
            source = source_of(loaded, name)
            assert source is not None
            with caplog.at_level("INFO", "sharespace.serve.identity"):
                headers, text = post(f"{url}/v1/completions", {"model": name, **asked})
            assert headers["x-sharespace-version"] == "1"
            assert headers["x-sharespace-sha256"] == source.sha256
            assert json.loads(text)["system_fingerprint"] == f"share-1-{source.sha256[:16]}"
            assert f"answered from task {name!r}, version 1" in caplog.messages[-1]
            body = {"model": name, **asked, "stream": True}
            headers, text = post(f"{url}/v1/completions", body)
            assert headers["x-sharespace-sha256"] == source.sha256
            chunks = [json.loads(x[6:]) for x in text.splitlines() if x.startswith("data: {")]
            assert {c["system_fingerprint"] for c in chunks} == {source.fingerprint}
            headers, _ = post(f"{url}/v1/embeddings", {"model": name, "input": ["x", "y"]})
            assert headers["x-sharespace-sha256"] == source.sha256
        assert headers["x-sharespace-task"] == "gr%C3%B6%C3%9Fe"
        headers, text = post(f"{url}/v1/completions", {"model": "base", **asked})
        assert headers["x-sharespace-task"] is None
        assert json.loads(text)["system_fingerprint"] is None
        for name in ("a:1+nobody:1", "nobody", "a@1", "a:1+a:1"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                post(f"{url}/v1/completions", {"model": name, **asked})
            assert refused.value.code == (400 if name == "a:1+a:1" else 404)
        Share.load(tmp_path / "s").rename("a", "z").save()
        post(f"{url}/v1/reload", {}, ADMIN)
        headers, _ = post(f"{url}/v1/completions", {"model": "z", **asked})
        assert headers["x-sharespace-version"] == "2"
        assert headers["x-sharespace-sha256"] == content_hash(loaded.model, "a")
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as metrics:
            assert "sharespace_version 2.0" in metrics.read().decode()
