"""What one request, connection or adapter does wrong stays its own: nobody else is harmed."""

from __future__ import annotations

import json
import logging
import queue
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from torch import Tensor

from serve.conftest import ADMIN, TASKS, address_of, engine_of, server_of
from serve.mixed.test_batch import with_heads
from sharespace import Share
from sharespace.errors import NoAnswerError, OptionError
from sharespace.formats import PlainLora, read_adapter, write_adapter
from sharespace.serve.engine import Engine
from sharespace.serve.http import HttpSettings
from sharespace.serve.process import ConnectionLimits, ServeSettings, load_base
from sharespace.serve.requests import Classify, EngineAnswer, Generate, Piece, Sampling
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.coefficients import Factors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

GREEDY = Sampling(max_tokens=12, temperature=0)
BEARER = {"authorization": f"Bearer {ADMIN}"}


def listen_to(replies: queue.Queue[EngineAnswer | Exception]) -> str | Exception:
    """The whole text of an answer, or the error that came instead or after some of it."""
    text = ""
    while True:
        answer = replies.get(timeout=60)
        if isinstance(answer, Exception):
            return answer
        assert isinstance(answer, Piece)
        text += answer.text
        if answer.finish:
            return text


def ask(engine: Engine, *requests: Generate) -> list[str | Exception]:
    """The answers to requests that come at the same time."""
    replies: list[queue.Queue[EngineAnswer | Exception]] = [queue.Queue() for _ in requests]
    engine.submit_all(requests, lambda i, answer: replies[i].put(answer))
    return [listen_to(one) for one in replies]


def with_overflow(share: Share, name: str) -> Share:
    """With one task so large that the model's output is no number."""
    task = share.task(name)
    large = {
        module: Factors(*(torch.full_like(side, 1e18) for side in pair.factors()))
        for module, pair in task.coefficients.items()
    }
    changed = replace(task, coefficients=large)
    model = share.model
    return Share(model.with_tasks(changed if n == name else model.tasks[n] for n in share.tasks))


# Rows of one batch.


@pytest.mark.parametrize("temperature", [3e-38, 1e-45, 5e-324, 1e-30])
def test_a_tiny_temperature_is_the_most_probable_token(
    text_engine: Engine, temperature: float
) -> None:
    greedy = [Generate(task, (5, 6, 7), GREEDY) for task in TASKS]
    expected = ask(text_engine, *greedy)
    tiny = Generate("a", (5, 6, 7), Sampling(max_tokens=12, temperature=temperature, seed=1))
    assert ask(text_engine, *greedy, tiny) == [*expected, expected[0]]


def test_a_tiny_top_p_is_the_most_probable_token(text_engine: Engine) -> None:
    (expected,) = ask(text_engine, Generate("a", (5, 6), GREEDY))
    tiny = Sampling(max_tokens=12, top_p=5e-324, seed=1)
    assert ask(text_engine, Generate("a", (5, 6), tiny)) == [expected]


def test_a_task_whose_output_is_no_number_fails_alone(llama: Path, texts: Share) -> None:
    with engine_of(llama, with_overflow(texts, "b"), wait=0.2) as engine:
        alone = [ask(engine, Generate(task, (5, 6), GREEDY))[0] for task in ("a", "c")]
        sampled = replace(GREEDY, temperature=1.0)
        answers = ask(
            engine,
            Generate("a", (5, 6), GREEDY),
            Generate("b", (5, 6), GREEDY),
            Generate("b", (5, 6), sampled),
            Generate("c", (5, 6), GREEDY),
        )
        assert [answers[0], answers[3]] == alone
        assert all(isinstance(answers[i], NoAnswerError) for i in (1, 2))
        with server_of(engine) as address:
            body = {"model": "b", "prompt": "x", "max_tokens": 3}
            for path in ("completions", "embeddings"):
                field = "prompt" if path == "completions" else "input"
                found = httpx.post(f"{address}/v1/{path}", json={"model": "b", field: "x"})
                assert found.status_code == 500
                assert "task 'b': the model's output" in found.json()["error"]["message"]
            stream = httpx.post(f"{address}/v1/completions", json={**body, "stream": True})
            assert stream.status_code == 500


