"""The experiment text-to-image from data to tables and figures, in its tiny version."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shared_data import SHARED

ROOT = Path(__file__).resolve().parents[2]
IMAGES = SHARED / "data" / "images"
METHODS = ("head_only", "per_task_lora", "share_strict", "mean_adapter")
IN_TURN = """
import importlib, json, sys
for name, *arguments in json.loads(sys.argv[1]):
    sys.argv = [name, *arguments]
    importlib.import_module(f"experiments.text_to_image.{name}").main()
"""
"""Scripts in one process: importing the libraries takes as long as the tiny runs."""

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("diffusers") is None,
        reason="diffusers is not installed: pip install 'sharespace[diffusers]'",
    )
]
with_digits = pytest.mark.skipif(not IMAGES.is_dir(), reason="the image sets are not here")


def scripts(*calls: tuple[str | Path, ...]) -> str:
    text = json.dumps([[str(part) for part in call] for call in calls])
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, text],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@with_digits
def test_from_data_to_tables_and_figures(tmp_path: Path) -> None:
    cache, out, figures = tmp_path / "cache", tmp_path / "results", tmp_path / "figures"
    common = ("--data", IMAGES, "--cache", cache, "--out", out, "--quick", "--seeds", "0")
    run = ("run", *common, "--methods", *METHODS)
    said = scripts(
        run,
        run,  # finds everything there
        ("adapters_stream", *common, "--k", "4"),
        ("compare", *common),
        ("tune", *common[:-2], "--styles", "framed", "--own", "--core", "4", "2", "1e-2", "2"),
        ("summarise", "--results", out, "--figures", figures),
    )
    assert said.count("share_strict") == 1
    check_runs(json.loads((out / "runs" / "styles-0.json").read_text()))
    check_images(json.loads((out / "compare" / "0.json").read_text()))
    assert len(json.loads((out / "claims.json").read_text())["claims"]) == 6
    tried = json.loads((out / "tune.json").read_text())["styles"]["framed"]
    assert tried["core p=4 phi=2 rate=0.01 steps=2"]["trained"] == 48 * 4 * 4
    text = (out / "tables.md").read_text()
    assert all(f"| {name} |" in text for name in METHODS)
    assert "| Share, at the end |" in text
    assert len(list(figures.glob("text-to-image-*.png"))) == 3


def check_runs(results: Any) -> None:
    assert set(results["methods"]) == set(METHODS)
    trained = {name: results["methods"][name]["trainable"] for name in METHODS[1:3]}
    assert trained["share_strict"]["rotated"] < trained["per_task_lora"]["rotated"] / 2
    rows = results["methods"]["share_strict"]["matrix"]["scores"]
    assert [sum(s is not None for s in row) for row in rows] == [3, 4, 5, 6, 7]


def check_images(found: Any) -> None:
    """Nothing is lost below the cap, so images stay; other noise gives others."""
    for style in ("outlined", "framed"):
        pairs = found["distances"][style]
        assert pairs["end to when learned"]["pixels"] < 1e-4
        assert pairs["own, other noise"]["pixels"] > 1e-3
    assert found["distances"]["outlined"]["Share, at the end"]["pixels"] < 1e-4


@with_digits
def test_styles_differ_from_each_other_and_stay_in_range() -> None:
    from experiments.text_to_image.digits import read
    from experiments.text_to_image.styles import STYLES, styled

    digits = read(IMAGES, "test").first(50)
    assert digits.images.shape == (50, 1, 24, 24)
    found = {name: styled(name, digits.images) for name in STYLES}
    for name, images in found.items():
        assert images.shape == digits.images.shape
        assert images.abs().max() <= 1
        for other, theirs in found.items():
            assert name == other or (images - theirs).square().mean() > 0.01


def test_an_outline_is_the_border_of_a_stroke() -> None:
    from experiments.text_to_image.styles import styled

    image = torch.full((1, 1, 9, 9), -1.0)
    image[..., 3:6, 3:6] = 1.0
    found = styled("outlined", image)[0, 0]
    assert found[4, 4] == -1
    assert found[2, 2] == found[6, 4] == 1
    assert found[0, 0] == -1


def test_blocks_and_back_is_the_same_image() -> None:
    from experiments.text_to_image.model import BlockCodec

    codec = BlockCodec()
    images = torch.randn(2, 1, 24, 24)
    latents = codec.encode(images)
    assert latents.shape == (2, 4, 12, 12)
    assert torch.equal(codec.decode(latents)[0], images)


def test_the_tokenizer_knows_every_caption_s_words() -> None:
    from experiments.text_to_image.digits import CAPTIONS, NAMES
    from experiments.text_to_image.model import tokenizer

    words = tokenizer()
    for caption in CAPTIONS:
        for name in NAMES:
            text = caption.format(name)
            assert words.decode(words(text).input_ids, skip_special_tokens=True).strip() == text
            assert len(words(text).input_ids) == len(text.split()) + 2


def test_a_verdict_counts_what_both_classifiers_accept() -> None:
    from experiments.text_to_image.judges import Judge, verdict
    from experiments.text_to_image.styles import STYLES

    class Fixed(Judge):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            digits = torch.eye(10)[torch.tensor([0, 1, 5, 3])]
            styles = torch.eye(len(STYLES))[torch.tensor([1, 1, 1, 2])]
            assert len(images) == 4
            return digits, styles

    style = list(STYLES)[1]
    found = verdict(Fixed(), torch.zeros(4, 1, 24, 24), torch.arange(4), style)
    assert (found.prompt, found.style, found.both) == (75, 75, 50)
