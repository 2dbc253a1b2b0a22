"""Stores: contributions of which some are bad, and commands that are killed at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fuzz.mutations import as_text, encoded, joined_file, mutated_bytes, mutated_json, split_file
from fuzz.trials import BrokenLawError, command
from gather.workers import adapter, plain, put, start, trained
from sharespace import Share
from sharespace.errors import StoreNotFoundError
from sharespace.formats import PlainLora, write_adapter
from sharespace.gather import encode, hand_in
from sharespace.store import checkout, load, verify

BAD_ONES = 8
"""Changed contributions of one trial; two good ones come with them."""


@cache
def _store(folder: Path) -> Path:
    """A store with room to grow, made once a folder."""
    start(folder / "store")
    return folder / "store"


def gather_trial(draw: random.Random, folder: Path) -> list[str]:
    """Bad contributions beside good ones: the good ones come in, the bad ones are set aside."""
    store, inbox = folder / "s", folder / "inbox"
    shutil.copytree(_store(folder.parent), store)
    inbox.mkdir()
    for number in range(BAD_ONES):
        _put_bad(draw, inbox, number)
    good = [put(inbox, plain("good", 3)), put(inbox, trained(load(store), "better", 4))]
    options: list[object] = draw.choice([[], ["--batch", 3], ["--json"]])
    code = command("gather", store, inbox, *options).code
    opened = checkout(store)
    missing = {"good", "better"} - set(opened.model.tasks)
    if missing:
        raise BrokenLawError(f"{sorted(missing)} did not come in (exit code {code})")
    if not verify(store, all_versions=True).ok:
        raise BrokenLawError("the store is damaged")
    left = [p.name for p in inbox.iterdir() if p.name not in ("merged", "quarantine")]
    if left:
        raise BrokenLawError(f"left in the inbox: {left}, of which good: {set(left) & set(good)}")
    aside = sorted((inbox / "quarantine").glob("*.json"))
    for record in aside:
        reason = json.loads(record.read_bytes())
        if not reason["why"] or "\n" in reason["why"]:
            raise BrokenLawError(f"set aside without a reason of one line: {reason}")
    return ["set aside"] * len(aside) + ["taken"] * (len(opened.model.tasks) - 1)


def _put_bad(draw: random.Random, inbox: Path, number: int) -> None:
    """One changed contribution, under the name that its bytes have, or another one."""
    task = f"bad{number}"
    made = plain(task, draw.randrange(99)) if draw.random() < 0.6 else _trained(task, draw)
    _, data = encode(made)
    how = draw.choice(["bytes", "text", "header", "tensors", "place"])
    if how == "bytes":
        data = mutated_bytes(draw, data)
    elif how == "header":
        header, tensors = split_file(data)
        data = joined_file(encoded(draw, as_text(mutated_json(draw, header))), tensors)
    elif how in ("text", "tensors"):
        data = _resealed(draw, data, tensors=how == "tensors")
    own = f"contribution-{hashlib.sha256(data).hexdigest()}.safetensors"
    name = draw.choice([own, own, own, f"{number}\x1b[2J.safetensors", f"n{number}.safetensors"])
    if how == "place" and draw.random() < 0.5:
        _put_strangely(draw, inbox / f"strange{number}.safetensors")
    else:
        (inbox / name).write_bytes(data)


def _trained(task: str, draw: random.Random) -> Any:
    return trained(_model(), task, draw.randrange(99))


@cache
def _model() -> Any:
    """The Share model of ``start``, which makes the same one every time."""
    return Share.from_adapters([adapter("first", 1)], variance=1.0).model


def _put_strangely(draw: random.Random, path: Path) -> None:
    """What is no file."""
    how = draw.choice(["folder", "link", "circle", "pipe", "full folder"])
    if how == "pipe":
        os.mkfifo(path)
    elif how.endswith("folder"):
        path.mkdir()
        if how == "full folder":
            (path / "x.safetensors").write_bytes(b"{}")
    else:
        path.symlink_to("nowhere" if how == "link" else path.name)


def _resealed(draw: random.Random, data: bytes, *, tensors: bool) -> bytes:
    """A contribution with another text or other numbers, whose hash says that it is whole."""
    header, rest = split_file(data)
    if tensors and rest:
        changed = bytearray(rest)
        for _ in range(draw.choice([1, 4, 40])):
            at = draw.randrange(len(changed))
            changed[at] = draw.choice([0, 127, 128, 255, draw.randrange(256)])
        rest = bytes(changed)
    text = json.loads(header["__metadata__"]["sharespace"])
    if not tensors:
        for _ in range(draw.choice([1, 1, 2])):
            text = mutated_json(draw, text, ("labels", "files", "basis", "extra"))
    if isinstance(text, dict) and "data_sha256" in text and draw.random() < 0.9:
        text["data_sha256"] = hashlib.sha256(rest).hexdigest()
    header["__metadata__"]["sharespace"] = as_text(text)
    raw = json.dumps(header).encode("utf-8", "surrogatepass")
    return joined_file(raw + b" " * (-len(raw) % 8), rest)


# Commands that are killed.

VERBS = ("init", "merge", "gather", "export", "prune", "remove", "rollback")


def kill_trial(draw: random.Random, folder: Path) -> str:
    """A command is killed at any moment: the store verifies, and the command can be run again."""
    verb = draw.choice(VERBS)
    _prepare(folder.parent)
    store, inbox, out = folder / "s", folder / "inbox", folder / "out"
    prepared = folder.parent / "prepared"
    if verb != "init":
        shutil.copytree(prepared / "s", store)
    shutil.copytree(prepared / "inbox", inbox)
    shutil.copytree(prepared / "out", out)
    words = _words(verb, prepared, store, inbox, out)
    before = _tasks(store)
    killed = _killed(lambda: command(*words).code, draw.random() * _seconds(verb, folder.parent))
    after = _tasks(store)
    _check_after(verb, before, after, store, out)
    again = command(*words)
    if again.code and not (killed is False or after != before or verb == "rollback"):
        raise BrokenLawError(f"{verb} cannot be run again: {again.err}")
    _check_after(verb, before, _tasks(store), store, out)
    _check_no_leftovers(folder)
    return f"{verb} {'killed' if killed else 'ended'}"


def _prepare(folder: Path) -> None:
    """What the commands work on, made once a folder: a store of three versions, and so on."""
    place = folder / "prepared"
    if place.exists():
        return
    place.mkdir()
    for name, seed in (("first", 1), ("second", 2), ("third", 3)):
        write_adapter(place / name, PlainLora.from_adapter(adapter(name, seed)))
    command("init", place / "s", place / "first")
    command("merge", place / "s", place / "second")
    share = Share.load(place / "s")
    for name, seed in (("handed", 5), ("in", 6)):
        hand_in(plain(name, seed), place / "inbox")
    command("export", place / "s", "first", place / "out")
    assert len(share.tasks) == 2


def _words(verb: str, prepared: Path, store: Path, inbox: Path, out: Path) -> list[object]:
    """The command: what ``init`` and ``merge`` need lies beside the prepared store."""
    words: dict[str, list[object]] = {
        "init": ["init", store, prepared / "first", prepared / "third"],
        "merge": ["merge", store, prepared / "third"],
        "gather": ["gather", store, inbox],
        "export": ["export", store, "second", out, "--overwrite"],
        "prune": ["prune", store, "--keep", 1],
        "remove": ["remove", store, "second"],
        "rollback": ["rollback", store, 1],
    }
    return words[verb]


@cache
def _seconds(verb: str, folder: Path) -> float:
    """Seconds that the command takes when nobody kills it, with some room."""
    place = folder / f"undisturbed-{verb}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "prepared", place)
    if verb == "init":
        shutil.rmtree(place / "s")
    words = _words(verb, folder / "prepared", place / "s", place / "inbox", place / "out")
    began = time.perf_counter()
    _killed(lambda: command(*words).code, 60)
    return 1.2 * (time.perf_counter() - began)


def _killed(action: Callable[[], int], seconds: float) -> bool:
    """Run the action in a process of its own, and kill that; False where it ended before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside torch's idle threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            torch.set_num_threads(1)
            code = action()
        finally:
            os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return _ended(status)
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    return _ended(os.waitpid(child, 0)[1])


