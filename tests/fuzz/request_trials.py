"""Hostile requests to a server while others are answered: whose answers stay what they are alone.

The server is a real one on a socket. Beside the hostile requests a neighbour asks every task for a
greedy continuation all the time; each of its answers has to be the one that it got before.
"""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from fuzz.mutations import HOSTILE, RawJson, as_text, encoded, mutated_bytes, mutated_json
from fuzz.trials import BrokenLawError

_SECONDS = 50.0
"""That an answer may take on a busy machine."""
_PATH = re.compile(r"(?:/[\w.-]+){3,}")
_MEANT = frozenset((200, 307, 400, 401, 403, 404, 405, 408, 409, 411, 413, 414, 415, 422, 429, 431))

_BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "prompt": "abc",
        "max_tokens": 4,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 1,
        "n": 1,
        "stop": ["x"],
        "stream": False,
        "echo": False,
        "logprobs": None,
        "best_of": None,
    },
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "d"}],
        "max_tokens": 4,
        "temperature": 1.0,
        "tools": None,
        "response_format": {"type": "text"},
    },
    "/v1/embeddings": {"input": ["abc", "de"], "encoding_format": "float"},
    "/v1/classify": {"input": "abc"},
    "/v1/tasks": {"name": "new", "adapter": "/nowhere"},
}

_VALUES: tuple[Any, ...] = (
    *HOSTILE,
    *(3e-38, 1e-45, 5e-324, 1e300, 10**9, -(10**9), [0] * 300, ["a"] * 300, [[5, 6], []]),
    *([-1], [10**9], [None], "\ud800", "é" * 3000, "x " * 20_000, [{"role": "user"}]),
    *({"include_usage": True}, RawJson("[" * 5000), "</s><eos><pad>"),
)

_EDGES: dict[str, tuple[Any, ...]] = {
    "temperature": (3e-38, 1e-45, 5e-324, 0, 2, None),
    "top_p": (5e-324, 1e-300, 1, None),
    "max_tokens": (1, 100, None),
    "prompt": ("é" * 60, [5, 6], [[5, 6], [7]], "\0\x1b[31m", "</s><eos><pad>", ["a"] * 20),
    "stop": (None, "\ud83d", ["a", "b", "c", "d"], "<eos>"),
    "n": (2, 16, None),
    "seed": (2**63 - 1, -(2**63), None),
    "stream": (True, None),
    "input": ("é" * 20, [5, 6], ["a"] * 100),
    "encoding_format": ("base64", None),
}
"""Values at the ends of what is allowed, and a little beyond."""


@dataclass
class Neighbour:
    """Asks every task the same all the time, and compares."""

    address: str
    tasks: tuple[str, ...]
    expected: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    asked: int = 0

    def ask(self, task: str) -> str:
        body = {"model": task, "prompt": "the neighbour", "max_tokens": 8, "temperature": 0}
        reply = httpx.post(f"{self.address}/v1/completions", json=body, timeout=_SECONDS)
        if reply.status_code == 429:  # The queue is full, which is said; it is asked again.
            return self.expected.get(task, "")
        if reply.status_code != 200:
            return f"status {reply.status_code}: {reply.text[:200]}"
        text: str = reply.json()["choices"][0]["text"]
        return text

    def run(self, ended: threading.Event) -> None:
        while not ended.is_set():
            for task in self.tasks:
                try:
                    answer = self.ask(task)
                except httpx.HTTPError as error:
                    answer = f"{type(error).__name__}: {error}"
                self.asked += 1
                if answer != self.expected[task]:
                    self.wrong.append(f"{task}: {answer!r}, alone {self.expected[task]!r}")
            time.sleep(0.02)


