"""The server on a real socket, with the real ``openai`` client and with hostile input."""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from serve.conftest import ADMIN, TASKS, engine_of, server_of
from serve.mixed.test_batch import alone
from sharespace import Share
from sharespace.errors import OptionError
from sharespace.serve.base_model import ServedModel
from sharespace.serve.engine import Engine, EngineLimits
from sharespace.serve.http import HttpSettings
from sharespace.serve.process import ServeSettings
from sharespace.serve.requests import Generate, Piece, Sampling

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def client(text_server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{text_server}/v1", api_key="any", max_retries=0) as found:
        yield found


def greedy(served: ServedModel, share: Share, task: str | None, text: str, count: int) -> str:
    """What the model with changed weights gives, once the engine has left it alone."""
    ids = torch.tensor([served.tokenizer(text)["input_ids"]])

    def run() -> torch.Tensor:
        mask = torch.ones_like(ids)
        options = {"max_new_tokens": count, "do_sample": False, "attention_mask": mask}
        return torch.as_tensor(served.model.generate(ids, **options))

    with served.mixed.tasks([None]):
        tokens = alone(served.model, share, task, run)[0, ids.shape[1] :]
    return str(served.tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["base", *TASKS]
    assert client.models.retrieve("a").model_dump()["parent"] == "base"
    with pytest.raises(openai.NotFoundError, match="'x'"):
        client.models.retrieve("x")


def test_completions_are_those_of_the_task(
    client: openai.OpenAI, served: ServedModel, texts: Share
) -> None:
    for task in ("base", *TASKS):
        found = client.completions.create(
            model=task, prompt=["one", "another one"], max_tokens=8, temperature=0
        )
        expected = [
            greedy(served, texts, None if task == "base" else task, text, 8)
            for text in ("one", "another one")
        ]
        assert [choice.text for choice in found.choices] == expected
        assert {choice.finish_reason for choice in found.choices} <= {"length", "stop"}
        assert found.usage is not None
        assert found.usage.prompt_tokens == len("one") + len("another one")


def test_chat_and_its_stream(client: openai.OpenAI, served: ServedModel, texts: Share) -> None:
    messages: Any = [{"role": "user", "content": "say it"}]
    options: dict[str, Any] = {"model": "b", "messages": messages, "max_tokens": 9}
    whole = client.chat.completions.create(**options, temperature=0)
    text = whole.choices[0].message.content
    assert text == greedy(served, texts, "b", "user: say it\n", 9)
    chunks = list(
        client.chat.completions.create(
            **options, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9


def test_a_seed_gives_the_same_answer_and_choices_differ(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "c", "prompt": "go", "max_tokens": 12, "n": 3, "seed": 4}
    first, again = (client.completions.create(**options) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) == 3


def test_stop(client: openai.OpenAI, served: ServedModel, texts: Share) -> None:
    text = greedy(served, texts, "a", "one", 12)
    stop = text[4:6]
    options: dict[str, Any] = {"model": "a", "prompt": "one", "max_tokens": 12, "temperature": 0}
    found = client.completions.create(**options, stop=[stop]).choices[0]
    assert (found.text, found.finish_reason) == (text[: text.index(stop)], "stop")
    streamed = list(client.completions.create(**options, stop=stop, stream=True))
    assert "".join(c.choices[0].text for c in streamed) == found.text


def test_embeddings(client: openai.OpenAI) -> None:
    plain, coded = (
        client.embeddings.create(model="a", input=["one", "two"], encoding_format=form)
        for form in ("float", "base64")
    )
    for first, second in zip(plain.data, coded.data, strict=True):
        values = torch.tensor(first.embedding)
        assert abs(float(values.norm()) - 1) < 1e-5
        # base64 that the client was asked for stays base64, of float32.
        raw = base64.b64decode(str(second.embedding))
        assert struct.unpack(f"<{len(values)}f", raw) == pytest.approx(first.embedding)
    other = client.embeddings.create(model="b", input="one")
    assert other.data[0].embedding != plain.data[0].embedding


def batches(address: str) -> tuple[float, float]:
    """(rows, batches) that the server has run."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    names = ("sharespace_batch_rows_sum", "sharespace_batch_rows_count")
    rows, runs = (sum(float(x.split()[1]) for x in lines if x.startswith(n)) for n in names)
    return rows, runs


def test_a_hundred_requests_over_all_tasks_at_once(
    client: openai.OpenAI, served: ServedModel, texts: Share, text_server: str
) -> None:
    expected = {t: greedy(served, texts, t, f"to {t}", 5) for t in TASKS}

    def ask(task: str) -> str:
        found = client.completions.create(
            model=task, prompt=f"to {task}", max_tokens=5, temperature=0
        )
        return found.choices[0].text

    rows, runs = batches(text_server)
    asked = [TASKS[i % 3] for i in range(100)]
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, asked)) == [expected[t] for t in asked]
    more_rows, more_runs = batches(text_server)
    assert more_rows - rows > 1.5 * (more_runs - runs), "requests shared batches"
    metrics = httpx.get(f"{text_server}/metrics").text
    assert 'endpoint="/v1/completions",status="200"' in metrics


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/completions", b"{", 400, "JSON"),
        ("/v1/completions", b"[]", 400, ""),
        ("/v1/completions", b'{"model": "x", "prompt": "a"}', 404, "'x'"),
        ("/v1/completions", b'{"model": "../../etc/passwd", "prompt": "a"}', 404, "passwd"),
        ("/v1/completions", b'{"model": "", "prompt": "a"}', 400, "model"),
        ("/v1/completions", b'{"model": "a"}', 400, "prompt"),
        ("/v1/completions", b'{"model": "a", "prompt": ""}', 400, "empty"),
        ("/v1/completions", b'{"model": "a", "prompt": []}', 400, "0 texts"),
        ("/v1/completions", b'{"model": "a", "prompt": [9999]}', 400, "token 9999"),
        ("/v1/completions", b'{"model": "a", "prompt": "a", "temperature": 9}', 400, "temperature"),
        ("/v1/completions", b'{"model": "a", "prompt": "a", "n": 99}', 400, "n"),
        (
            "/v1/completions",
            b'{"model": "a", "prompt": "a", "seed": 9999999999999999999}',
            400,
            "64",
        ),
        ("/v1/completions", b'{"model": "a", "prompt": "a", "best_of": 3}', 400, "best_of"),
        ("/v1/completions", b'{"model": "a", "prompt": "a", "what": 3}', 400, "what"),
        ("/v1/completions", b'{"model": "a", "prompt": "a", "max_tokens": 999}', 400, "longer"),
        ("/v1/completions", b'{"model": "a", "prompt": "a", "stop": ["", "b"]}', 400, "stop"),
        ("/v1/chat/completions", b'{"model": "a", "messages": []}', 400, "messages"),
        ("/v1/classify", b'{"model": "a", "input": "a"}', 400, "cannot classify"),
        ("/v1/tasks", b'{"name": "z", "adapter": "y"}', 401, "token"),
        ("/v1/nothing", b"{}", 404, "Not Found"),
        ("/health", b"{}", 405, "Not Allowed"),
        ("/v1/completions", b"\xff\xfe{", 400, "parsing the body"),
    ],
)
def test_bad_requests(text_server: str, path: str, body: bytes, status: int, said: str) -> None:
    headers = {"content-type": "application/json"}
    found = httpx.post(f"{text_server}{path}", content=body, headers=headers)
    assert found.status_code == status
    assert said in found.json()["error"]["message"]


def test_an_unknown_task_is_refused_before_a_stream_begins(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'x'"):
        client.completions.create(model="x", prompt="a", stream=True)


def test_bodies_that_are_too_large_or_too_slow(text_engine: Engine) -> None:
    with server_of(text_engine, body_bytes=1000, body_seconds=0.3) as address:
        found = httpx.post(f"{address}/v1/completions", content=b"x" * 5000)
        assert found.status_code == 413
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            slow.settimeout(10)
            assert b" 408 " in slow.recv(200)
        assert httpx.get(f"{address}/health").status_code == 200


def test_a_full_queue_and_an_answer_that_takes_too_long(llama: Path, texts: Share) -> None:
    with engine_of(llama, texts, batch=1, queue=2) as engine:
        started, go_on = threading.Event(), threading.Event()

        def hold(_: Any) -> None:
            started.set()
            go_on.wait(30)

        job = engine.submit(Generate("a", (5,), Sampling(max_tokens=2)), hold)
        assert started.wait(30)
        with server_of(engine, answer_seconds=0.5) as address, ThreadPoolExecutor(8) as pool:
            body = {"model": "a", "prompt": "x", "max_tokens": 2}
            ask = lambda _: httpx.post(f"{address}/v1/completions", json=body)  # noqa: E731
            found = list(pool.map(ask, range(6)))
        go_on.set()
        job.cancelled = True
    assert sorted({f.status_code for f in found}) == [429, 504]
    refused = next(f for f in found if f.status_code == 429)
    assert refused.headers["retry-after"] == "1"


def test_tasks_come_and_go(llama: Path, texts: Share, tmp_path: Path) -> None:
    store, adapter = tmp_path / "s.share", tmp_path / "new"
    Share(texts.model).save(store)
    texts.export("a", adapter)
    headers = {"authorization": f"Bearer {ADMIN}"}
    with engine_of(llama, Share.load(store)) as engine, server_of(engine, path=store) as address:
        ask = {"model": "new", "prompt": "x", "max_tokens": 4, "temperature": 0}
        assert httpx.post(f"{address}/v1/completions", json=ask).status_code == 404
        body = {"name": "new", "adapter": str(adapter)}
        added = httpx.post(f"{address}/v1/tasks", json=body, headers=headers, timeout=60)
        assert added.json() == {"version": 2, "tasks": 4}
        again = httpx.post(f"{address}/v1/tasks", json=body, headers=headers, timeout=60)
        assert again.status_code == 409
        same = [
            httpx.post(f"{address}/v1/completions", json={**ask, "model": m}).json()["choices"]
            for m in ("new", "a")
        ]
        assert same[0] == same[1]
        missing = {"name": "none", "adapter": str(tmp_path / "no")}
        assert httpx.post(f"{address}/v1/tasks", json=missing, headers=headers).status_code == 400
        removed = httpx.delete(f"{address}/v1/tasks/new", headers=headers)
        assert removed.json() == {"version": 3, "tasks": 3}
        assert httpx.post(f"{address}/v1/completions", json=ask).status_code == 404
        Share.load(store).rename("a", "renamed").save()
        stale = httpx.delete(f"{address}/v1/tasks/b", headers=headers)
        assert stale.status_code == 409
        assert httpx.post(f"{address}/v1/reload", headers=headers).json()["version"] == 4
        models = httpx.get(f"{address}/v1/models").json()["data"]
        assert [m["id"] for m in models] == ["base", "renamed", "b", "c"]
    assert Share.load(store).tasks == ("renamed", "b", "c")


def test_keys(text_engine: Engine) -> None:
    with server_of(text_engine, api_key="key", admin_token=None) as address:
        assert httpx.get(f"{address}/v1/models").status_code == 401
        headers = {"authorization": "Bearer key"}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 200
        assert httpx.post(f"{address}/v1/reload", headers=headers).status_code == 403
        assert httpx.get(f"{address}/health").status_code == 200


def test_settings_are_checked_where_they_are_made() -> None:
    """An empty token would let everybody in: it equals that of a request without one."""
    for settings, said in (
        ({"admin_token": ""}, "admin_token: it is empty"),
        ({"api_key": ""}, "api_key: it is empty"),
        ({"body_bytes": 0}, "body_bytes=0"),
        ({"answer_seconds": float("nan")}, "answer_seconds=nan"),
    ):
        with pytest.raises(OptionError, match=said):
            HttpSettings(**settings)
    with pytest.raises(OptionError, match="batch=0"):
        EngineLimits(batch=0)
    with pytest.raises(OptionError, match="dtype='float8'"):
        ServeSettings(dtype="float8")  # type: ignore[arg-type]


def test_draining(llama: Path, texts: Share) -> None:
    """What was asked is answered; what comes later is sent away."""
    with engine_of(llama, texts) as engine, server_of(engine) as address:
        assert httpx.get(f"{address}/ready").status_code == 200
        said: list[Any] = []
        first = threading.Event()

        def listen(answer: Any) -> None:
            said.append(answer)
            first.set()

        engine.submit(Generate("a", (5, 6), Sampling(max_tokens=40, temperature=0)), listen)
        closer = threading.Thread(target=engine.close)
        first.wait(30)
        closer.start()
        while not engine.draining:
            time.sleep(0.01)
        assert httpx.get(f"{address}/ready").status_code == 503
        body = {"model": "a", "prompt": "x"}
        assert httpx.post(f"{address}/v1/completions", json=body).status_code == 503
        closer.join(60)
        assert isinstance(said[-1], Piece)
        assert said[-1].finish in ("length", "stop")


def test_a_client_that_goes_away(text_engine: Engine) -> None:
    """Its row ends, and others are served."""
    with server_of(text_engine) as address:
        body = {"model": "a", "prompt": "x", "max_tokens": 100, "stream": True}
        with httpx.stream("POST", f"{address}/v1/completions", json=body) as stream:
            next(stream.iter_bytes())
        later = {"model": "b", "prompt": "x", "max_tokens": 2}
        found = httpx.post(f"{address}/v1/completions", json=later, timeout=30)
        assert found.status_code == 200


def test_classify(bert: Path, labels: Share) -> None:
    with engine_of(bert, labels) as engine, server_of(engine) as address:
        rows = {}
        for task in ("base", *TASKS):
            body = {"model": task, "input": ["one", "a longer text"]}
            found = httpx.post(f"{address}/v1/classify", json=body).json()["data"]
            assert [abs(sum(row["probs"]) - 1) < 1e-6 for row in found] == [True, True]
            rows[task] = found
        assert [rows[t][0]["num_classes"] for t in ("base", "a", "b")] == [3, 3, 5]
        body = {"model": "a", "prompt": "x"}
        refused = httpx.post(f"{address}/v1/completions", json=body)
        assert refused.status_code == 400
        assert "cannot generate" in json.loads(refused.text)["error"]["message"]
