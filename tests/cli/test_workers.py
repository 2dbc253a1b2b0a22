"""``--workers``: the same store from a cluster's processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.conftest import Ran

distributed = pytest.importorskip("distributed")

Run = Callable[..., Ran]


@pytest.fixture
def address() -> Iterator[str]:
    """A scheduler with one worker, in this process."""
    with distributed.LocalCluster(
        n_workers=1, processes=False, threads_per_worker=1, protocol="tcp", dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


def objects(store: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in store.rglob("*.safetensors")}


def test_init_and_add_on_a_cluster_store_the_same(
    run: Run, adapters: Path, tmp_path: Path, address: str
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for out, more in ((here, ()), (there, ("--workers", address))):
        assert run("init", out, adapters / "sst2", adapters / "rte", "--k", 2, *more).code == 0
        assert run("merge", out, adapters / "mrpc", *more).code == 0
    assert objects(here)
    assert objects(there) == objects(here)


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ("many", "neither a number nor the address"),
        ("0", "at least one"),
        ("-2", "at least one"),
        ("nowhere://1", "cannot be reached"),
    ],
)
def test_workers_that_are_none(
    run: Run, adapters: Path, tmp_path: Path, workers: str, said: str
) -> None:
    found = run("init", tmp_path / "s", adapters / "sst2", "--workers", workers)
    assert found.code == 2
    assert said in found.err
    assert found.err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_an_adapter_that_cannot_be_read_is_the_same_error(
    run: Run, adapters: Path, tmp_path: Path, address: str
) -> None:
    weights = adapters / "rte" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # the last number is now not a number
    weights.write_bytes(data)
    here = run("init", tmp_path / "s", adapters / "rte")
    there = run("init", tmp_path / "s", adapters / "rte", "--workers", address)
    assert (there.code, there.err) == (here.code, here.err)
    assert here.code in (0, 2)