def test_classes_of_a_task_whose_output_is_no_number(bert: Path, labels: Share) -> None:
    with engine_of(bert, with_overflow(labels, "a"), wait=0.2) as engine, server_of(engine) as to:
        bad = httpx.post(f"{to}/v1/classify", json={"model": "a", "input": "x"})
        good = httpx.post(f"{to}/v1/classify", json={"model": "c", "input": "x"})
        assert (bad.status_code, good.status_code) == (500, 200)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_that_fails_half_way_goes_on_row_by_row(
    llama: Path, texts: Share, temperature: float
) -> None:
    """Answers that had begun end as if nothing had been."""
    sampling = Sampling(max_tokens=12, temperature=temperature, seed=3)
    requests = [Generate(task, (5, 6, 7), sampling) for task in TASKS]
    with engine_of(llama, texts, wait=0.2) as engine:
        expected = [ask(engine, request)[0] for request in requests]
        passes = iter(range(1000))

        def fail_once(*_: object) -> None:
            if next(passes) == 5:
                raise RuntimeError("out of memory, once")

        handle = engine.served.model.register_forward_pre_hook(fail_once)
        assert ask(engine, *requests) == expected
        handle.remove()


def test_what_a_listener_raises_does_not_end_the_engine(text_engine: Engine) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("nobody is here")

    text_engine.submit(Generate("a", (5,), GREEDY), broken)
    assert isinstance(ask(text_engine, Generate("a", (5,), GREEDY))[0], str)
    assert text_engine.alive


# Requests that are refused leave nothing behind.


@pytest.fixture
def held(llama: Path, texts: Share) -> Iterator[Engine]:
    """An engine that is at work until the test ends, with room for four in its queue."""
    with engine_of(llama, texts, batch=1, queue=4) as engine:
        started, go_on = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            started.set()
            go_on.wait(60)

        job = engine.submit(Generate("a", (5,), Sampling(max_tokens=2)), hold)
        assert started.wait(60)
        yield engine
        job.cancelled = True
        go_on.set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_request_leaves_no_rows(held: Engine, stream: bool) -> None:
    with server_of(held, answer_seconds=0.5) as address:

        def post(**fields: Any) -> int:
            body = {"model": "a", "prompt": "x", "max_tokens": 2, "stream": stream, **fields}
            return httpx.post(f"{address}/v1/completions", json=body).status_code

        assert post(prompt=["x", "x", "x" * 127]) == 400  # The last one is too long.
        assert held.waiting == 0
        assert post(n=5) == 400  # More than the queue can ever hold.
        assert held.waiting == 0
        held.submit(Generate("b", (5,), GREEDY), lambda _: None)
        assert post(n=4) == 429
        assert held.waiting == 1
        assert post(n=2) == 504  # It waited for as long as it may.
        assert held.waiting == 1
        assert post(model="nobody", n=2) == 404
        assert held.waiting == 1


# Bodies.

CHAT = {"model": "a", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}

HARMLESS: list[dict[str, Any]] = [
    *({key: None} for key in ("temperature", "top_p", "n", "stream", "stop", "seed", "user")),
    *({key: None} for key in ("presence_penalty", "frequency_penalty", "logit_bias", "tools")),
    *({key: None} for key in ("max_completion_tokens", "response_format", "audio", "store")),
    {"presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": False},
    {"tools": [], "tool_choice": "none"},
    {"functions": [], "function_call": "auto", "parallel_tool_calls": True},
    {"response_format": {"type": "text"}, "modalities": ["text"], "verbosity": "medium"},
    {"top_logprobs": 0, "store": False, "metadata": {}, "service_tier": "auto"},
    {"user": "me", "safety_identifier": "me", "prompt_cache_key": "k"},
    {"stream_options": None, "reasoning_effort": None, "prediction": None},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False},
    {"seed": 2**63 - 1, "n": 3},
    {"seed": -(2**63), "n": 2},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "me"},
            {
                "role": "assistant",
                "content": "ho",
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
                "tool_calls": None,
            },
            {"role": "user", "content": "hi"},
        ]
    },
]