def _ended(status: int) -> bool:
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise BrokenLawError(f"the command failed by itself: {os.WEXITSTATUS(status)}")
    return False


def _tasks(store: Path) -> tuple[str, ...] | None:
    """Tasks of the current version; None: there is no store yet."""
    try:
        return tuple(checkout(store).model.tasks)
    except StoreNotFoundError:
        return None


_AFTER = {
    "init": ("first", "third"),
    "merge": ("first", "second", "third"),
    "gather": ("first", "second", "handed", "in"),
    "export": ("first", "second"),
    "prune": ("first", "second"),
    "remove": ("first",),
    "rollback": ("first",),
}


def _check_after(
    verb: str,
    before: tuple[str, ...] | None,
    after: tuple[str, ...] | None,
    store: Path,
    out: Path,
) -> None:
    """The store has the tasks from before or all of those that are meant, and verifies."""
    meant = set(_AFTER[verb])
    if after is not None and set(after) != meant and after != before:
        raise BrokenLawError(f"{verb}: neither {before} nor {sorted(meant)}, but {after}")
    if after is None and before is not None:
        raise BrokenLawError(f"{verb}: the store is gone")
    if after is not None and not verify(store, all_versions=True).ok:
        raise BrokenLawError(f"{verb}: the store is damaged")
    names = {p.name for p in out.iterdir()}
    if not {"adapter_config.json", "adapter_model.safetensors"} <= names:
        raise BrokenLawError(f"{verb}: the export has {sorted(names)}")


def _check_no_leftovers(folder: Path) -> None:
    """Once a command was run again, nothing of the killed one lies beside its output."""
    hidden = [p.name for p in folder.iterdir() if p.name.startswith(".")]
    if hidden:
        raise BrokenLawError(f"left behind: {hidden}")
