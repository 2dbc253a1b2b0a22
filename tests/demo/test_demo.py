"""The demo in its quick version: complete, honest, silent, off-line and repeatable."""

from __future__ import annotations

import json
import logging
import random
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from sharespace import Share, read_adapter
from sharespace.demo import DemoResult, run
from sharespace.demo.main import tables
from sharespace.errors import MissingExtraError, OptionError
from sharespace.subspace.fidelity import sizes


@dataclass(frozen=True)
class Run:
    """One quick run and what it left in the process."""

    out: Path
    result: DemoResult
    lines: list[str]
    connections: list[object]
    before: tuple[object, ...]
    after: tuple[object, ...]


def process_state() -> tuple[object, ...]:
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),
        torch.get_num_threads(),
        logging.root.manager.disable,
        list(warnings.filters),
    )


@pytest.fixture(scope="module")
def monkey() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, monkey: pytest.MonkeyPatch) -> Run:
    connections: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        connections.append(address)
        raise OSError("no network in this test")

    monkey.setattr(socket.socket, "connect", refuse)
    monkey.setattr(socket, "getaddrinfo", refuse)
    monkey.delenv("HF_HUB_OFFLINE", raising=False)
    out, lines = tmp_path_factory.mktemp("demo") / "out", list[str]()
    before = process_state()
    result = run(out, seed=3, quick=True, log=lines.append)
    return Run(out, result, lines, connections, before, process_state())


def test_the_matrix_is_complete(quick: Run) -> None:
    matrix = quick.result.matrix
    assert [step.name for step in quick.result.steps] == ["2 adapters", "+ shifted"]
    assert [[s is None for s in row] for row in matrix] == [[False, False, True], [False] * 3]
    assert all(0 <= s <= 100 for row in matrix for s in row if s is not None)


def test_results_are_written_as_measured(quick: Run) -> None:
    stored = json.loads((quick.out / "results.json").read_text(encoding="utf-8"))
    result = quick.result
    assert stored["seed"] == 3
    assert stored["quick"] is True
    assert [task["own_lora"] for task in stored["tasks"]] == [t.own_lora for t in result.tasks]
    assert [step["scores"] for step in stored["steps"]] == result.matrix
    assert {"python", "torch", "peft", "transformers", "processor", "cores"} <= set(
        stored["environment"]
    )
    assert str(quick.out.parent) not in json.dumps(stored)
    assert (quick.out / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_the_stored_share_model_is_the_measured_one(quick: Run) -> None:
    share = Share.load(quick.out / "share")
    assert share.tasks == tuple(task.name for task in quick.result.tasks)
    assert sizes(share.model).total == quick.result.bytes.total
    assert share.model.base.id == "out/base"


def test_exported_tasks_give_the_same_logits_in_peft(quick: Run) -> None:
    assert quick.result.export_difference < 1e-4
    for task in quick.result.tasks:
        exported = read_adapter(quick.out / "exported" / task.name)
        assert {"base_model.model.classifier.weight", "base_model.model.classifier.bias"} == set(
            exported.kept
        )


def test_only_tasks_learned_from_data_were_trained_in_the_subspace(quick: Run) -> None:
    learned = [task.learned_trainable for task in quick.result.tasks]
    assert learned[:2] == [None, None]
    assert learned[2] is not None
    assert 0 < learned[2] < quick.result.tasks[2].own_lora_trainable


def test_sizes_are_measured_for_every_number_of_tasks_and_then_extrapolated(quick: Run) -> None:
    points, used = quick.result.sizes, quick.result.bytes
    assert [(p.tasks, p.measured) for p in points] == [(1, True), (2, True), (3, True), (30, False)]
    assert (points[2].adapters, points[2].share) == (used.own_adapters, used.total)


def test_no_connection_is_tried(quick: Run) -> None:
    assert quick.connections == []


def test_nothing_is_left_behind_in_the_process(quick: Run) -> None:
    assert quick.after == quick.before


def test_every_part_is_logged_with_the_time(quick: Run) -> None:
    assert len(quick.lines) == 1 + 3 + 1 + 1 + 1 + 1
    assert all(" s  " in line for line in quick.lines)


def test_the_tables_fit_a_terminal_of_80_columns(quick: Run) -> None:
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        console.print(tables(quick.result))
    text = captured.get()
    assert "…" not in text
    for task in quick.result.tasks:
        assert task.name in text
        assert f"{task.own_lora:.1f}" in text
    assert f"{quick.result.bytes.basis:,}" in text


def test_running_again_replaces_it_prints_nothing_and_gives_the_same(
    quick: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    note = quick.out / "my-notes.txt"
    note.write_text("keep me", encoding="utf-8")
    again = run(quick.out, seed=3, quick=True)
    assert again.matrix == quick.result.matrix
    assert again.tasks == quick.result.tasks
    assert note.read_text(encoding="utf-8") == "keep me"
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OptionError, match="not an earlier demo"):
        run(tmp_path, quick=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_missing_extra_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sharespace\[report\]'"):
        run(tmp_path / "out", quick=True)
    assert not list(tmp_path.iterdir())
