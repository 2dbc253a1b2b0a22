"""The experiment in one picture: views with their poses, accuracy by occlusion, retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from experiments.harness.figures import matrix_of
from experiments.harness.results import Results
from experiments.pose import meshes, occlusion
from experiments.pose.occluded import VIEW
from experiments.pose.render import DISTANCE, Scene, render
from experiments.pose.report import METHODS, TESTS, Scored, means
from experiments.pose.rotations import rotation
from experiments.pose.size import FULL, QUICK, Size
from experiments.pose.views import draw_split
from sharespace.extras import require
from sharespace.stream.measures import ScoreMatrix

INITIAL = 3
_AXES = {"#e41a1c": (0, -1, 0), "#1b9e3a": (1, 0, 0), "#2060e0": (0, 0, 1)}
"""Colour -> front, side and up of the object."""
_LINES = {"head_only": "#8a8a8a", "per_task_lora": "#d95f02", "share_strict": "#1f5fbf"}


def size_of(quick: bool) -> Size:
    """Of the views that were tested."""
    return QUICK if quick else FULL


def draw(
    runs: Sequence[Results],
    scored: Scored,
    folder: Path,
    size: Size,
    path: Path,
) -> None:
    """Write the picture.

    Args:
        runs: results files of ``run``.
        scored: results files of ``occluded``; the poses are those of the first.
        folder: of the meshes: the views are rendered again.
        size: of the views.
        path: where to.

    Raises:
        OptionError: a mesh is missing.
        MissingExtraError: matplotlib, trimesh or embreex is not installed.
    """
    figure = require("matplotlib.figure", "report").Figure(
        figsize=(15, 13.5), dpi=80, layout="constrained"
    )
    above, below = figure.subfigures(2, 1, height_ratios=(8.4, 5))
    names = list(scored[0]["scores"])
    _views(above, names, scored[0]["scores"], folder, size)
    left, middle, right = below.subplots(1, 3)
    _by_occlusion(left, scored, "acc_pi_6", "Views with an error below 30 degrees (Acc at pi/6)")
    _by_occlusion(middle, scored, "median", "Median error of the rotation")
    _retention(right, runs)
    figure.savefig(path)
    _smaller(path)


def _smaller(path: Path) -> None:
    """The same picture in 256 colours: a third of the bytes."""
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(256)
    few.save(path, optimize=True)


def _views(
    figure: Any, names: Sequence[str], scores: Mapping[str, Any], folder: Path, size: Size
) -> None:
    grid = figure.subplots(len(TESTS), len(names), squeeze=False)
    for column, name in enumerate(names):
        scene = draw_split(name, size.train, size.test, size.limits).test[VIEW]
        images = _images(meshes.load(folder, name), scene, size.pixels)
        for row, test in enumerate(TESTS):
            axes = grid[row][column]
            answer = scores[name]["share_strict"][test]["shown"]
            _pose(axes, images[test], scene, answer["predicted"])
            axes.set_xlabel(f"error {answer['error']:.0f}°", fontsize=10)
            if not row:
                axes.set_title(name, fontsize=12)
            if not column:
                axes.set_ylabel(TESTS[test], fontsize=11)
    figure.suptitle(
        "What one Share model says after the whole stream: thick pale axes are the true pose, thin "
        "ones the answer\n(red: the object's front, green: its side, blue: up; one test view of "
        "each category, the same one under more and more patches)",
        fontsize=13,
    )


def _images(mesh: Any, scene: Scene, pixels: int) -> dict[str, NDArray[np.uint8]]:
    """The view as each of the test sets has it."""
    image, mask = render(mesh, scene, pixels)
    covered = {t: occlusion.occlude(image, mask, p, VIEW)[0] for t, p in occlusion.LEVELS.items()}
    return {"clean": image, **covered}


def _pose(axes: Any, image: NDArray[np.uint8], scene: Scene, predicted: Sequence[float]) -> None:
    pixels = len(image)
    axes.imshow(image, interpolation="bilinear")
    axes.set(xticks=[], yticks=[], xlim=(0, pixels), ylim=(pixels, 0))
    true = (scene.azimuth, scene.elevation, scene.theta)
    for angles, width, opacity in ((true, 6.5, 0.45), (predicted, 2.0, 1.0)):
        turn = rotation(torch.tensor(angles, dtype=torch.float64)).numpy()
        for colour, axis in _AXES.items():
            points = np.stack([np.zeros(3), np.asarray(axis, dtype=float)])
            across, down = project(points, turn, scene, pixels)
            if width > 4:
                axes.plot(across, down, color="white", linewidth=width + 1.5, alpha=opacity)
            axes.plot(
                across, down, color=colour, linewidth=width, alpha=opacity, solid_capstyle="round"
            )


def project(
    points: NDArray[np.float64], turn: NDArray[np.float64], scene: Scene, pixels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where points of the object, [points, 3], are in the image: pixels across and down."""
    seen = points @ turn.T
    focal = scene.scale * np.sqrt(DISTANCE**2 - 1)
    depth = DISTANCE - seen[:, 2]
    across = focal * seen[:, 0] / depth + scene.shift[0]
    down = -focal * seen[:, 1] / depth + scene.shift[1]
    return (across + 1) / 2 * pixels, (down + 1) / 2 * pixels


def _by_occlusion(axes: Any, scored: Scored, measure: str, title: str) -> None:
    places = np.arange(len(TESTS))
    for method, name in METHODS.items():
        values = [means(scored, method, test, measure) for test in TESTS]
        middle = [fmean(v) for v in values]
        axes.plot(places, middle, color=_LINES[method], marker="o", linewidth=2, label=name)
        low, high = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(places, low, high, color=_LINES[method], alpha=0.15)
    axes.set_xticks(places, ["none", "20-40 %", "40-60 %", "60-80 %"])
    axes.set(xlabel="part of the object that patches hide", ylim=(0, None))
    axes.set_ylabel("percent of the test views" if measure.startswith("acc") else "degrees")
    axes.set_title(title, fontsize=12)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)


def _retention(axes: Any, runs: Sequence[Results]) -> None:
    """The scores of the first categories after every step."""
    for method, label, colour in (
        ("share_strict", "Share", _LINES["share_strict"]),
        ("sequential_lora", "one LoRA, trained on and on", "#7b3294"),
    ):
        known = [first_ones(matrix_of(r, method)) for r in runs if method in r["methods"]]
        if known:
            values = {at: fmean(run[at] for run in known) for at in known[0]}
            axes.plot(
                values.keys(), values.values(), color=colour, marker="o", linewidth=2, label=label
            )
    axes.set(xlabel="categories learned so far", ylim=(0, 100))
    axes.locator_params(axis="x", integer=True)
    axes.set_ylabel("Acc at pi/6, percent, mean of the three")
    axes.set_title("The first three categories, while others are learned", fontsize=12)
    axes.legend(frameon=False, loc="center right")
    axes.grid(alpha=0.3)


def first_ones(matrix: ScoreMatrix, count: int = INITIAL) -> dict[int, float]:
    """Categories learned so far -> mean score of the first ones, from when they are all known."""
    means_by_count = {}
    for scores in matrix.scores:
        known = [score for score in scores if score is not None]
        if len(known) >= count:
            means_by_count[len(known)] = fmean(known[:count])
    return means_by_count