@pytest.mark.parametrize("fields", HARMLESS, ids=lambda f: ",".join(f))
def test_nulls_and_defaults_spelled_out_ask_for_nothing(
    text_server: str, fields: dict[str, Any]
) -> None:
    found = httpx.post(f"{text_server}/v1/chat/completions", json={**CHAT, **fields})
    assert found.status_code == 200, found.text


def test_an_answer_handed_back_by_the_real_client(text_server: str) -> None:
    with openai.OpenAI(base_url=f"{text_server}/v1", api_key="any", max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": "hi"}]
        forms: list[Callable[[Any], Any]] = [
            lambda message: message,
            lambda message: message.model_dump(),
            lambda message: message.to_dict(),
        ]
        for form in forms:
            first = client.chat.completions.create(
                model="a", messages=messages, max_tokens=2, seed=1, tools=[], logit_bias={}
            )
            messages += [form(first.choices[0].message), {"role": "user", "content": "more"}]
        client.embeddings.create(model="a", input="x", user="me", encoding_format="float")
        with pytest.raises(openai.BadRequestError, match="tools"):
            client.chat.completions.create(
                model="a",
                messages=[{"role": "user", "content": "hi"}],
                tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
            )


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("chat/completions", {"logit_bias": {"5": 100}}, "logit_bias"),
    ("chat/completions", {"frequency_penalty": 0.5}, "frequency_penalty"),
    ("chat/completions", {"logprobs": True}, "logprobs"),
    ("chat/completions", {"response_format": {"type": "json_object"}}, "response_format"),
    ("chat/completions", {"tool_choice": "required"}, "tool_choice"),
    ("chat/completions", {"stream_options": {"what": 1}}, "stream_options.what"),
    ("chat/completions", {"what": 1}, "what"),
    ("chat/completions", {"seed": 2**64}, "64 bits"),
    ("chat/completions", {"seed": 2**63}, "64 bits"),
    ("chat/completions", {"messages": [{"role": "user", "content": "x", "what": 1}]}, "what"),
    (
        "chat/completions",
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        "tool_calls",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "content",
    ),
    ("completions", {"logprobs": 0}, "logprobs"),
    ("completions", {"echo": True}, "echo"),
    ("completions", {"suffix": "x"}, "suffix"),
    ("completions", {"prompt": None}, "prompt"),
    ("embeddings", {"dimensions": 8}, "dimensions"),
]


@pytest.mark.parametrize(("path", "fields", "said"), REFUSED)
def test_what_is_not_offered_is_refused_by_name(
    text_server: str, path: str, fields: dict[str, Any], said: str
) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "chat/completions": CHAT,
        "completions": {"model": "a", "prompt": "x", "max_tokens": 2},
        "embeddings": {"model": "a", "input": "x"},
    }
    body = bodies[path]
    found = httpx.post(f"{text_server}/v1/{path}", json={**body, **fields})
    assert found.status_code == 400, found.text
    assert said in found.json()["error"]["message"]


BAD_VALUES = (
    *('"\\ud800"', '"a\\u0000b"', '["\\udfff"]', "[[]]", "{}", "true", "-1"),
    *("[-1]", "[99999999999999999999]", '[1, "x"]', "[[1], [258]]"),
    *("1e999", "NaN", "9" * 5000, "[" * 5000, '"' + "x" * 5000 + '"', "null"),
)