@dataclass
class RequestTrials:
    """Trials of one server; an instance is called like any trial."""

    address: str
    tasks: tuple[str, ...]
    log: Callable[[], str]
    """What the server has logged so far."""
    admin_token: str
    neighbour: Neighbour

    def __call__(self, draw: random.Random, _folder: Path) -> str:
        """One hostile request, and whether it harmed the neighbour."""
        before = len(self.neighbour.wrong)
        ending = self._raw(draw) if draw.random() < 0.15 else self._request(draw)
        if harmed := self.neighbour.wrong[before:]:
            raise BrokenLawError(f"the neighbour got another answer: {harmed[0]}")
        said = self.log()
        if "Traceback" in said:
            raise BrokenLawError(f"the server logged {said[said.index('Traceback') :][:1500]}")
        bad = [line for line in said.splitlines() if not line.replace("\t", " ").isprintable()]
        if bad:
            raise BrokenLawError(f"a control character in the server's log: {bad[0][:200]!r}")
        return ending

    def _request(self, draw: random.Random) -> str:
        path = draw.choice(list(_BODIES))
        url, content = self.address + path, self._content(draw, path)
        method = draw.choice(["POST"] * 60 + ["GET", "PUT", "DELETE", "HEAD", "BREW"])
        if draw.random() < 0.08:
            url += draw.choice(["/%00", "/%1b[31m", "//", "/..%2f", "?x=%0a", "/" + "a" * 5000])
        headers = self._headers(draw)
        try:
            with httpx.stream(
                method, url, content=content, headers=headers, timeout=_SECONDS
            ) as reply:
                if draw.random() < 0.05:
                    return "left early"
                reply.read()
        except httpx.TimeoutException as error:
            raise BrokenLawError(
                f"no answer in {_SECONDS:g} s to {path} {content[:200]!r}"
            ) from error
        except (httpx.InvalidURL, httpx.LocalProtocolError):
            return "not sent"
        except httpx.TransportError:
            return "closed"
        self._check(path, content, reply)
        return f"status {reply.status_code}"

    def _content(self, draw: random.Random, path: str) -> bytes:
        """A body: one in two is as the API has it, with values at the ends of what is allowed."""
        body: Any = dict(_BODIES[path])
        if path != "/v1/tasks":
            body["model"] = draw.choice([*self.tasks, "base"])
        for key in draw.sample(sorted(_EDGES), 3):
            if key in body:
                body[key] = draw.choice(_EDGES[key])
        if draw.random() < 0.5:
            return as_text(body).encode("utf-8", "surrogatepass")
        for _ in range(draw.choice([1, 1, 2])):
            body = mutated_json(draw, body, ("stream", "stop", "logit_bias", "user"))
        if isinstance(body, dict) and draw.random() < 0.3:
            body[draw.choice(list(_BODIES[path]))] = draw.choice(_VALUES)
        content = encoded(draw, as_text(body))
        return mutated_bytes(draw, content) if draw.random() < 0.1 else content

    def _headers(self, draw: random.Random) -> dict[str, str]:
        headers = {"content-type": draw.choice(["application/json"] * 25 + ["text/plain", "", "x"])}
        if draw.random() < 0.3:
            token = draw.choice([self.admin_token, "wrong", "", "x" * 3000])
            headers["authorization"] = draw.choice(["Bearer ", "", "Basic "]) + token
        if draw.random() < 0.1:
            headers[draw.choice(["x-a", "expect", "accept-encoding"])] = draw.choice(
                ["100-continue", "x" * 8000, "gzip"]
            )
        return headers

    def _check(self, path: str, content: bytes, reply: httpx.Response) -> None:
        if reply.status_code not in _MEANT:
            raise BrokenLawError(
                f"{path}: status {reply.status_code} to {content[:300]!r}: {reply.text[:300]}"
            )
        if reply.status_code < 400 or not reply.content:
            return
        if "application/json" not in reply.headers.get("content-type", ""):
            raise BrokenLawError(f"{path}: an error that is no JSON: {reply.text[:200]!r}")
        error = reply.json().get("error", {})
        message = error.get("message") if isinstance(error, dict) else None
        if not isinstance(message, str) or not message or not message.isprintable():
            raise BrokenLawError(
                f"{path}: an error without a message of one line: {reply.text[:300]!r}"
            )
        if _PATH.search(message) and "/nowhere" not in message:
            raise BrokenLawError(f"{path}: a path of the server in {message!r}")

    def _raw(self, draw: random.Random) -> str:
        """Bytes that are not, or not quite, HTTP; the connection is closed at once."""
        good = (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b'content-length: 40\r\n\r\n{"model": "base", "prompt": "a", "n": 1}'
        )
        data = draw.choice(
            [
                mutated_bytes(draw, good),
                good[: draw.randrange(len(good))],
                good * 5,
                draw.randbytes(500),
                b"GET / HTTP/1.1\r\n" + b"a: " + b"x" * 100_000 + b"\r\n\r\n",
                b"GET /\x1b[31m HTTP/1.1\r\nhost: x\r\n\r\n",
                good.replace(b"content-length: 40", b"transfer-encoding: chunked"),
                good.replace(b"content-length: 40", b"content-length: -1"),
                good.replace(b"content-length: 40", b"content-length: 99999999999"),
                b"GET /v1/models/%1b%5b31mx HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            ]
        )
        parts = urlsplit(self.address)
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as one:
            try:
                one.sendall(data)
                if draw.random() < 0.5:
                    one.settimeout(0.3)
                    one.recv(1000)
            except OSError:
                return "raw, closed"
        return "raw"

    def check_alive(self) -> None:
        """After all of them the server is ready, and every task answers as before."""
        if httpx.get(f"{self.address}/health", timeout=_SECONDS).status_code != 200:
            raise BrokenLawError("the server is not well any more")
        for task in self.tasks:
            answer = self.neighbour.ask(task)
            if answer != self.neighbour.expected[task]:
                raise BrokenLawError(f"{task} answers {answer!r} in the end")


@contextmanager
def request_trials(
    address: str, tasks: tuple[str, ...], log: Callable[[], str], admin_token: str
) -> Iterator[RequestTrials]:
    """Trials of a server with a neighbour beside them."""
    neighbour = Neighbour(address, tasks)
    neighbour.expected = {task: neighbour.ask(task) for task in tasks}
    trials = RequestTrials(address, tasks, log, admin_token, neighbour)
    ended = threading.Event()
    thread = threading.Thread(target=neighbour.run, args=(ended,))
    thread.start()
    try:
        yield trials
        ended.set()
        thread.join(_SECONDS)
        trials.check_alive()
        if not neighbour.asked or json.dumps(neighbour.wrong) != "[]":
            raise BrokenLawError(
                f"the neighbour: {neighbour.asked} asked, wrong: {neighbour.wrong[:2]}"
            )
    finally:
        ended.set()
        thread.join(_SECONDS)
