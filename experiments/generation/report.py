"""Tables, claims and figures of generation: merged adapters, and tasks learned in the subspace."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import ClassVar, Literal

from experiments.generation import draw, weighing_table
from experiments.generation.tables import (
    STARTS,
    Results,
    all_tasks,
    by_batch,
    dimensions,
    key,
    layout,
    related_table,
    relative,
    since_merge,
    text,
)
from experiments.harness.claims import Claim
from experiments.harness.results import read, read_if_there
from experiments.harness.summarise import Report
from experiments.harness.tables import all_rows, mean_of
from sharespace.compare.size import reach

LOW = 0.91
"""The paper's worst batch."""


class Generation(Report):
    """See the package."""

    name = "generation"
    titles: ClassVar[Mapping[str, str]] = {"": "Tasks learned from data, one after the other"}

    def __init__(self, results: Path, figures: Path, options: argparse.Namespace) -> None:
        super().__init__(results, figures, options)
        self.merged = read(results / "merge")
        starts = dict.fromkeys(run["start"] for run in self.merged)
        self.starts = [[run for run in self.merged if run["start"] == start] for start in starts]

    def sections(self) -> list[str]:
        related = [r for r in read(self.results / "related") if "original" in r["methods"]]
        weighing = read_if_there(self.results / "weighing.json")
        return [
            *(text(runs) for runs in self.starts),
            *([related_table(related)] if related else []),
            *([weighing_table.table(weighing)] if weighing else []),
            *super().sections(),
        ]

    def claims(self) -> list[Claim | None]:
        firsts = [run for run in self.merged if run["environment"]["seed"] == 0]
        learned = [run for run in self.all_runs if mean_of(run, "per_task_lora") > 0]
        return [
            *(
                _kept(run, method, k)
                for run in firsts
                for k in dict.fromkeys((dimensions(run)[0], dimensions(run)[-1]))
                for method in ("share", "joint")
            ),
            _smaller(firsts[0]) if firsts else None,
            _strict(learned) if learned else None,
        ]

    def draw(self) -> None:
        if self.starts:
            draw.draw_batches(self.starts, self.figure("batches"))
            draw.draw_sizes([runs[0] for runs in self.starts], self.figure("sizes"))
        if self.all_runs:
            draw.draw_learned(self.all_runs, self.initial, self.figure("learn"))


def _kept(run: Results, method: str, k: int) -> Claim:
    """The table of the batches; the smallest k has the paper's k / d."""
    name = key(method, k)
    parts = by_batch(run, name, "final")
    holds: Literal["yes", "partly", "no"] = "no"
    if max(parts) >= LOW:
        holds = "yes" if min(parts) >= LOW else "partly"
    own_svd = relative(run, key("own_svd", k), all_tasks(run))
    since = since_merge(run, name)
    count, batches = len(all_tasks(run)), len(run["batches"])
    ours = "the paper's method" if method == "share" else "our method (joint)"
    return Claim(
        claim="Hundreds of adapters of a language model, merged in ten batches, keep their scores",
        paper="0.91 to 1.00 of the score (500 Mistral-7B adapters, k = 256 of 4096)",
        here=(
            f"{min(parts):.2f} to {max(parts):.2f} by {ours} ({count} adapters of a small Llama, "
            f"{batches} batches, k = {k} of {run['width']}, one order)"
        ),
        holds=holds,
        note=(
            f"{STARTS[run['start']]}; own SVDs at equal bytes keep {own_svd:.2f} of all scores; of "
            f"the score right after the merge {min(since):.2f} to {max(since):.2f} is left"
        ),
    )


def _smaller(run: Results) -> Claim:
    k = dimensions(run)[0]
    last = run["methods"][key("joint", k)]["steps"][-1]
    ratio = last["adapter_bytes"] / last["share_bytes"]
    first = reach(layout(run, k), 1.0, "bytes").tasks
    return Claim(
        claim="One Share model is smaller than the adapters",
        paper="100x fewer parameters",
        here=f"{ratio:.1f}x at {last['tasks']} adapters, k = {k}; smaller from {first} adapters on",
        holds="partly",
        note="all bytes of bases and coefficients, against rank 8",
    )


def _strict(learned: Sequence[Results]) -> Claim:
    parts = [mean_of(run, "share_strict") / mean_of(run, "per_task_lora") for run in learned]
    lost = fmean(r.forgetting or 0.0 for r in all_rows(learned) if r.method == "share_strict")
    last = learned[0]["tasks"][-1]
    methods = learned[0]["methods"]
    fewer = methods["per_task_lora"]["trainable"][last] / methods["share_strict"]["trainable"][last]
    part = fmean(parts)
    return Claim(
        claim="New generation tasks are learned in the subspace nearly as well as by own LoRAs",
        paper="strict Share near LoRA, with up to 100x fewer numbers trained",
        here=(
            f"{part:.1%} of own LoRA, {fewer:.0f}x fewer numbers, forgetting {lost:.2f} points "
            f"({len(parts)} seeds)"
        ),
        holds="yes" if part >= 0.98 and lost <= 1 else "partly" if part >= 0.9 else "no",
    )
