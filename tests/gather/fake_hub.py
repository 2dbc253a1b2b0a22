"""A stand-in for ``HfApi``: one repository, whose commits are all or nothing, and refused where
the parent has moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

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
    exists: bool = True
    private: bool = False

    def _files(self, revision: str | None = None) -> dict[str, bytes]:
        return self.commits[int(revision) if revision is not None else -1]

    def repo_info(self, repo: str) -> Any:
        assert repo == REPO
        if not self.exists:
            raise RepositoryNotFoundError("404: no repository", response=_response(404))
        return type("Info", (), {"sha": str(len(self.commits) - 1)})

    def create_repo(self, repo: str, *, private: bool) -> None:
        assert repo == REPO
        assert not self.exists
        self.exists, self.private = True, private

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


def _response(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("POST", "https://hub.test/"))


def _refused(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("refused", response=_response(status))
