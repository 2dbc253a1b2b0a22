"""submit and gather, end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import Ran, make_adapter
from gather.fake_hub import REPO, FakeHub

Run = Callable[..., Ran]


@pytest.fixture
def share(run: Run, adapters: Path, tmp_path: Path) -> Path:
    """A Share model of sst2, no cap."""
    out = tmp_path / "model.share"
    assert run("init", out, adapters / "sst2", "--variance", 1).code == 0
    return out


def test_hand_in_and_gather(run: Run, share: Path, adapters: Path, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    said = run("submit", adapters / "rte", inbox)
    assert said.code == 0
    assert said.out.startswith("Handed in rte as plain factors (")
    sent = run("submit", adapters / "mrpc", inbox, "--task", "paraphrase", "--json").json
    assert (sent["task"], sent["version"]) == ("paraphrase", None)
    found = run("gather", share, inbox, "--json").json
    assert found["version"] == 2
    assert found["merged"]["paraphrase"] == sent["id"]
    assert (set(found["merged"]), found["quarantined"], found["repeated"]) == (
        {"rte", "paraphrase"},
        [],
        [],
    )
    measured = run("fidelity", share, "--against", adapters / "rte", "--json").json
    assert measured["tasks"]["rte"]["relative_error"] < 1e-5
    assert run("verify", share, "--all").code == 0
    assert "nothing to gather" in run("gather", share, inbox).out
    verbs = [v["verb"] for v in run("history", share, "--json").json["versions"]]
    assert verbs == ["init", "gather"]


def test_a_bad_one_is_named_and_does_not_fail_the_command(
    run: Run, share: Path, adapters: Path, tmp_path: Path
) -> None:
    inbox = tmp_path / "inbox"
    make_adapter(tmp_path / "other", 5, base="another/base")
    for path in (tmp_path / "other", adapters / "rte"):
        run("submit", path, inbox)
    said = run("gather", share, inbox)
    assert said.code == 0
    assert "Version 2: merged 1 task (rte), quarantined 1." in said.out
    assert "another/base" in said.err
    (reason,) = (inbox / "quarantine").glob("*.json")
    assert json.loads(reason.read_bytes())["task"] == "other"


@pytest.mark.parametrize(("policy", "tasks"), [("refuse", 1), ("rename", 2), ("replace", 1)])
def test_names_that_are_taken(
    run: Run, share: Path, adapters: Path, tmp_path: Path, policy: str, tasks: int
) -> None:
    run("submit", adapters / "rte", tmp_path / "inbox", "--task", "sst2")
    found = run("gather", share, tmp_path / "inbox", "--on-conflict", policy, "--json").json
    assert len(found["quarantined"]) == (policy == "refuse")
    assert len(run("info", share, "--json").json["tasks"]) == tasks


def test_bad_input(run: Run, share: Path, adapters: Path, tmp_path: Path) -> None:
    for arguments in (
        ("submit", tmp_path / "nothing", tmp_path / "inbox"),
        ("submit", adapters / "rte", tmp_path / "inbox", "--task", "../x"),
        ("gather", share, tmp_path / "inbox"),
        ("gather", tmp_path / "nothing", tmp_path),
        ("gather", share, tmp_path, "--batch", 0),
        ("gather", share, tmp_path, "--watch", "--interval", 0),
        ("gather", share, share),
    ):
        said = run(*arguments)
        assert said.code == 2, arguments
        assert said.err.startswith("sharespace: "), said.err
        assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "inbox").exists()


def test_push_brings_new_versions_once(
    run: Run, share: Path, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    hub = FakeHub(tmp_path / "cache")
    monkeypatch.setattr("sharespace.gather.hub_store.HfApi", lambda: hub)
    assert run("push", share, REPO).out == f"Pushed to {REPO}: commit\n"
    assert run("push", share, REPO).out == f"{REPO} is up to date.\n"
    assert run("push", share, REPO, "--json").json == {"repository": REPO, "url": None}
    run("merge", share, adapters / "rte")
    found = run("push", share, REPO, "--pull-request", "--json").json
    assert found == {"repository": REPO, "url": "request"}
    assert run("push", share, REPO).code == 0
    hub.download(tmp_path / "copy")
    assert run("verify", tmp_path / "copy", "--all").code == 0
    assert run("info", tmp_path / "copy", "--json").json["version"] == 2


def test_push_of_another_store_is_refused(
    run: Run, share: Path, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    hub = FakeHub(tmp_path / "cache")
    monkeypatch.setattr("sharespace.gather.hub_store.HfApi", lambda: hub)
    run("push", share, REPO)
    before = dict(hub.commits[-1])
    run("init", tmp_path / "other", adapters / "mrpc")
    said = run("push", tmp_path / "other", REPO)
    assert said.code == 2
    assert "none of this store's" in said.err
    assert hub.commits[-1] == before


def test_pull_makes_a_copy_and_brings_it_forwards(
    run: Run, share: Path, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From what the Hub holds, downloaded by the stand-in as ``snapshot_download`` does."""
    (tmp_path / "cache").mkdir()
    hub = FakeHub(tmp_path / "cache")

    def snapshot(source: str) -> Path:
        assert source == REPO
        hub.download(tmp_path / "snapshot")
        return tmp_path / "snapshot"

    monkeypatch.setattr("sharespace.gather.hub_store.HfApi", lambda: hub)
    monkeypatch.setattr("sharespace.gather.hub_store.download_store", snapshot)
    run("push", share, REPO)
    copy = tmp_path / "copy.share"
    assert run("pull", REPO, copy).out == f"{copy} is at version 1 now: 1 task.\n"
    assert run("pull", REPO, copy).out == f"{copy} is up to date.\n"
    run("merge", share, adapters / "rte")
    run("push", share, REPO)
    assert run("pull", REPO, copy, "--json").json == {"version": 2}
    assert run("pull", REPO, copy, "--json").json == {"version": None}
    assert run("verify", copy, "--all").code == 0
    run("merge", copy, adapters / "mrpc")
    run("remove", share, "rte")
    run("push", share, REPO)
    said = run("pull", REPO, copy)
    assert said.code == 2
    assert "do not follow from each other" in said.err
    assert run("info", copy, "--json").json["version"] == 3
