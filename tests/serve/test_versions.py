"""Versions of a Share model that change while requests run: every answer is of one of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch

from serve.conftest import TASKS, engine_of
from serve.mixed.test_batch import alone
from sharespace import Share
from sharespace.errors import OptionError, TaskNotFoundError
from sharespace.serve.base_model import ServedModel
from sharespace.serve.engine import Engine
from sharespace.serve.requests import Embed, Generate, Piece, Sampling
from sharespace.subspace.coefficients import Factors
from sharespace.subspace.state import Task

PROMPT = (5, 6, 7)
LENGTH = 8


def turned(task: Task) -> Task:
    """The same name with other coefficients."""
    found = {}
    for module, c in task.coefficients.items():
        assert isinstance(c, Factors)
        found[module] = Factors(-c.left, c.right)
    return replace(task, coefficients=found)


def with_tasks(share: Share, tasks: Sequence[Task]) -> Share:
    return Share(share.model.with_tasks(list(tasks)))


def ask(engine: Engine, task: str | None, length: int = LENGTH) -> str:
    """A whole greedy answer; raises what the engine says."""
    said: SimpleQueue[object] = SimpleQueue()
    engine.submit(Generate(task, PROMPT, Sampling(max_tokens=length, temperature=0)), said.put)
    text = ""
    while True:
        found = said.get(timeout=120)
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Piece)
        text += found.text
        if found.finish is not None:
            return text


def expected(served: ServedModel, share: Share, task: str | None) -> str:
    ids = torch.tensor([PROMPT])

    def run() -> torch.Tensor:
        options = {"max_new_tokens": LENGTH, "do_sample": False}
        found = served.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return torch.as_tensor(found)

    with served.mixed.tasks([None]):
        tokens = alone(served.model, share, task, run)[0, len(PROMPT) :]
    return str(served.tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def test_every_answer_is_of_one_version(llama: Path, texts: Share) -> None:
    """Four clients ask all the time while every task changes again and again."""
    other = with_tasks(texts, [turned(t) for t in texts.model.tasks.values()])
    with engine_of(llama, texts, batch=8) as engine:
        known = {
            name: {expected(engine.served, share, name) for share in (texts, other)}
            for name in TASKS
        }
        assert all(len(texts_of) == 2 for texts_of in known.values()), "the versions differ"
        done = threading.Event()
        replaced = 0

        def change() -> None:
            nonlocal replaced
            while not done.is_set():
                engine.replace((other, texts)[replaced % 2])
                replaced += 1
                time.sleep(0.003)

        changer = threading.Thread(target=change)
        changer.start()
        with ThreadPoolExecutor(4) as pool:
            asked = [TASKS[i % 3] for i in range(60)]
            answers = list(pool.map(lambda name: (name, ask(engine, name)), asked))
        done.set()
        changer.join(60)
        assert replaced > 3
        assert [a for a in answers if a[1] not in known[a[0]]] == []
        assert {a for _, a in answers} == set.union(*known.values()), "both versions answered"


def test_what_is_asked_after_a_change_sees_it(llama: Path, texts: Share) -> None:
    """While other requests run: nobody waits for them, and they keep their version."""
    other = with_tasks(texts, [turned(t) for t in texts.model.tasks.values()])
    with engine_of(llama, texts) as engine:
        before = expected(engine.served, texts, "a")
        after = expected(engine.served, other, "a")
        started, go_on = threading.Event(), threading.Event()
        said: list[str] = []
        finished = threading.Event()

        def hold(found: object) -> None:
            """The running batch stands still after its first piece."""
            assert isinstance(found, Piece)
            said.append(found.text)
            started.set()
            assert go_on.wait(60)
            if found.finish is not None:
                finished.set()

        sampling = Sampling(max_tokens=LENGTH, temperature=0)
        engine.submit(Generate("a", PROMPT, sampling), hold)
        assert started.wait(60)
        engine.replace(other)  # Returns though a batch runs.
        assert engine.share is other
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(ask, engine, "a")
            go_on.set()
            assert later.result(60) == after
        assert finished.wait(60)
        assert "".join(said) == before


def test_tasks_that_come_and_go_while_requests_run(llama: Path, texts: Share) -> None:
    """An answer is the task's, or says that there is none; others are never disturbed."""
    without = texts.remove("b")
    with engine_of(llama, texts, batch=4) as engine:
        right = {name: expected(engine.served, texts, name) for name in TASKS}
        done = threading.Event()

        def change() -> None:
            turn = 0
            while not done.is_set():
                engine.replace((without, texts)[turn % 2])
                turn += 1
                time.sleep(0.004)

        def answer(name: str) -> str | None:
            try:
                return ask(engine, name)
            except TaskNotFoundError:
                return None

        changer = threading.Thread(target=change)
        changer.start()
        with ThreadPoolExecutor(4) as pool:
            asked = [TASKS[i % 3] for i in range(60)]
            answers = list(zip(asked, pool.map(answer, asked), strict=True))
        done.set()
        changer.join(60)
        wrong = [(n, a) for n, a in answers if a != right[n] and not (n == "b" and a is None)]
        assert wrong == []


def test_a_block_inside_a_block_is_an_error_not_a_deadlock(served: ServedModel) -> None:
    with served.mixed.tasks(["a"]):
        with pytest.raises(OptionError, match="inside a block"), served.mixed.tasks(["b"]):
            pass
        with pytest.raises(OptionError, match="inside a block"):
            served.mixed.remove()


def test_a_long_queue_of_two_kinds_keeps_its_order(llama: Path, texts: Share) -> None:
    """Batches are of one kind; nothing is lost, and nobody is overtaken by his own kind."""
    with engine_of(llama, texts, batch=16, queue=500) as engine:
        started, go_on, done = threading.Event(), threading.Event(), threading.Event()

        def hold(_: object) -> None:
            started.set()
            assert go_on.wait(60)

        engine.submit(Generate("a", PROMPT, Sampling(max_tokens=1)), hold)
        assert started.wait(60)
        answered: list[tuple[type, int]] = []

        def listen(kind: type, number: int, found: object) -> None:
            assert not isinstance(found, Exception)
            answered.append((kind, number))
            if len(answered) == 200:
                done.set()

        jobs = []
        for i in range(200):
            kind = Generate if i % 3 else Embed
            task = TASKS[i % 3]
            request = (
                Generate(task, PROMPT, Sampling(max_tokens=1, temperature=0))
                if i % 3
                else Embed(task, PROMPT)
            )
            jobs.append(engine.submit(request, partial(listen, kind, i)))
        assert engine.waiting == 200
        go_on.set()
        assert done.wait(120)
        for kind in (Generate, Embed):
            mine = [i for k, i in answered if k is kind]
            assert mine == sorted(mine)
