"""Killed at any point: nothing is lost, nothing comes in twice.

By default there are few random rounds, and a gatherer is killed at every third step. For all steps
and hundreds of rounds: ``SHARESPACE_ROUNDS=300 pytest tests/gather/test_kill.py``.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch

from gather.workers import grow, plain, put, start, trained
from sharespace.gather import Contribution, gather, hand_in
from sharespace.store import checkout, history, load, verify
from store.steps import run_and_kill

ROUNDS = int(os.environ.get("SHARESPACE_ROUNDS", "10"))
STRIDE = 1 if "SHARESPACE_ROUNDS" in os.environ else 3
"""Steps between two kills of a gatherer; it makes about a hundred."""
PER_STORE = 5
"""Rounds after which a new store is begun: all its versions are checked."""


def ids_of(store: Path) -> list[str]:
    return list(checkout(store).manifest.contributions)


def check(store: Path, inbox: Path, tasks: set[str], before: set[str]) -> None:
    """Exactly these tasks came in, each in one version, and each file is archived."""
    assert set(load(store).tasks) == before | tasks
    gathered = [v.operation.tasks for v in history(store) if v.operation.verb == "gather"]
    arrivals = [task for names in gathered for task in names]
    assert sorted(arrivals) == sorted(tasks), "one came in twice, or not at all"
    ids = ids_of(store)
    assert len(ids) == len(set(ids)) == len(tasks)
    assert {p.name for p in (inbox / "merged").iterdir() if not p.name.startswith(".")} == {
        f"contribution-{id}.safetensors" for id in ids
    }
    assert not [p for p in inbox.iterdir() if p.is_file() and not p.name.startswith(".")]
    assert not (inbox / "quarantine").exists()
    assert verify(store, all_versions=True).ok


def test_a_gatherer_killed_at_every_step(tmp_path: Path) -> None:
    start(tmp_path / "s")
    put(tmp_path / "inbox", trained(load(tmp_path / "s"), "a", 1))
    put(tmp_path / "inbox", plain("b", 2))
    put(tmp_path / "inbox", plain("first", 9))
    for step in count(step=STRIDE):
        folder = tmp_path / str(step)
        store, inbox = folder / "s", folder / "inbox"
        shutil.copytree(tmp_path / "s", store)
        shutil.copytree(tmp_path / "inbox", inbox)
        completed = run_and_kill(lambda s=store, i=inbox: gather(s, i), step)  # type: ignore[misc]
        gather(store, inbox)
        assert len(list((inbox / "quarantine").glob("contribution-*.json"))) == 1
        assert len(list((inbox / "quarantine").glob("contribution-*.safetensors"))) == 1
        shutil.rmtree(inbox / "quarantine")
        check(store, inbox, {"a", "b"}, {"first"})
        shutil.rmtree(folder)
        if completed:
            break
    assert step == 33, "the steps were not counted"


def test_a_submitter_killed_at_every_step(tmp_path: Path) -> None:
    start(tmp_path / "s")
    found = trained(load(tmp_path / "s"), "a", 1)
    for step in count():
        inbox = tmp_path / f"inbox{step}"
        completed = run_and_kill(lambda i=inbox: hand_in(found, i), step)  # type: ignore[misc]
        shown = list(inbox.glob("contribution-*")) if inbox.exists() else []
        store = tmp_path / f"s{step}"
        shutil.copytree(tmp_path / "s", store)
        hand_in(found, inbox)
        assert not gather(store, inbox).refused, f"half a file: {shown}"
        check(store, inbox, {"a"}, {"first"})
        if completed:
            assert shown
            break
    assert step == 4, "the steps were not counted"


def forked(action: Callable[[], object]) -> int:
    """A process of its own that does this."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside torch's idle threads
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(120)
        torch.set_num_threads(1)
        action()
        code = 0
    finally:
        os._exit(code)


