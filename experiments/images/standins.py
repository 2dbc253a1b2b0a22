"""Tiny stand-ins for ViT-B/16 and the four data sets of the real recipes.

    python -m experiments standins images FOLDER

A ViT with random weights and its image processor, a handful of coloured squares for each data set
(folders of images by class, as the ``imagefolder`` format has them), and the shipped recipes,
changed only to point there and to stop after a few steps. Scores on them mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from experiments.harness import standins
from sharespace.learn.training import quiet

HERE = Path(__file__).parent
RECIPES = ("vit-lora", "vit-data", "vit-adapters", "vit-hybrid")
MADE = "../../.cache/images/"
"""Where the shipped recipes put what they make."""
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}
SPLITS = {"train": 6, "test": 3}
"""Images of a class."""
CHANGES: Mapping[str, Any] = {
    "max_steps": 2,
    "head_steps": 1,
    "p": 4,
    "phi": 2,
    "per_device_train_batch_size": 4,
    "dataloader_num_workers": 0,
    "bf16": False,
    "use_cpu": True,
}


def make(folder: Path) -> None:
    """``base``, ``data/<task>`` and the recipes."""
    with quiet():
        standins.make_vit(folder / "base", 16)
    for name in RECIPES:
        recipe = yaml.safe_load((HERE / f"{name}.yaml").read_text())
        for number, task in enumerate(recipe["tasks"]):
            make_data(folder / "data" / task["name"], number, "eval_fraction" in task)
        text = yaml.safe_dump(changed(recipe), sort_keys=False)
        (folder / f"{name}.yaml").write_text(text)


def changed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A shipped recipe, pointed at the stand-ins."""
    known = {key: value for key, value in CHANGES.items() if key in recipe or key == "use_cpu"}
    if "learning_rate" in recipe:
        known["max_steps"] = CHANGES["max_steps"]
    tasks = [_changed_task(task) for task in recipe["tasks"]]
    share = recipe["share"].removeprefix(MADE)
    return {**recipe, **known, "base": "base", "share": share, "tasks": tasks}


def _changed_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """Its data lies in folders, whose columns are always called image and label."""
    left_out = ("image", "label", "num_train_epochs")
    changed_task = {key: value for key, value in task.items() if key not in left_out}
    if "adapter" in changed_task:
        changed_task["adapter"] = changed_task["adapter"].removeprefix(MADE)
    return {**changed_task, "data": f"data/{task['name']}"}


def make_data(folder: Path, seed: int, train_only: bool) -> None:
    """``<split>/<class>/<number>.png``: noisy squares of one colour a class."""
    draw = torch.Generator().manual_seed(seed)
    for split, count in SPLITS.items():
        if split == "test" and train_only:
            continue
        for name, colour in COLOURS.items():
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                noise = torch.randint(-20, 20, (20, 24, 3), generator=draw)
                pixels = (torch.tensor(colour) + noise).clamp(0, 255).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(place / f"{number}.png")


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    standins.main(arguments, __doc__, make)