@pytest.mark.parametrize("path", ["completions", "chat/completions", "embeddings", "classify"])
def test_no_value_of_a_field_is_an_error_of_the_server(text_server: str, path: str) -> None:
    known = {
        "completions": {"prompt": '"x"', "stop": '"y"', "seed": "1", "n": "1"},
        "chat/completions": {
            "messages": '[{"role": "user", "content": "x"}]',
            "temperature": "1",
            "stream_options": "{}",
        },
        "embeddings": {"input": '"x"', "encoding_format": '"float"'},
        "classify": {"input": '"x"'},
    }[path]
    fields = {"model": '"a"', "user": '"me"', **known}
    if "completions" in path:
        fields["max_tokens"] = "1"
    bodies = [{**fields, name: value} for name in fields for value in BAD_VALUES]
    bodies += ("messages" in fields) * [
        {**fields, "messages": f'[{{"role": "user", "content": {value}}}]'} for value in BAD_VALUES
    ]
    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=text_server, headers=headers, timeout=60) as client:
        for body in bodies:
            text = "{" + ", ".join(f'"{key}": {value}' for key, value in body.items()) + "}"
            found = client.post(f"/v1/{path}", content=text)
            assert found.status_code < 500, (text[:300], found.text)
            found.json()
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("name", ["a\0b", "%00", "x" * 600, "..", "a//b", "\ud800", "é", "a b"])
def test_no_name_is_an_error_of_the_server(text_server: str, name: str) -> None:
    quoted = "".join(f"%{byte:02x}" for byte in name.encode("utf-8", "surrogatepass"))
    for method, path, headers in (
        ("GET", f"/v1/models/{quoted}", {}),
        ("DELETE", f"/v1/tasks/{quoted}", BEARER),
    ):
        assert httpx.request(method, f"{text_server}{path}", headers=headers).status_code == 404
    for body in ({"name": name, "adapter": "/nowhere"}, {"name": "z", "adapter": name}):
        found = httpx.post(
            f"{text_server}/v1/tasks",
            content=json.dumps(body),
            headers={**BEARER, "content-type": "application/json"},
        )
        assert found.status_code == 400, found.text


# The event loop.


