"""The pose experiment: views, occlusion, bins, and the tiny version from data to figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments.pose import meshes
from experiments.pose.model import AngleBins, Bins
from experiments.pose.occlusion import LEVELS, occlude
from experiments.pose.pictures import first_ones, project
from experiments.pose.render import Scene, render
from experiments.pose.rotations import geodesic, rotation, turns
from experiments.pose.views import Range, angles_of, draw_split

from experiments_calls import call
from shared_data import SHARED
from sharespace.errors import OptionError
from sharespace.stream.measures import ScoreMatrix

DATA = SHARED / "data"
METHODS = ("head_only", "per_task_lora", "share_strict", "mean_adapter")

pytest.importorskip("trimesh", reason="trimesh is not installed: pip install 'sharespace[bench]'")
pytest.importorskip("embreex", reason="embreex is not installed: pip install 'sharespace[bench]'")
here = pytest.mark.skipif(not (DATA / "meshes").is_dir(), reason="the meshes are not here")


def test_test_views_are_apart_from_training_views() -> None:
    split = draw_split("spot", 300, 40, Range(apart=6.0))
    known, tested = rotation(angles_of(split.train)), rotation(angles_of(split.test))
    between = geodesic(tested[:, None], known[None]) * 180 / math.pi
    assert between.min() >= 6.0
    degrees = torch.rad2deg(angles_of(split.test))
    assert ((degrees[:, 1] >= -10) & (degrees[:, 1] <= 60) & (degrees[:, 2].abs() <= 30)).all()
    assert draw_split("spot", 300, 40, Range(apart=6.0)) == split
    assert draw_split("cow", 300, 40, Range(apart=6.0)) != split
    with pytest.raises(OptionError, match="no view is so far"):
        draw_split("spot", 300, 1, Range(apart=60.0))


@pytest.mark.parametrize("level", LEVELS)
def test_patches_cover_as_much_as_the_level_says(level: str) -> None:
    down, right = np.indices((64, 64)) - 31.5
    image = np.full((64, 64, 3), 255, dtype=np.uint8)
    low, high = LEVELS[level]
    for mask in (np.hypot(down, right) < 20, (abs(down) < 4) & (abs(right) < 28)):
        for seed in range(20):
            covered, patches = occlude(image, mask, LEVELS[level], seed)
            assert low <= patches[mask].mean() < high
            assert (covered[~patches] == 255).all()
            np.testing.assert_array_equal(occlude(image, mask, LEVELS[level], seed)[0], covered)


def test_an_object_too_small_to_occlude() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[4, 4] = True
    with pytest.raises(OptionError, match="1 pixels"):
        occlude(np.zeros((8, 8, 3), dtype=np.uint8), mask, (0.2, 0.4), 0)


@pytest.mark.parametrize("bins", [Bins(24), Bins(7, -30.0, 30.0, circular=False)])
def test_bins_give_an_angle_back(bins: Bins) -> None:
    angles = torch.deg2rad(torch.linspace(bins.low, bins.high, 97)[:-1])
    weights = bins.weights(angles)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(angles)))
    found = bins.decode(torch.log(weights + 1e-12))
    apart = torch.remainder(found - angles + math.pi, 2 * math.pi) - math.pi
    assert apart.abs().max() < 1e-3


def test_the_loss_is_least_where_the_answer_is_right() -> None:
    bins = AngleBins()
    true = torch.deg2rad(torch.tensor([[352.0, 20.0, -13.0]]))
    right = torch.cat([b.weights(a) for b, a in zip(bins.all, true.unbind(1), strict=True)], 1)
    wrong = right.roll(3, 1)
    assert bins.loss(torch.log(right + 1e-9), true) < bins.loss(torch.log(wrong + 1e-9), true)
    decoded = bins.decode(torch.log(right + 1e-9))
    torch.testing.assert_close(rotation(decoded), rotation(true), atol=1e-4, rtol=0)


def test_scores_of_the_first_categories() -> None:
    matrix = ScoreMatrix(("a", "b", "c")).with_step(
        "a+b", {"a": 80.0, "b": 40.0}, learned=("a", "b")
    )
    matrix = matrix.with_step("c", {"a": 40.0, "b": 40.0, "c": 10.0}, learned=("c",))
    assert first_ones(matrix, 2) == {2: 60.0, 3: 40.0}


def _scene(azimuth: float, elevation: float, theta: float) -> Scene:
    a, e, t = (math.radians(d) for d in (azimuth, elevation, theta))
    return Scene(a, e, t, 0.9, (0.05, -0.1), (0.0, 0.0, 1.0), 0.3, (0.5, 0.5, 0.5), 1)


@here
def test_the_image_shows_the_pose() -> None:
    """Vertices that are projected by the pose's matrix fall on what was rendered."""
    mesh = meshes.load(DATA / "meshes", "cow")
    scene = _scene(40, 25, 15)
    image, mask = render(mesh, scene, 96)
    turn = rotation(angles_of([scene]))[0].numpy()
    across, down = project(np.asarray(mesh.vertices), turn, scene, 96)
    near = mask.copy()
    for shift in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        near |= np.roll(mask, shift, (0, 1))
    assert near[np.floor(down).astype(int), np.floor(across).astype(int)].mean() > 0.99
    assert image.shape == (96, 96, 3)
    assert image[mask].std() > 5


@here
def test_no_mesh_has_a_rotational_symmetry() -> None:
    """So none is scored with one (experiment.GROUPS): the nearest is the teapot's half turn."""
    for name, least in (("teapot", 0.03), ("beetle-alt", 0.03), ("rocker-arm", 0.03)):
        mesh = meshes.load(DATA / "meshes", name)
        assert meshes.deviation(mesh, turns((0, 0, 1), 2)[1].numpy(), 1500) > least
        assert abs(meshes.deviation(mesh, np.eye(3), 1500)) < 1e-9
    with pytest.raises(OptionError, match="no such mesh"):
        meshes.load(DATA / "meshes", "sphere")


@here
def test_from_meshes_to_tables_and_figures(tmp_path: Path) -> None:
    results, figures = tmp_path / "results", tmp_path / "figures"
    places = ("--data", DATA, "--cache", tmp_path / "cache", "--out", results)
    common = (*places, "--quick", "--seeds", 0, "--orders", "animals-first")
    call("run", "pose", *common, "--methods", *METHODS)
    run = json.loads((results / "runs" / "animals-first-0.json").read_text())
    assert set(run["methods"]) == set(METHODS)
    assert run["methods"]["share_strict"]["trainable"]["cow"] == 2 * 32 * 32

    call("occluded", "pose", *common)
    scored = json.loads((results / "occluded" / "animals-first-0.json").read_text())["scores"]
    at_end = run["methods"]["share_strict"]["matrix"]["scores"][-1]
    assert [s["share_strict"]["clean"]["acc_pi_6"] for s in scored.values()] == at_end
    own = run["methods"]["per_task_lora"]["matrix"]["scores"][-1]
    assert [s["per_task_lora"]["clean"]["acc_pi_6"] for s in scored.values()] == own

    shown = ("--results", results, "--figures", figures)
    call("summarise", "pose", "--data", DATA, *shown, "--quick")
    text = (results / "tables.md").read_text()
    assert all(f"| {name} |" in text for name in METHODS)
    assert "| L3 (60-80 %) | Share at the end |" in text
    assert len(json.loads((results / "claims.json").read_text())["claims"]) == 4
    assert len(list(figures.glob("*.png"))) == 3
