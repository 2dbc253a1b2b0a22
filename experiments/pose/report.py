"""Tables, claims and figures of pose: under occlusion, and category by category."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.harness.claims import (
    HEAD,
    OWN,
    SHARE,
    Claim,
    Said,
    count,
    fewer_numbers,
    near_lora,
    no_forgetting,
)
from experiments.harness.markdown import section
from experiments.harness.results import read
from experiments.harness.summarise import Report
from experiments.harness.tables import spread

Scored = Sequence[Mapping[str, Any]]
"""Results files of ``occluded``."""
TESTS = {
    "clean": "not occluded",
    "L1": "L1 (20-40 %)",
    "L2": "L2 (40-60 %)",
    "L3": "L3 (60-80 %)",
}
METHODS = {HEAD: "head only", OWN: "own LoRA", SHARE: "Share at the end"}
MEASURES = {"acc_pi_6": "Acc pi/6", "acc_pi_18": "Acc pi/18", "median": "median error, degrees"}
_SETTING = "rendered meshes and a MobileNet; the paper: Pascal3D+"


NEAR = Said(
    "3D pose, categories learned one after the other: Share stays near per-task LoRA", _SETTING
)
NO_FORGETTING = Said("3D pose: hardly any forgetting", "k has room for all tasks", paper="minimal")
FEWER = Said(
    "3D pose: up to 100 times fewer trained parameters a task",
    "layers of only 64 to 256 channels; what smaller cores keep: table How much a task trains",
    paper="up to 100x",
)


class Pose(Report):
    """The views in the picture are rendered again, for which it needs the meshes."""

    name = "pose"
    command_options = " --data DATA"

    def __init__(self, results: Path, figures: Path, options: argparse.Namespace) -> None:
        super().__init__(results, figures, options)
        self.scored = read(results / "occluded")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", type=Path, required=True, help="has meshes/")
        parser.add_argument("--quick", action="store_true", help="the runs were tiny")

    def own_tables(self) -> list[str]:
        if not self.scored:
            return []
        return [occlusion_table(self.scored), category_table(self.scored)]

    def claims(self) -> list[Claim | None]:
        runs = self.all_runs
        return [
            near_lora(runs, NEAR, measure="Acc at pi/6 "),
            no_forgetting(runs, NO_FORGETTING),
            fewer_numbers(runs, FEWER),
            occlusion_claim(self.scored) if self.scored else None,
        ]

    def draw(self) -> None:
        super().draw()
        if self.scored:
            from experiments.pose import pictures  # It needs the experiment's model.

            meshes = self.options.data / "meshes"
            size = pictures.size_of(self.options.quick)
            pictures.draw(self.all_runs, self.scored, meshes, size, self.figure("views"))


def means(runs: Scored, method: str, test: str, measure: str) -> list[float]:
    """Over the categories, of each run."""
    return [
        fmean(by_method[method][test][measure] for by_method in run["scores"].values())
        for run in runs
    ]


def occlusion_claim(scored: Scored) -> Claim:
    """Gain that is left at every level of occlusion."""
    said, parts = [], []
    for level in ("L1", "L2", "L3"):
        head, own, share = (fmean(means(scored, m, level, "acc_pi_6")) for m in METHODS)
        # In tests LoRA gains nothing.
        parts.append((share - head) / (own - head) if own != head else 0.0)
        said.append(f"{level} {share:.1f} against {own:.1f}")
    return Claim(
        "3D pose: under occlusion Share stays near per-task LoRA, too",
        "comparable",
        f"Acc at pi/6: {', '.join(said)} ({count(scored)})",
        "yes" if min(parts) >= 0.9 else "partly" if min(parts) >= 0.5 else "no",
        "patches instead of objects of MSCOCO",
    )


def occlusion_table(runs: Scored) -> str:
    """All measures at all levels."""
    return section(
        "## Under occlusion",
        f"Mean over the {len(runs[0]['scores'])} categories, ± sample standard deviation over the "
        f"runs ({len(runs)}); the median error is the mean of the categories' medians.",
        f"test views | method | {' | '.join(MEASURES.values())}",
        (
            [title, name, *(spread(means(runs, method, test, m)) for m in MEASURES)]
            for test, title in TESTS.items()
            for method, name in METHODS.items()
        ),
        "llr",
    )


def category_table(runs: Scored) -> str:
    """Every category, not occluded."""
    rows = []
    for task in runs[0]["scores"]:
        cells = [task]
        for method in METHODS:
            clean = [run["scores"][task][method]["clean"] for run in runs]
            cells.append(" / ".join(f"{fmean(s[m] for s in clean):.1f}" for m in MEASURES))
        rows.append(cells)
    return section(
        "## Every category, not occluded",
        f"Acc at pi/6 / Acc at pi/18 / median error in degrees; means over the runs ({len(runs)}).",
        f"category | {' | '.join(METHODS.values())}",
        rows,
    )
