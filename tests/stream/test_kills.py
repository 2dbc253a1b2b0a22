"""A stream that is killed, wherever that is, ends where an undisturbed one does."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sharespace.errors import StoreLockedError
from sharespace.files import TEMPORARY, lock
from sharespace.store import history, verify
from sharespace.stream import Event, StreamResult, run
from store.steps import run_and_kill
from stream import world

Undisturbed = tuple[Path, StreamResult, tuple[str, ...]]


class Killed(BaseException):
    """Not an Exception, so that nothing handles it."""


def assert_same(share: Path, found: StreamResult, expected: Undisturbed) -> None:
    """Bit-identical model (files are named by their content), equal scores and counts."""
    path, result, _ = expected
    current = [p.name for p in (path / "objects").iterdir()]
    assert sorted(current) == sorted(p.name for p in (share / "objects").iterdir())
    assert [s.content for s in found.steps] == [s.content for s in result.steps]
    assert [s.scores for s in found.steps] == [s.scores for s in result.steps]
    assert found.measures == result.measures
    assert found.version == result.version == len(history(share))
    assert verify(share, all_versions=True).ok
    assert found.router is not None
    assert result.router is not None
    assert found.router.to_record() == result.router.to_record()
    kept, other_kept = (p.with_name(f"{p.name}.run") / "features" for p in (share, path))
    assert {p.name for p in kept.iterdir()} == {p.name for p in other_kept.iterdir()}
    for one, other in zip(found.learned, result.learned, strict=True):
        left_out = {"seconds": 0.0}
        assert {**vars(one), **left_out} == {**vars(other), **left_out}


WRITTEN = ("kept", "recorded", "committed", "routed")
"""After these something is on disk that was not there before: killed at each task's. After the
others a kill leaves what the one before left: killed at the first of each."""


def test_killed_once_after_everything_that_happens(folder: Path, undisturbed: Undisturbed) -> None:
    recipe = world.recipe(folder, router=True)
    survived: set[str] = set()
    committed: list[str] = []
    kept: list[str] = []

    def observe(event: Event) -> None:
        name = f"{event.stage} {event.task}" if event.stage in WRITTEN else event.stage
        if event.stage == "learning":
            assert event.task not in committed, "learned twice"
            assert event.task not in kept, "its LoRA was finished"
        if event.stage == "committed":
            committed.append(event.task)
        if event.stage == "kept":
            kept.append(event.task)
        if name not in survived:
            survived.add(name)
            raise Killed

    found = None
    while found is None:
        try:
            found = run(recipe, observe=observe)
        except Killed:
            continue
    every = [(name, name.split()[0]) for name in undisturbed[2]]
    assert survived >= {name if stage in WRITTEN else stage for name, stage in every}
    assert committed == ["colour", "legal", "size", "mood"]
    assert_same(folder / "out.share", found, undisturbed)


def test_sigkill_at_any_step_of_a_write(folder: Path, undisturbed: Undisturbed) -> None:
    recipe = world.recipe(folder, router=True)
    draw = random.Random(int(os.environ.get("SHARESPACE_TEST_SEED", "0")))
    for _ in range(5):
        if run_and_kill(lambda: run(recipe), draw.randrange(1, 70)):
            break
    assert_same(folder / "out.share", run(recipe), undisturbed)


def test_kills_while_a_lora_is_saved_leave_no_half_of_it(
    folder: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sharespace.stream.learning as lora

    def kill(_: Path) -> object:
        raise Killed

    recipe = world.recipe(folder, router=True)
    with monkeypatch.context() as patch:
        patch.setattr(lora, "new_directory", kill)
        with pytest.raises(Killed):
            run(recipe)
    stale = folder / "out.share.run" / "initial" / f"{TEMPORARY}0123"
    stale.mkdir()
    (stale / "adapter_config.json").write_text("{")
    found = run(recipe)
    assert not stale.exists()
    assert_same(folder / "out.share", found, undisturbed)


def test_a_record_that_a_kill_left_half_written_is_not_read(folder: Path) -> None:
    recipe = world.recipe(folder, world.LEGAL)
    first = run(recipe)
    steps = folder / "out.share.run" / "steps"
    for text in ((steps / "0001.json").read_text(), "{"):
        (steps / ".tmp-0001.json").write_text(text)
        assert run(recipe).steps == first.steps


def test_a_second_run_at_the_same_time_is_refused(
    folder: Path, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    recipe = world.recipe(folder, world.LEGAL)
    place = folder / "out.share.run"
    place.mkdir()
    with lock(place / "lock"), pytest.raises(StoreLockedError, match="another writer"):
        run(recipe)
    assert not (folder / "out.share").exists()
    assert not snapshot(place)
