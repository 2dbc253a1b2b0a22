"""A Share model's store on the Hugging Face Hub: brought there (``push``) and back (``pull``).

Files come by commits. Each names the commit that it was made from (``parent_commit``), so that the
Hub refuses it where somebody else was faster.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from sharespace.errors import StoreConflictError
from sharespace.formats.hub import download_store
from sharespace.gather.inboxes import hub_errors
from sharespace.gather.model_card import CARD, MARK, model_card
from sharespace.store import Version, checkout, history, receive
from sharespace.store.directory import committed_versions, read_manifest
from sharespace.store.schema import HEAD, head_from_json


def push(
    store: str | os.PathLike[str],
    repository: str,
    *,
    pull_request: bool = False,
    private: bool = False,
    license_id: str | None = None,
    api: HfApi | None = None,
) -> str | None:
    """Bring a store's versions to a model repository, in one commit; files there stay.

    ``Share.from_pretrained("user/repo")`` and ``ShareConfig(share="user/repo")`` read it from
    there. A model card comes with it, which later pushes renew; a card of your own stays.

    Args:
        store: folder of the Share model.
        repository: ``user/repo``; made where it does not exist, unless for a pull request.
        pull_request: propose it, instead of committing to the main branch.
        private: a repository that is made is private; one that exists stays as it is.
        license_id: the licence that the card states, as the Hub names it (``apache-2.0``); None:
            the card states none.
        api: client of the Hub; None: one with the user's own token.

    Returns:
        URL of the commit or pull request; None where the repository is up to date.

    Raises:
        StoreConflictError: the repository's current version is not one of this store's, or somebody
            committed meanwhile.
        InboxError: the Hub refused or did not answer.
    """
    root, hub = Path(store).absolute(), api or HfApi()
    with hub_errors(repository, "pushing"):
        checkout(root)  # What is no store is told before a repository is made for it.
        parent = _revision(hub, repository, make=not pull_request, private=private)
        on_hub = set(hub.list_repo_files(repository, revision=parent))
        if HEAD in on_hub:
            _check_ancestor(root, hub.hf_hub_download(repository, HEAD, revision=parent))
        # HEAD is read first: what it names is whole, whatever is committed meanwhile.
        head = (root / HEAD).read_bytes()
        files = [f for f in _files(root, head) if f not in on_hub]
        if HEAD in on_hub and not files:
            return None
        commit = hub.create_commit(
            repository,
            [CommitOperationAdd(f, str(root / f)) for f in files]
            + [CommitOperationAdd(HEAD, head)]
            + _card(hub, repository, root, license_id, parent if CARD in on_hub else None),
            commit_message=f"Version {head_from_json(head, HEAD).number}",
            parent_commit=parent,
            create_pr=pull_request,
        )
        url: str | None = commit.pr_url or commit.commit_url
        return url


def _revision(hub: HfApi, repository: str, *, make: bool, private: bool) -> str | None:
    """Commit of a repository's main branch; one that is not there is made, if it may be."""
    try:
        return hub.repo_info(repository).sha
    except RepositoryNotFoundError:
        if not make:
            raise
    hub.create_repo(repository, private=private)
    return hub.repo_info(repository).sha


def _card(
    hub: HfApi, repository: str, root: Path, license_id: str | None, revision: str | None
) -> list[CommitOperationAdd]:
    """The model card, unless somebody wrote one of their own; ``revision`` is None without any."""
    if revision is not None:
        there = Path(hub.hf_hub_download(repository, CARD, revision=revision))
        if MARK not in there.read_text(encoding="utf-8", errors="replace"):
            return []
    return [CommitOperationAdd(CARD, model_card(root, repository, license_id).encode())]


def pull(repository: str, store: str | os.PathLike[str]) -> Version | None:
    """Bring a local store to the version that a model repository has, or make one.

    Args:
        repository: ``user/repo`` or ``user/repo@revision``; or a directory with a copy.
        store: folder of the local store; no version of it is lost.

    Returns:
        The version that is current now; None where nothing new is there.

    Raises:
        StoreConflictError: the store has versions that the repository does not have, and the
            repository has versions that the store does not have.
        StoreExistsError: something else is at the path.
        AdapterError: the Hub does not give the repository.
        StoreNotFoundError: the repository holds no store.
        CorruptStoreError: its store is damaged.
    """
    return receive(store, download_store(repository))


def _files(root: Path, head: bytes) -> Sequence[str]:
    """Manifests and objects of the versions up to HEAD."""
    last = head_from_json(head, HEAD).number
    refs = [ref for ref in committed_versions(root).values() if ref.number <= last]
    objects = {f for ref in refs for f in read_manifest(root, ref).content.files}
    return [*sorted(objects), *(ref.file for ref in refs)]


def _check_ancestor(root: Path, downloaded: str) -> None:
    """Refuse a repository whose current version is not one of this store's."""
    on_hub = head_from_json(Path(downloaded).read_bytes(), HEAD)
    if all(v.ref != on_hub for v in history(root)):
        current = checkout(root).version.number
        why = f"version {on_hub.number} there is none of this store's (current: {current})"
        raise StoreConflictError(str(root), why, "Gather into a copy of what is there, then push")
