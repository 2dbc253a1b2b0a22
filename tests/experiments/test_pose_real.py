"""The real recipe of the pose experiment, on stand-ins in the real files' format."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import peft
import pytest
import transformers
from experiments.pose import standins
from experiments.pose.hub import hub_model, load_hub
from experiments.pose.pascal3d import (
    LEVELS,
    Photographs,
    covered,
    cut,
    occluded,
    read_annotation,
    split,
)
from experiments.pose.task import collate

from experiments_calls import call
from sharespace.errors import OptionError
from sharespace.extras import require

CATEGORIES = ["car", "bus", "chair", "train"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pascal")
    standins.make(found, CATEGORIES)
    return found


def test_reads_viewpoints_and_boxes(tmp_path: Path) -> None:
    file, image = tmp_path / "a.mat", tmp_path / "a.JPEG"
    standins.write_annotation(file, "a.JPEG", [(350.0, 12.5, -4.0)])
    found = read_annotation(file, image)
    assert found is not None
    assert list(found.box) == list(standins.BOX)
    assert found.angles == pytest.approx([math.radians(d) for d in (350.0, 12.5, -4.0)])


def test_leaves_out_what_has_no_single_fine_viewpoint(tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    standins.write_annotation(file, "a.JPEG", [(1, 2, 3), (4, 5, 6)])
    assert read_annotation(file, file) is None
    standins.write_annotation(file, "a.JPEG", [(1, 2, 3)], distance=0.0)
    assert read_annotation(file, file) is None


def test_refuses_other_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such file"):
        split(tmp_path, "car", "val")
    with pytest.raises(OptionError, match="no such file"):
        read_annotation(tmp_path / "a.mat", tmp_path)
    require("scipy.io", "train").savemat(tmp_path / "a.mat", {"other": 1})
    with pytest.raises(OptionError, match="no record"):
        read_annotation(tmp_path / "a.mat", tmp_path)


def test_occluded_images_have_the_viewpoints_of_the_clean_ones(folder: Path) -> None:
    clean = split(folder / "PASCAL3D+_release1.1", "car", "val")
    root = folder / "OccludedPASCAL3D"
    for level, part in zip(LEVELS, (0.3, 0.5, 0.7), strict=True):
        found = occluded(root, clean, "car", level)
        assert [f.angles for f in found] == [c.angles for c in clean]
        assert f"car{LEVELS[level]}" in str(found[0].image)
        assert covered(root, "car", level, found[0].image.stem) == pytest.approx(part, abs=0.02)
    with pytest.raises(OptionError, match="no image"):
        occluded(folder, clean, "car", "L1")


def test_cuts_the_object_out(folder: Path) -> None:
    known = split(folder / "PASCAL3D+_release1.1", "bus", "train")[0]
    pixels = np.asarray(cut(known, 32), dtype=float)
    centre = pixels[12:20, 12:20]
    assert pixels.shape == (32, 32, 3)
    assert centre.std() < 12  # the grey square, not the noise about it
    example = Photographs([known], 32)[0]
    assert example["pixel_values"].shape == (3, 32, 32)
    assert -1 <= example["pixel_values"].min() < example["pixel_values"].max() <= 1
    assert example["labels"].tolist() == pytest.approx(known.angles)


def test_takes_a_resnet_too(folder: Path, tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    transformers.ResNetModel(config).save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path)
    base = load_hub(str(tmp_path))
    known = split(folder / "PASCAL3D+_release1.1", "bus", "train")
    views = Photographs(known, base.size, base.mean, base.deviation)
    model = hub_model(base, views, seed=0)()
    config = peft.LoraConfig(r=2, target_modules=["convolution"], modules_to_save=["classifier"])
    found = peft.get_peft_model(model, config)(**collate([views[0], views[1]]))
    assert found["logits"].shape == (2, 3 * 24)
    found["loss"].backward()


def test_the_recipe_starts(folder: Path, tmp_path: Path) -> None:
    arguments = ["--pascal3d", folder / "PASCAL3D+_release1.1", "--base", folder / "base"]
    arguments += ["--occluded", folder / "OccludedPASCAL3D", "--categories", *CATEGORIES]
    arguments += ["--steps", "2", "--batch-size", "4", "--k", "16", "--cpu"]
    arguments += ["--cache", tmp_path / "cache", "--out", tmp_path / "out"]
    call("real", "pose", *arguments)
    found = json.loads((tmp_path / "out" / "runs" / "pascal3d-0.json").read_text())
    assert set(found["methods"]) == {"head_only", "per_task_lora", "share_strict"}
    scored = json.loads((tmp_path / "out" / "occluded" / "pascal3d-0.json").read_text())["scores"]
    assert set(scored) == set(CATEGORIES)
    assert set(scored["train"]["share_strict"]) == {"clean", "L1", "L2", "L3"}
    assert scored["car"]["per_task_lora"]["L3"]["views"] == 4
