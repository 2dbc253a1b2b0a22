"""Inboxes that are not folders: fsspec's memory, and S3 as a real local server speaks it."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gather.workers import plain, trained
from sharespace.errors import InboxError, MissingExtraError
from sharespace.gather import Gatherer, encode, gather, hand_in, open_inbox
from sharespace.gather.inboxes import RemoteInbox
from sharespace.store import load

fsspec = pytest.importorskip("fsspec", reason="needs the extra 'remote'")

needs_s3 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("s3fs", "moto", "flask")),
    reason="needs s3fs and moto[server] (extra 'dev')",
)


@pytest.fixture
def memory() -> Iterator[str]:
    """An inbox in this process's memory, by fsspec."""
    url = "memory://inbox-of-tests"
    yield url
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a process that speaks S3."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, process)
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket's URL, reached as a user would reach it: by environment variables."""
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}/inbox"
    s3fs.S3FileSystem.clear_instance_cache()


def all_names(url: str) -> list[str]:
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return sorted(str(x).removeprefix(root).lstrip("/") for x in fs.find(root))


def test_memory(store: Path, memory: str) -> None:
    check_inbox(store, memory)


@needs_s3
def test_s3(store: Path, bucket: str) -> None:
    check_inbox(store, bucket)


def check_inbox(store: Path, url: str) -> None:
    """The whole way, twice over, with one that is damaged and one that is repeated."""
    first = hand_in(trained(load(store), "a", 1), url)
    second = hand_in(plain("b", 2), url)
    bad = hand_in(plain("first", 3), url)
    fs, root = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{root}/junk.safetensors", b"x" * 20)
    found = gather(store, url)
    assert {one.task for one in found.merged} == {"a", "b"}
    assert len(found.refused) == 2
    names = all_names(url)
    assert [n for n in names if n.startswith("merged/")] == sorted(
        f"merged/{one.file}" for one in (first, second)
    )
    assert f"quarantine/{bad.file}" in names
    reason = json.loads(fs.cat_file(f"{root}/quarantine/{bad.file}.json"))
    assert "name already" in reason["why"]
    assert not [n for n in names if "/" not in n]
    hand_in(plain("b", 2), url)
    assert gather(store, url).repeated == (second.id,)
    assert set(load(store).tasks) == {"first", "a", "b"}


@needs_s3
def test_killed_between_copy_and_deletion(
    store: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_in(plain("a", 1), bucket)
    inbox = RemoteInbox(bucket)
    with monkeypatch.context() as patch:
        patch.setattr(inbox._fs, "rm_file", _killed)
        with pytest.raises(InboxError, match="killed"):
            Gatherer(store, inbox).run()
    assert len(all_names(bucket)) == 2
    found = gather(store, bucket)
    assert (len(found.merged), len(found.repeated)) == (0, 1)
    assert len(all_names(bucket)) == 1


def _killed(*_: Any, **__: Any) -> None:
    raise OSError("killed")


@needs_s3
def test_an_empty_prefix_and_no_bucket(store: Path, bucket: str) -> None:
    assert not gather(store, bucket).merged
    missing = "s3://no-such-bucket-at-all/inbox"
    with pytest.raises(InboxError):
        hand_in(plain("a", 1), missing)
    with pytest.raises(InboxError, match="no-such-bucket"):
        gather(store, missing)


@needs_s3
def test_another_gatherer_was_faster(store: Path, bucket: str) -> None:
    name, data = encode(plain("a", 1))
    inbox = open_inbox(bucket)
    assert inbox.read(name) is None
    assert not inbox.move(name, f"merged/{name}")
    inbox.write(name, data)
    assert inbox.read(name) == data
    assert [e.size for e in inbox.entries()] == [len(data)]
    assert inbox.move(name, f"merged/{name}")
    assert inbox.entries() == []
    assert load(store).tasks


@needs_s3
def test_a_server_that_does_not_answer(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InboxError, match="nothing was lost"):
        gather(store, "s3://bucket/inbox")


def test_a_protocol_that_nothing_knows() -> None:
    with pytest.raises(InboxError, match="opening"):
        open_inbox("nothing://x/y")


def test_what_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(MissingExtraError, match=r"sharespace\[remote\]"):
        RemoteInbox("s3://bucket/x")


def test_a_url_of_a_folder_is_the_folder(store: Path, tmp_path: Path) -> None:
    found = hand_in(plain("a", 1), f"file://{tmp_path}/inbox")
    assert (tmp_path / "inbox" / found.file).is_file()
    assert gather(store, f"file://{tmp_path}/inbox").merged


def test_an_object_that_cannot_be_read_stays_with_itself(
    memory: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = RemoteInbox(memory)
    for i in range(3):
        name, data = encode(plain(f"t{i}", i))
        inbox.write(name, data)
    files = type(fsspec.filesystem("memory"))
    unreadable, read = inbox.entries()[0].name, files.cat_file

    def denied(self: Any, path: str, **more: Any) -> bytes:
        if path.endswith(unreadable):
            raise PermissionError("AccessDenied")
        data: bytes = read(self, path, **more)
        return data

    monkeypatch.setattr(files, "cat_file", denied)
    with pytest.raises(InboxError, match=rf"{unreadable}: reading failed: AccessDenied"):
        gather(store, memory)
    assert len(load(store).tasks) == 3
    assert [entry.name for entry in inbox.entries()] == [unreadable]
    monkeypatch.setattr(files, "ls", lambda *_, **__: 1 / 0)
    with pytest.raises(InboxError, match="listing failed"):
        gather(store, memory)
