"""A real cluster of three processes; and schedulers that lose theirs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import update
from sharespace import Share, read_adapter
from sharespace.errors import ClusterError, CorruptAdapterError, OptionError
from sharespace.formats import PlainLora, write_adapter
from sharespace.store import verify
from sharespace.subspace.executor import Dask, Executor, dumps, loads, run, versions
from subspace.held import Held, divide, end_this_process, refuse

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def three() -> Iterator[Dask]:
    """Three processes, for all tests of this file."""
    with Dask(3) as found:
        yield found


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Four adapters of six layers each, on disk."""
    for i in range(4):
        updates = {f"layer.{m}": update(40, 32, 3, 10 * m + i) for m in range(6)}
        write_adapter(tmp_path / f"t{i}", PlainLora(updates))
    return [tmp_path / f"t{i}" for i in range(4)]


def objects(store: Path) -> dict[str, bytes]:
    """All that is stored, but for the time of the commit."""
    found = {p.name: p.read_bytes() for p in store.rglob("*.safetensors")}
    assert found
    return found


def stored(path: Path, folders: list[Path], executor: Executor | None, **rule: Any) -> Any:
    """The bytes after a build of two adapters and a merge of two."""
    more: dict[str, Any] = {} if executor is None else {"executor": executor}
    share = Share.from_adapters(folders[:2], **rule, **more)
    share.save(path)
    share.merge(folders[2:], **more).save(path)
    assert verify(path, all_versions=True).ok
    return objects(path)


@pytest.mark.parametrize("rule", [{"variance": 0.9}, {"k": 2, "p": 1}, {"budget": 10_000}], ids=str)
def test_the_same_bytes_as_here(
    three: Dask, folders: list[Path], tmp_path: Path, rule: dict[str, Any]
) -> None:
    there = stored(tmp_path / "there", folders, three, **rule)
    assert there == stored(tmp_path / "here", folders, None, **rule)


def test_a_killed_worker_changes_nothing(three: Dask, folders: list[Path], tmp_path: Path) -> None:
    """It is killed while each of the three computes a layer."""
    (tmp_path / "signs").mkdir()
    held = Held(three, tmp_path / "signs")
    killed = []

    def kill() -> None:
        killed.append(held.begun(3)[0])
        os.kill(killed[0], signal.SIGKILL)
        held.release()

    killer = threading.Thread(target=kill)
    killer.start()
    there = stored(tmp_path / "there", folders, held, variance=0.9)
    killer.join()
    assert there == stored(tmp_path / "here", folders, None, variance=0.9)
    assert killed


def test_results_come_in_order_and_few_items_are_in_flight(three: Dask) -> None:
    drawn = []

    def items() -> Iterator[int]:
        for i in range(50):
            drawn.append(i)
            yield i

    results = three.map(refuse, (i + 10 for i in items()))
    for i in range(10):
        assert next(results) == i + 10
        assert len(drawn) <= i + 8
    results.close()  # type: ignore[attr-defined]


def test_an_error_of_ours_is_the_same_error(three: Dask, folders: list[Path]) -> None:
    with pytest.raises(OptionError, match="item 3: it is refused"):
        list(three.map(refuse, range(10)))
    opened = [read_adapter(folder) for folder in folders]
    (folders[3] / "adapter_model.safetensors").unlink()
    with pytest.raises(CorruptAdapterError, match="No such file"):
        Share.from_adapters(opened, executor=three)


def test_an_error_of_python_is_raised_as_it_is(three: Dask) -> None:
    with pytest.raises(ZeroDivisionError):
        list(three.map(divide, [1, 0]))
    assert list(three.map(divide, [1, 2])) == [1, 0.5]


def test_work_that_kills_its_workers_is_given_up(three: Dask) -> None:
    scheduler = three._cluster.scheduler  # type: ignore[union-attr]
    before, scheduler.allowed_failures = scheduler.allowed_failures, 0
    try:
        with pytest.raises(ClusterError, match="died on it"):
            list(three.map(end_this_process, [1]))
    finally:
        scheduler.allowed_failures = before


def test_no_worker_for_too_long() -> None:
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        Dask(cluster.scheduler_address, patience=0.5) as executor,
        pytest.raises(ClusterError, match="has had no worker"),
    ):
        list(executor.map(refuse, [1]))


def test_no_scheduler() -> None:
    with pytest.raises(ClusterError, match="cannot be reached"):
        Dask("tcp://127.0.0.1:1", patience=0.5)


def test_an_address_that_is_none() -> None:
    with pytest.raises(ClusterError, match="cannot be reached"):
        Dask("smoke://signals", patience=0.5)


def test_fewer_than_one_process() -> None:
    with pytest.raises(OptionError, match="at least one"):
        Dask(0)


def test_a_worker_with_other_versions_refuses() -> None:
    error = loads(run(("0.0.1", "1.13"), 1, dumps((refuse, 1))))
    assert isinstance(error, ClusterError)
    assert "not 0.0.1 and torch 1.13" in str(error)
    assert loads(run(versions(), 1, dumps((refuse, 1)))) == 1
