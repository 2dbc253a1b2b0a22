"""The experiment text-to-image from data to tables and figures, in its tiny version."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments_calls import call
from shared_data import SHARED

IMAGES = SHARED / "data" / "images"
METHODS = ("head_only", "per_task_lora", "share_strict")

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("diffusers") is None,
        reason="diffusers is not installed: pip install 'sharespace[diffusers]'",
    )
]
with_digits = pytest.mark.skipif(not IMAGES.is_dir(), reason="the image sets are not here")


@with_digits
def test_from_data_to_tables_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "results", tmp_path / "figures"
    common = ("--data", IMAGES, "--cache", tmp_path / "cache", "--out", out, "--quick")
    one = ("text_to_image", *common, "--seeds", 0)
    call("run", *one, "--methods", *METHODS)
    check_runs(json.loads((out / "runs" / "styles-0.json").read_text()))
    capsys.readouterr()
    call("run", *one, "--methods", *METHODS)
    assert not capsys.readouterr().out, "everything is there"

    call("adapters", *one, "--k", 4)
    call("compare", *one)
    check_images(json.loads((out / "compare" / "0.json").read_text()))
    call("tune", *one, "--tasks", "framed", "--own", "--core", 4, 2, 1e-2, 2)
    tried = json.loads((out / "tune.json").read_text())["trials"]
    assert tried["core p=4 phi=2 rate=0.01 steps=2"]["framed"]["trained"] == 48 * 4 * 4
    assert tried["own LoRA"]["framed"]["trained"] > 48 * 4 * 4

    call("summarise", "text_to_image", "--results", out, "--figures", figures)
    assert len(json.loads((out / "claims.json").read_text())["claims"]) == 6
    text = (out / "tables.md").read_text()
    assert all(f"| {name} |" in text for name in METHODS)
    assert "| Share, at the end |" in text
    assert len(list(figures.glob("text-to-image-*.png"))) == 3


def check_runs(results: Any) -> None:
    assert set(results["methods"]) == set(METHODS)
    trained = {name: results["methods"][name]["trainable"] for name in METHODS[1:]}
    assert trained["share_strict"]["embossed"] < trained["per_task_lora"]["embossed"] / 2
    rows = results["methods"]["share_strict"]["matrix"]["scores"]
    assert [sum(s is not None for s in row) for row in rows] == [3, 4]


def check_images(found: Any) -> None:
    """Nothing is lost below the cap, so images stay; other noise gives others."""
    for style in ("outlined", "embossed"):
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