class Gate:
    """A tokenizer that makes no tokens of one text until it may."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self._tokenizer, self._text = tokenizer, text
        self.reached, self.opened = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.calls += 1
        if text == self._text:
            self.reached.set()
            assert self.opened.wait(60)
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)


def test_others_are_answered_while_tokens_are_made(llama: Path, texts: Share) -> None:
    with engine_of(llama, texts) as engine:
        gate = Gate(engine.served.tokenizer, "slow")
        object.__setattr__(engine.served, "tokenizer", gate)
        with server_of(engine) as address:
            body = {"model": "a", "prompt": "slow", "max_tokens": 2}
            codes: list[int] = []
            slow = threading.Thread(
                target=lambda: codes.append(
                    httpx.post(f"{address}/v1/completions", json=body, timeout=60).status_code
                )
            )
            slow.start()
            assert gate.reached.wait(60)
            assert httpx.get(f"{address}/health").status_code == 200
            quick = httpx.post(f"{address}/v1/completions", json={**body, "prompt": "quick"})
            assert quick.status_code == 200
            gate.opened.set()
            slow.join(60)
            assert codes == [200]


def test_a_text_that_can_never_fit_is_refused_without_making_tokens(
    llama: Path, texts: Share
) -> None:
    with engine_of(llama, texts) as engine:
        gate = Gate(engine.served.tokenizer, "never")
        object.__setattr__(engine.served, "tokenizer", gate)
        long = "ab, " * 200_000
        with server_of(engine) as address:
            for path, body in (
                ("completions", {"prompt": long}),
                ("completions", {"prompt": ["x", long]}),
                ("embeddings", {"input": long}),
                ("chat/completions", {"messages": [{"role": "user", "content": long}]}),
            ):
                found = httpx.post(f"{address}/v1/{path}", json={"model": "a", **body}, timeout=60)
                assert found.status_code == 400
                assert "800000 characters" in found.json()["error"]["message"]
        assert gate.calls <= 1  # The short text of the second one.


# Connections.


def connect(address: str) -> socket.socket:
    host, _, port = address.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    data = b""
    try:
        while chunk := connection.recv(2**16):
            data += chunk
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),
        (b"GET /hea", b"HTTP/1.1 408"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx-half", b"HTTP/1.1 408"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"HTTP/1.1 200"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea", b"HTTP/1.1 200"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx", b"HTTP/1.1 200"),
        (b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx", b"HTTP/1.1 408"),
        (b"\x16\x03\x01\x02\x00", b"HTTP/1.1 400"),
    ],
)
def test_a_connection_that_says_nothing_more_is_closed(
    text_engine: Engine, sent: bytes, answered: bytes
) -> None:
    limits = ConnectionLimits(seconds=0.3)
    with (
        server_of(text_engine, limits=limits, body_seconds=0.3) as address,
        connect(address) as connection,
    ):
        connection.sendall(sent)
        assert read_all(connection).startswith(answered)


def test_single_bytes_do_not_keep_a_connection(text_engine: Engine) -> None:
    limits = ConnectionLimits(seconds=0.5)
    with server_of(text_engine, limits=limits) as address, connect(address) as connection:
        connection.settimeout(0.05)
        answer = b""
        for byte in b"GET /health HTTP/1.1\r\nx-long: " + b"y" * 1000:
            try:
                connection.sendall(bytes([byte]))
                answer += connection.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                break
            if answer:
                break
        assert answer.startswith(b"HTTP/1.1 408")


def test_a_client_that_takes_nothing_of_its_answer_is_given_up() -> None:
    ended = threading.Event()

    async def large(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):  # ``send`` waits while the client does not read.
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        ended.set()

    limits = ConnectionLimits(seconds=0.3)
    with address_of(large, limits) as address, connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert ended.wait(60)
        assert len(read_all(connection)) < 100 * 2**20


def test_silent_connections_make_room_for_one_that_asks(text_engine: Engine) -> None:
    with server_of(text_engine, limits=ConnectionLimits(connections=3)) as address:
        silent = [connect(address) for _ in range(5)]
        assert httpx.get(f"{address}/health").status_code == 200
        assert read_all(silent[0]) == b""
        for connection in silent:
            connection.close()


def test_one_connection_too_many_gets_503_where_all_are_at_work(held: Engine) -> None:
    with server_of(held, limits=ConnectionLimits(connections=2)) as address:
        body = json.dumps({"model": "a", "prompt": "x", "max_tokens": 2}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        request = f"{head}content-type: application/json\r\n\r\n".encode() + body
        with connect(address) as first, connect(address) as second:
            for connection in (first, second):
                connection.sendall(request)
            while held.waiting < 2:
                threading.Event().wait(0.01)
            with connect(address) as third:
                head_, _, text = read_all(third).partition(b"\r\n\r\n")
            assert head_.startswith(b"HTTP/1.1 503")
            assert "too many connections" in json.loads(text)["error"]["message"]


# Tasks that come in.


def adapter_of(share: Share, folder: Path, change: Callable[[Adapter], Adapter]) -> str:
    """A task's export, read and changed, as a PEFT folder."""
    share.export("a", folder / "original")
    original = change(read_adapter(folder / "original"))
    Share.from_adapters([original.with_name("x")], k=4).export("x", folder / "changed")
    return str(folder / "changed")


def beside(adapter: Adapter, module: str, sides: tuple[int, int]) -> Adapter:
    """With one more module."""
    updates = {m: adapter.layer(m) for m in adapter.shapes if m != module}
    n, d = sides
    updates[module] = LayerUpdate(torch.ones(n, 1), torch.ones(1, d), 1.0)
    return Adapter.from_updates("x", updates, config=adapter.config, kept=adapter.kept)


def with_config(adapter: Adapter, **fields: object) -> Adapter:
    return replace(adapter, config={**adapter.config, **fields})


def with_kept(adapter: Adapter, key: str, tensor: Tensor) -> Adapter:
    return replace(adapter, kept={f"base_model.model.{key}": tensor})


Q = "model.layers.0.self_attn.q_proj"

UNSERVABLE: list[tuple[str, Callable[[Adapter], Adapter], str]] = [
    (
        "x",
        lambda a: beside(a, "model.layers.9.self_attn.q_proj", (16, 16)),
        "does not have 1 of its",
    ),
    ("x", lambda a: beside(a, "model.norm", (16, 16)), "does not have 1 of its"),
    ("x", lambda a: with_config(a, alora_invocation_tokens=[1, 2]), "aLoRA"),
    ("x", lambda a: with_config(a, of_the_future=1), "of_the_future"),
    ("x", lambda a: with_kept(a, "no.head.weight", torch.ones(2, 2)), "no head"),
    ("x", lambda a: with_kept(a, "lm_head.weight", torch.ones(258, 9)), "(258, 9)"),
    ("base", lambda a: a, "named as the base model"),
    ("a/../b", lambda a: a, "no URL"),
    ("\nx", lambda a: a, "control character"),
    ("/x", lambda a: a, "no URL"),
]


