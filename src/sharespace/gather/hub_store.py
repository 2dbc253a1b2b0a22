"""The Hugging Face Hub as a place for contributions, and for the Share model itself.

Files come and go by commits. Each names the commit that it was made from (``parent_commit``), so
that the Hub refuses it where somebody else was faster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from sharespace.errors import InboxError, OptionError, SharespaceError, StoreConflictError
from sharespace.formats.hub import download_store
from sharespace.gather.inboxes import SUFFIX, Entry, inbox_error
from sharespace.store import Version, checkout, history, receive
from sharespace.store.directory import committed_versions, read_manifest
from sharespace.store.layout import HEAD
from sharespace.store.schema import head_from_json

_PREFIX = "hf://"
_PRECONDITION_FAILED = 412


class HubInbox:
    """``hf://user/repo/folder`` of a model repository; see ``Inbox``.

    With ``pull_request`` what is handed in becomes a pull request each; ``gather`` sees it when the
    repository's owner has merged that. A move is one commit: both names change, or none.
    """

    def __init__(self, url: str, *, pull_request: bool = False, api: HfApi | None = None) -> None:
        parts = url.removeprefix(_PREFIX).strip("/").split("/")
        if len(parts) < 3 or not all(parts):
            raise OptionError(f"inbox {url}", "not hf://USER/REPO/FOLDER", "Name all three")
        self.where = url
        self._repo, self._folder = "/".join(parts[:2]), "/".join(parts[2:])
        self._pull_request = pull_request
        self._api: Any = api or HfApi()

    def entries(self) -> list[Entry]:
        with _errors(self.where, "listing"):
            try:
                found = list(self._api.list_repo_tree(self._repo, self._folder))
            except EntryNotFoundError:
                return []
            named = [(x.path.rpartition("/")[2], x) for x in found if hasattr(x, "size")]
            shown = [Entry(n, x.size) for n, x in named if n.endswith(SUFFIX) and n[0] != "."]
            return sorted(shown, key=lambda entry: entry.name)

    def read(self, name: str) -> bytes | None:
        with _errors(self.where, "reading"):
            return self._bytes(name, None)

    def _bytes(self, name: str, revision: str | None) -> bytes | None:
        try:
            path = self._api.hf_hub_download(self._repo, self._at(name), revision=revision)
        except EntryNotFoundError:
            return None
        return Path(path).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        with _errors(self.where, "writing"):
            self._api.create_commit(
                self._repo,
                [CommitOperationAdd(self._at(name), data)],
                commit_message=f"Add {name[:40]}",
                create_pr=self._pull_request,
            )

    def move(self, name: str, to: str) -> bool:
        with _errors(self.where, "moving"):
            head = self._api.repo_info(self._repo).sha
            data = self._bytes(name, head)
            if data is None:
                return False
            self._api.create_commit(
                self._repo,
                [
                    CommitOperationAdd(self._at(to), data),
                    CommitOperationDelete(self._at(name)),
                ],
                commit_message=f"Move {name[:40]} to {to.partition('/')[0]}",
                parent_commit=head,
            )
            return True

    def _at(self, name: str) -> str:
        return f"{self._folder}/{name}"


def push(
    store: str | os.PathLike[str],
    repository: str,
    *,
    pull_request: bool = False,
    api: HfApi | None = None,
) -> str | None:
    """Bring a store's versions to a model repository, in one commit; files there stay.

    ``ShareConfig(share="user/repo")`` and ``formats.hub.download_store`` read it from there.

    Args:
        repository: ``user/repo``; it must exist.
        pull_request: propose it, instead of committing to the main branch.

    Returns:
        URL of the commit or pull request; None where the repository is up to date.

    Raises:
        StoreConflictError: the repository's current version is not one of this store's, or somebody
            committed meanwhile.
        InboxError: the Hub refused or did not answer.
    """
    root, hub = Path(store).absolute(), api or HfApi()
    with _errors(repository, "pushing"):
        parent = hub.repo_info(repository).sha
        there = set(hub.list_repo_files(repository, revision=parent))
        if HEAD in there:
            _check_ancestor(root, hub.hf_hub_download(repository, HEAD, revision=parent))
        # HEAD is read first: what it names is whole, whatever is committed meanwhile.
        head = (root / HEAD).read_bytes()
        files = [f for f in _files(root, head) if f not in there]
        if HEAD in there and not files:
            return None
        done = hub.create_commit(
            repository,
            [CommitOperationAdd(f, str(root / f)) for f in files]
            + [CommitOperationAdd(HEAD, head)],
            commit_message=f"Version {head_from_json(head, HEAD).number}",
            parent_commit=parent,
            create_pr=pull_request,
        )
        url: str | None = done.pr_url or done.commit_url
        return url


def pull(repository: str, store: str | os.PathLike[str]) -> Version | None:
    """Bring a store here to the version that a model repository has, or make it.

    Args:
        repository: ``user/repo`` or ``user/repo@revision``; or a directory with a copy.
        store: where; nothing of it is lost.

    Returns:
        The version that is current now; None where nothing new is there.

    Raises:
        StoreConflictError: there are versions here that the repository does not have, and the
            other way round.
        StoreExistsError: something else is at the path.
        AdapterError: the Hub does not give the repository.
        StoreNotFoundError, CorruptStoreError: it holds no store, or a damaged one.
    """
    return receive(store, download_store(repository))


def _files(root: Path, head: bytes) -> Sequence[str]:
    """Manifests and objects of the versions up to HEAD."""
    last = head_from_json(head, HEAD).number
    refs = [ref for ref in committed_versions(root).values() if ref.number <= last]
    objects = {f for ref in refs for f in read_manifest(root, ref).content.files}
    return [*sorted(objects), *(ref.file for ref in refs)]


def _check_ancestor(root: Path, downloaded: str) -> None:
    theirs = head_from_json(Path(downloaded).read_bytes(), HEAD)
    if all(v.ref != theirs for v in history(root)):
        here = checkout(root).version.number
        why = f"version {theirs.number} there is none of this store's (current: {here})"
        raise StoreConflictError(str(root), why, "Gather into a copy of what is there, then push")


@contextmanager
def _errors(where: str, doing: str) -> Iterator[None]:
    try:
        yield
    except SharespaceError:
        raise
    except HfHubHTTPError as error:
        response = getattr(error, "response", None)
        if getattr(response, "status_code", None) == _PRECONDITION_FAILED:
            why = f"{doing}: somebody else committed meanwhile"
            raise InboxError(where, why, "Run it again; nothing was lost") from error
        raise inbox_error(where, doing, error) from error
    except (HFValidationError, OSError) as error:
        raise inbox_error(where, doing, error) from error
