"""The Hub as an inbox and as the home of a store, against a stand-in for ``HfApi``.

The stand-in keeps commits as the Hub does (all or nothing, refused where the parent has moved);
nothing here talks to the Hub itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from gather.fake_hub import REPO, FakeHub
from gather.workers import grow, plain, start
from sharespace import Share
from sharespace.errors import InboxError, OptionError, StoreConflictError, StoreNotFoundError
from sharespace.gather import Gatherer, encode, open_inbox, push
from sharespace.gather.inboxes import HubInbox
from sharespace.gather.model_card import model_card
from sharespace.store import checkout, load, verify


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


def card_of(hub: Any) -> ModelCard:
    """Read and checked by the Hub's own library."""
    card = ModelCard(hub.commits[-1]["README.md"].decode())
    assert card.content.startswith("---")
    return card


def test_a_repository_is_made_with_a_card(store: Path, hub: Any) -> None:
    hub.exists = False
    with pytest.raises(InboxError):
        push(store, REPO, api=hub, pull_request=True)
    assert not hub.exists
    assert push(store, REPO, api=hub, private=True, license_id="apache-2.0") == "commit"
    assert hub.exists
    assert hub.private
    card = card_of(hub)
    data = yaml.safe_load(card.content.split("---")[1])
    assert data["library_name"] == "sharespace"
    assert data["license"] == "apache-2.0"
    assert {"sharespace", "lora"} <= set(data["tags"])
    base = checkout(store).manifest.content.base.id
    assert (data.get("base_model"), data.get("base_model_relation")) == (base, "adapter")
    for wanted in (f'Share.from_pretrained("{REPO}")', "| <code>first</code> |", "adapters took"):
        assert wanted in card.text


def test_a_card_is_renewed_and_one_of_somebody_elses_stays(store: Path, hub: Any) -> None:
    push(store, REPO, api=hub)
    grow(store, "more", 5)
    push(store, REPO, api=hub)
    assert "<code>more</code>" in card_of(hub).text
    hub.commits.append({**hub.commits[-1], "README.md": b"# Mine"})
    grow(store, "third", 6)
    assert push(store, REPO, api=hub) == "commit"
    assert hub.commits[-1]["README.md"] == b"# Mine"


def test_names_in_a_card_are_shown_and_do_nothing(store: Path) -> None:
    share = Share.load(store).rename("first", "a|b`*_[x](y)<b>")
    share.save()
    text = model_card(store, REPO)
    row = next(line for line in text.splitlines() if line.startswith("| <code>"))
    assert row.count("|") == 4
    assert not set("`*_[]") & set(row)
    assert "<b>" not in row


def test_what_is_no_store_makes_no_repository(tmp_path: Path, hub: Any) -> None:
    hub.exists = False
    with pytest.raises(StoreNotFoundError):
        push(tmp_path / "nothing", REPO, api=hub)
    assert not hub.exists


def test_a_pushed_model_is_opened_from_the_hub(
    tmp_path: Path, store: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(store, REPO, api=hub)
    hub.download(tmp_path / "snapshot")
    monkeypatch.setattr(
        "sharespace.formats.hub.snapshot_download", lambda *_, **__: str(tmp_path / "snapshot")
    )
    assert Share.from_pretrained(REPO).tasks == ("first",)
    assert Share.from_pretrained(str(store)).tasks == ("first",)


def test_names_of_places() -> None:
    with pytest.raises(OptionError, match="USER/REPO/FOLDER"):
        open_inbox("hf://user/repo")
    with pytest.raises(OptionError, match="only the Hub"):
        open_inbox("s3://bucket/inbox", pull_request=True)
    assert isinstance(open_inbox("hf://user/repo/inbox"), HubInbox)
