"""Scores of a stream beside the store: shown where they belong to the version, and only there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from report.parsing import Page
from report.samples import two_steps
from sharespace.errors import CorruptStoreError
from sharespace.report import read_facts, render
from sharespace.store import checkout, remove
from sharespace.stream.records import Learned, Step, content_digest


def streamed(folder: Path, **changed: Any) -> Path:
    """A store of two steps with the records that ``sharespace run`` writes."""
    path = two_steps(folder / "glue.share")
    first, second = (content_digest(checkout(path, n).manifest.content) for n in (1, 2))
    learned = [
        tuple(Learned(t, "adapter") for t in ts) for ts in (("sst2", "rte", "mrpc"), ("cola",))
    ]
    steps = [
        Step(1, learned[0], first, None, {"sst2": 90.0, "rte": 70.0, "mrpc": -1.5}, {}),
        Step(
            2,
            learned[1],
            second,
            first,
            {"sst2": 80.0, "rte": 75.0, "mrpc": -1.5, "cola": 50.0},
            {},
        ),
    ]
    steps[1] = replace(steps[1], **changed)
    run = path.with_name("glue.share.run")
    (run / "steps").mkdir(parents=True)
    for step in steps:
        (run / "steps" / f"{step.number:04d}.json").write_text(json.dumps(step.to_record()))
    tasks = [{"name": n, "metric": "accuracy"} for n in ("sst2", "rte", "mrpc", "cola")]
    record = {"format": "sharespace.stream", "version": 1, "recipe": {}, "tasks": tasks}
    (run / "stream.json").write_text(json.dumps(record))
    return path


def test_the_matrix_and_its_measures(tmp_path: Path) -> None:
    found = read_facts(streamed(tmp_path))
    assert found.scores is not None
    assert found.scores.matrix.scores == ((90.0, 70.0, -1.5, None), (80.0, 75.0, -1.5, 50.0))
    assert found.scores.matrix.learned == (0, 0, 0, 1)
    page = Page(render(found))
    assert "scores" in page.ids
    # accuracy (80 + 75 - 1.5 + 50) / 4; forgetting (10 - 5 + 0) / 3
    for figure in ("50.88", "1.67", "-1.67"):
        assert figure in page.text
    colours = [a.get("class") for tag, a in page.elements if tag == "td" and a.get("class")]
    assert "d0" in colours
    assert "d7" in colours


def test_an_earlier_version_has_its_steps_only(tmp_path: Path) -> None:
    found = read_facts(streamed(tmp_path), 1)
    assert found.scores is not None
    assert found.scores.matrix.steps == ("sst2+rte+mrpc",)
    assert found.scores.matrix.tasks == ("sst2", "rte", "mrpc")


def test_a_version_that_no_stream_made_has_none(tmp_path: Path) -> None:
    path = streamed(tmp_path)
    remove(path, ["cola"])
    assert read_facts(path).scores is None


def test_missing_scores_are_said(tmp_path: Path) -> None:
    scores = {"sst2": None, "rte": 75.0, "mrpc": -1.5, "cola": 50.0}
    found = read_facts(streamed(tmp_path, scores=scores, notices=("the data of 'sst2' was gone",)))
    text = Page(render(found)).text
    assert "the data of 'sst2' was gone" in text
    assert "not known: a score is missing" in text


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("stream.json", "[]"),
        ("stream.json", '{"format": "other", "tasks": []}'),
        ("stream.json", "{"),
        ("steps/0002.json", "{}"),
        ("steps/0002.json", '{"number": '),
    ],
)
def test_damaged_records_are_one_clear_error(tmp_path: Path, file: str, text: str) -> None:
    path = streamed(tmp_path)
    (path.with_name("glue.share.run") / file).write_text(text)
    with pytest.raises(CorruptStoreError, match=Path(file).name):
        read_facts(path)


def test_scores_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = streamed(tmp_path, learned=())
    first = path.with_name("glue.share.run") / "steps" / "0001.json"
    step = json.loads(first.read_text())
    first.write_text(json.dumps({**step, "scores": {**step["scores"], "cola": "high"}}))
    with pytest.raises(CorruptStoreError):
        read_facts(path)
