"""The Hub as an inbox and as the home of a store, against a stand-in for ``HfApi``.

The stand-in keeps commits as the Hub does (all or nothing, refused where the parent has moved);
nothing here talks to the Hub itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gather.fake_hub import REPO, FakeHub
from gather.workers import grow, plain, start
from sharespace.errors import InboxError, OptionError, StoreConflictError
from sharespace.gather import Gatherer, encode, open_inbox, push
from sharespace.gather.inboxes import HubInbox
from sharespace.store import load, verify


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    folder = tmp_path / "cache"
    folder.mkdir()
    return FakeHub(folder)


def inbox_of(hub: Any, **more: Any) -> HubInbox:
    return HubInbox(f"hf://{REPO}/inbox", api=hub, **more)


def test_the_whole_way(store: Path, hub: Any) -> None:
    inbox = inbox_of(hub)
    assert inbox.entries() == []
    for found in (plain("a", 1), plain("first", 2)):
        inbox.write(*encode(found))
    done = Gatherer(store, inbox).run()
    assert [a.task for a in done.merged] == ["a"]
    assert len(done.refused) == 1
    assert not inbox.entries()
    folders = sorted(path.split("/")[1] for path in hub.commits[-1])
    assert folders == ["merged", "quarantine", "quarantine"]
    inbox.write(*encode(plain("a", 1)))
    assert Gatherer(store, inbox).run().repeated
    assert set(load(store).tasks) == {"first", "a"}


def test_a_pull_request_comes_in_when_it_is_merged(store: Path, hub: Any) -> None:
    inbox_of(hub, pull_request=True).write(*encode(plain("a", 1)))
    assert not Gatherer(store, inbox_of(hub)).run().merged
    hub.commits.append(hub.pull_requests.pop())
    assert Gatherer(store, inbox_of(hub)).run().merged


def test_a_move_that_somebody_else_was_faster_with(hub: Any, monkeypatch: Any) -> None:
    inbox = inbox_of(hub)
    name, data = encode(plain("a", 1))
    assert not inbox.move(name, f"merged/{name}")
    assert inbox.read(name) is None
    inbox.write(name, data)
    head = hub.repo_info(REPO)
    inbox.write("other.safetensors", data)
    monkeypatch.setattr(hub, "repo_info", lambda _: head)
    with pytest.raises(InboxError, match="somebody else committed"):
        inbox.move(name, f"merged/{name}")
    assert inbox.read(name) == data


def test_push_and_what_is_there(tmp_path: Path, store: Path, hub: Any) -> None:
    assert push(store, REPO, api=hub) == "commit"
    assert push(store, REPO, api=hub) is None
    grow(store, "more", 5)
    assert push(store, REPO, api=hub, pull_request=True) == "request"
    assert push(store, REPO, api=hub) == "commit"
    hub.download(tmp_path / "copy")
    assert set(load(tmp_path / "copy").tasks) == {"first", "more"}
    assert verify(tmp_path / "copy", all_versions=True).ok
    other = tmp_path / "other"
    start(other, cap=2)
    with pytest.raises(StoreConflictError, match="none of this store's"):
        push(other, REPO, api=hub)


def test_names_of_places() -> None:
    with pytest.raises(OptionError, match="USER/REPO/FOLDER"):
        open_inbox("hf://user/repo")
    with pytest.raises(OptionError, match="only the Hub"):
        open_inbox("s3://bucket/inbox", pull_request=True)
    assert isinstance(open_inbox("hf://user/repo/inbox"), HubInbox)