def test_what_cannot_be_served_is_refused_before_it_is_stored(
    llama: Path, texts: Share, tmp_path: Path
) -> None:
    store = tmp_path / "s.share"
    Share(texts.model).save(store)
    with engine_of(llama, Share.load(store)) as engine, server_of(engine, path=store) as address:

        def add(name: str, path: str) -> httpx.Response:
            body = {"name": name, "adapter": path}
            return httpx.post(f"{address}/v1/tasks", json=body, headers=BEARER, timeout=60)

        for number, (name, change, said) in enumerate(UNSERVABLE):
            folder = tmp_path / str(number)
            refused = add(name, adapter_of(texts, folder, change))
            assert refused.status_code in (400, 409), refused.text
            message = refused.json()["error"]["message"]
            assert said in message
            assert str(tmp_path) not in message
            assert Share.load(store).version == 1
        # Everything goes on.
        assert add("good", str(folder / "original")).json() == {"version": 2, "tasks": 4}
        assert httpx.delete(f"{address}/v1/tasks/c", headers=BEARER).status_code == 200
        assert httpx.post(f"{address}/v1/reload", headers=BEARER).status_code == 200
        body = {"model": "good", "prompt": "x", "max_tokens": 2}
        assert httpx.post(f"{address}/v1/completions", json=body).status_code == 200
    load_base(str(llama), Share.load(store), name="base")  # It can be started again.


def test_paths_of_the_server_are_not_told(llama: Path, texts: Share, tmp_path: Path) -> None:
    store = tmp_path / "s.share"
    Share(texts.model).save(store)
    with engine_of(llama, Share.load(store)) as engine, server_of(engine, path=store) as address:
        body = {"name": "x", "adapter": str(tmp_path / "nothing")}
        missing = httpx.post(f"{address}/v1/tasks", json=body, headers=BEARER)
        shutil.rmtree(store)
        broken = httpx.post(f"{address}/v1/reload", headers=BEARER)
        assert "nothing" in missing.text
        for found in (missing, broken):
            assert found.status_code == 400
            assert str(tmp_path) not in found.text


