"""The Hub as an inbox and as the home of a store, against a stand-in for ``HfApi``.

The stand-in keeps commits as the Hub does (all or nothing, refused where the parent has moved);
nothing here talks to the Hub itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from gather.workers import grow, plain, start
from sharespace.errors import InboxError, OptionError, StoreConflictError
from sharespace.gather import Gatherer, encode, open_inbox, push
from sharespace.gather.hub import HubInbox
from sharespace.store import load, verify

REPO = "user/repo"


@dataclass
class File:
    path: str
    size: int


@dataclass
class Done:
    commit_url: str
    pr_url: str | None


@dataclass
class FakeHub:
    """One repository."""

    folder: Path
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    pull_requests: list[dict[str, bytes]] = field(default_factory=list)

    def _files(self, revision: str | None = None) -> dict[str, bytes]:
        return self.commits[int(revision) if revision is not None else -1]

    def repo_info(self, repo: str) -> Any:
        assert repo == REPO
        return type("Info", (), {"sha": str(len(self.commits) - 1)})

    def list_repo_files(self, _repo: str, revision: str | None = None) -> list[str]:
        return list(self._files(revision))

    def list_repo_tree(self, _repo: str, folder: str) -> list[File]:
        inside = [(p, d) for p, d in self._files().items() if p.rpartition("/")[0] == folder]
        if not inside:
            raise EntryNotFoundError("404: not there")
        return [File(path, len(data)) for path, data in inside]

    def hf_hub_download(self, _repo: str, path: str, revision: str | None = None) -> str:
        if path not in self._files(revision):
            raise EntryNotFoundError("404: not there")
        target = self.folder / f"cache{len(list(self.folder.iterdir()))}"
        target.write_bytes(self._files(revision)[path])
        return str(target)

    def create_commit(
        self,
        _repo: str,
        operations: Sequence[Any],
        *,
        commit_message: str,
        parent_commit: str | None = None,
        create_pr: bool = False,
    ) -> Done:
        assert commit_message
        if parent_commit is not None and parent_commit != str(len(self.commits) - 1):
            raise _refused(412)
        files = dict(self._files())
        for one in operations:
            if isinstance(one, CommitOperationDelete):
                del files[one.path_in_repo]
            else:
                assert isinstance(one, CommitOperationAdd)
                with one.as_file() as data:
                    files[one.path_in_repo] = data.read()
        (self.pull_requests if create_pr else self.commits).append(files)
        return Done("commit", "request" if create_pr else None)

    def download(self, target: Path) -> None:
        for path, data in self._files().items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(data)


def _refused(status: int) -> HfHubHTTPError:
    request = httpx.Request("POST", "https://hub.test/")
    response: Any = httpx.Response(status, request=request)
    return HfHubHTTPError("refused", response=response)


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