def ended(child: int) -> bool:
    """Wait; True where it came to its end by itself, False where it was killed."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "it failed on its own"
    return True


def test_processes_killed_at_random(tmp_path: Path) -> None:
    """Three submitters and two gatherers a round; whoever is killed is begun anew."""
    draw = random.Random(os.environ.get("SHARESPACE_SEED", "0"))
    pause = undisturbed(tmp_path / "undisturbed") / 16
    killed = 0
    for begin in range(0, ROUNDS, PER_STORE):
        folder = tmp_path / str(begin)
        folder.mkdir()
        store, inbox = folder / "s", folder / "inbox"
        start(store)
        inbox.mkdir()
        tasks: set[str] = set()
        before = {"first"}
        for at in range(begin, min(begin + PER_STORE, ROUNDS)):
            if draw.random() < 0.5:
                before.add(f"grown{at}")
                grow(store, f"grown{at}", at + 3)
            killed += one_round(store, inbox, at, draw, tasks, pause)
        gather(store, inbox)
        check(store, inbox, tasks, before)
        shutil.rmtree(folder)
    assert killed >= ROUNDS // 4, "hardly anybody was killed"


def undisturbed(folder: Path) -> float:
    """Seconds of a round in which nobody is killed: how soon one must be killed on this machine."""
    store, inbox = folder / "s", folder / "inbox"
    folder.mkdir()
    start(store)
    inbox.mkdir()
    jobs = jobs_of(store, inbox, 0, random.Random(0), set())
    began = time.perf_counter()
    children = [forked(job) for job in jobs]
    assert [ended(child) for child in children] == [True] * len(children)
    return time.perf_counter() - began


def jobs_of(
    store: Path, inbox: Path, at: int, draw: random.Random, tasks: set[str]
) -> list[Callable[[], object]]:
    """Three submitters and two gatherers; the submitters' tasks are added to ``tasks``."""
    jobs: list[Callable[[], object]] = []
    for worker in range(3):
        found = [contribution(store, f"r{at}w{worker}n{i}", draw) for i in range(2)]
        tasks |= {one.task for one in found}
        jobs.append(lambda found=found: [hand_in(one, inbox) for one in found])  # type: ignore[misc]
    jobs += [lambda: gather(store, inbox, batch=draw.choice([1, 2, 8]))] * 2
    return jobs


def one_round(
    store: Path, inbox: Path, at: int, draw: random.Random, tasks: set[str], pause: float
) -> int:
    """Five processes at once, each killed after a while; the number of those killed.

    Args:
        pause: mean seconds between two kills.
    """
    jobs = jobs_of(store, inbox, at, draw, tasks)
    killed = 0
    while jobs:
        children = [(job, forked(job)) for job in jobs]
        for _, child in sorted(children, key=lambda _: draw.random()):
            if draw.random() < 0.7:
                time.sleep(draw.expovariate(1 / pause))
                os.kill(child, signal.SIGKILL)
        left = [job for job, child in children if not ended(child)]
        killed += len(left)
        jobs = left
    return killed


def contribution(store: Path, task: str, draw: random.Random) -> Contribution:
    """Plain factors, or trained in any version that is there."""
    seed = draw.randrange(10**6)
    if draw.random() < 0.3:
        return plain(task, seed)
    version = draw.choice([v.number for v in history(store)])
    return trained(load(store, version), task, seed, version=version)


@pytest.mark.parametrize("gatherers", [2, 3])
def test_competing_gatherers(tmp_path: Path, gatherers: int) -> None:
    """Nobody is killed: all of them come to an end, and nobody loses or doubles anything."""
    store, inbox = tmp_path / "s", tmp_path / "inbox"
    start(store)
    for i in range(12):
        put(inbox, plain(f"t{i}", i))
    children = [forked(lambda: gather(store, inbox, batch=2)) for _ in range(gatherers)]
    assert [ended(child) for child in children] == [True] * gatherers
    check(store, inbox, {f"t{i}" for i in range(12)}, {"first"})