def test_a_stored_task_that_the_model_cannot_run_is_left_out(
    llama: Path, texts: Share, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays in the store, whatever is added or removed beside it."""
    store = tmp_path / "s.share"
    shared = LayerUpdate(torch.ones(16, 1), torch.ones(1, 16), 1.0)
    alone = LayerUpdate(torch.ones(7, 1), torch.ones(1, 9), 1.0)
    stranger = Adapter.from_updates("stranger", {Q: shared, "no.such": alone})
    both = texts.merge([stranger])
    tasks = [t.with_name("no/../url") if t.name == "b" else t for t in both.model.tasks.values()]
    # No new task gets such a name any more, but earlier releases stored them.
    Share(both.model.with_tasks(tasks)).save(store)
    texts.export("a", tmp_path / "new")
    with caplog.at_level(logging.WARNING):
        served = load_base(str(llama), Share.load(store), name="base")
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "task 'stranger', module 'no.such': not in this model" in said
    assert "task 'no/../url'" in said
    engine = Engine(served)
    try:
        with server_of(engine, path=store, stored=Share.load(store)) as address:
            models = httpx.get(f"{address}/v1/models").json()["data"]
            assert [m["id"] for m in models] == ["base", "a", "c"]
            body: dict[str, Any] = {"name": "new", "adapter": str(tmp_path / "new")}
            added = httpx.post(f"{address}/v1/tasks", json=body, headers=BEARER, timeout=60)
            assert added.status_code == 200, added.text
            assert Share.load(store).tasks == ("a", "no/../url", "c", "stranger", "new")
            assert httpx.delete(f"{address}/v1/tasks/c", headers=BEARER).status_code == 200
            assert httpx.delete(f"{address}/v1/tasks/stranger", headers=BEARER).status_code == 200
            assert httpx.post(f"{address}/v1/reload", headers=BEARER).status_code == 200
            assert Share.load(store).tasks == ("a", "no/../url", "new")
            body = {"model": "new", "prompt": "x", "max_tokens": 2}
            assert httpx.post(f"{address}/v1/completions", json=body).status_code == 200
    finally:
        assert engine.close(60)


def test_a_task_that_was_named_as_the_base_meanwhile(
    llama: Path, texts: Share, tmp_path: Path
) -> None:
    store = tmp_path / "s.share"
    Share(texts.model).save(store)
    with engine_of(llama, Share.load(store)) as engine, server_of(engine, path=store) as address:
        Share.load(store).rename("a", "base").save()
        refused = httpx.post(f"{address}/v1/reload", headers=BEARER)
        assert refused.status_code == 409
        assert "named as the base model" in refused.text
        assert engine.share.tasks == TASKS


def test_a_head_of_another_width_is_refused(bert: Path, labels: Share) -> None:
    narrow = {"classifier.weight": torch.ones(5, 9), "classifier.bias": torch.ones(5)}
    with engine_of(bert, with_heads(labels, {"b": narrow})) as engine:
        replies: queue.Queue[Any] = queue.Queue()
        for task in ("a", "b"):
            engine.submit(Classify(task, (5, 6)), replies.put)
        kinds = {type(replies.get(timeout=60)).__name__ for _ in "ab"}
    assert kinds == {"ClassLogits", "MismatchError"}


# Settings.


@pytest.mark.parametrize("secret", ["", " ", "  x"])
def test_secrets_that_would_open_the_server_or_fit_nobody(secret: str) -> None:
    for name in ("api_key", "admin_token"):
        with pytest.raises(OptionError, match=f"{name}: it"):
            HttpSettings(**dict[str, Any]({name: secret}))


@pytest.mark.parametrize("name", ["SHARESPACE_API_KEY", "SHARESPACE_ADMIN_TOKEN"])
def test_an_empty_secret_of_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sharespace.cli import main

    monkeypatch.setenv(name, "")
    monkeypatch.setattr("sys.argv", ["sharespace", "serve", "nowhere.share"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert f"{name}: it is empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["host", "base", "name"])
def test_empty_names_are_no_defaults(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}: it is empty"):
        ServeSettings(**dict[str, Any]({name: ""}))


def test_a_folder_is_called_by_its_last_part(llama: Path, texts: Share) -> None:
    assert load_base(str(llama), texts).name == llama.name


def test_modules_that_the_base_lacks_are_refused_before_a_merge(
    llama: Path, texts: Share, tmp_path: Path
) -> None:
    Share(texts.model).save(tmp_path / "s.share")
    module = "model.layers.0.mlp.no_proj"
    update = LayerUpdate(torch.randn(16, 2), torch.randn(2, 16))
    adapter = tmp_path / "bad"
    write_adapter(adapter, PlainLora({module: update}))
    body = {"name": "bad", "adapter": str(adapter)}
    with (
        engine_of(llama, Share.load(tmp_path / "s.share")) as engine,
        server_of(engine, path=tmp_path / "s.share") as address,
    ):
        refused = httpx.post(f"{address}/v1/tasks", json=body, headers=BEARER)
    assert refused.status_code == 400
    assert "no_proj" in refused.json()["error"]["message"]
    assert Share.load(tmp_path / "s.share").version == 1


def test_a_path_in_the_log_cannot_tell_a_terminal_what_to_do(
    text_engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server_of(text_engine) as address, monkeypatch.context() as patch:
        patch.setattr(Engine, "share", property(lambda _: 1 / 0))
        reply = httpx.get(f"{address}/v1/models/%1b%5b31mx")
    assert reply.status_code == 500
    assert "/v1/models/\\x1b[31mx failed" in caplog.text
    assert "\x1b" not in caplog.text
