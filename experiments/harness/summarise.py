"""Tables, claims and figures of an experiment's results files.

    python -m experiments summarise images

Writes ``results/tables.md``, ``results/claims.json`` and the figures in ``docs/figures``; nothing
is computed that is not in the results files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from experiments.harness.claims import Claim, having, write_claims
from experiments.harness.figures import draw_order, draw_subspace
from experiments.harness.kinds import draw_kinds, kinds_table
from experiments.harness.other_numbers import read_sizes, size_table, slower_table, with_slower
from experiments.harness.results import Results, read, read_if_there
from experiments.harness.tables import Goals, goals_table, learned_table, main_table
from experiments.harness.transfer import transfer_table
from experiments.harness.tune import tune_table

ROOT = Path(__file__).parents[1]
NEEDED = ("head_only", "per_task_lora", "share_strict")
"""Without these a results file is not finished, and is left out."""


class Report:
    """What an experiment shows of its results.

    Args:
        results: folder of all results.
        figures: folder of the figures.
        options: of the command line.
    """

    name: ClassVar[str]
    """Of the experiment's folder."""
    titles: ClassVar[Mapping[str, str]] = {"": ""}
    """Base model, as in the results' folders -> the heading of its tables."""
    initial: ClassVar[int] = 3
    """Tasks that come as adapters."""
    goals: ClassVar[Goals] = Goals()
    command_options: ClassVar[str] = ""
    """What the command needs beside the experiment's name."""

    def __init__(self, results: Path, figures: Path, options: argparse.Namespace) -> None:
        self.results, self.figures, self.options = results, figures, options
        self.slower = {base: read(results / "slower" / base) for base in self.titles}
        plain = {base: having(read(results / "runs" / base), *NEEDED) for base in self.titles}
        self.as_run: dict[str, Sequence[Results]] = {b: r for b, r in plain.items() if r}
        self.runs: dict[str, list[Results]] = {
            base: [with_slower(dict(run), self.slower[base]) for run in runs]
            for base, runs in self.as_run.items()
        }
        """Base -> finished runs, each method at the better of its rates."""
        self.kinds, self.transfer = self.of_bases("kinds"), self.of_bases("transfer")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Options of this experiment alone."""

    def of_bases(self, stage: str) -> list[dict[str, Any]]:
        """A stage's results files of all base models."""
        return [record for base in self.titles for record in read(self.results / stage / base)]

    @property
    def all_runs(self) -> list[Results]:
        """Of all base models."""
        return [run for runs in self.runs.values() for run in runs]

    def sections(self) -> list[str]:
        """All tables."""
        parts = [part for base in self.runs for part in self.of_base(base)]
        for base, runs in self.runs.items():
            sizes = read_sizes(self.results / "sizes", base)
            parts.append(size_table(runs, sizes, self.initial, _named(base)))
        if self.kinds:
            parts.append(kinds_table(self.kinds))
        if self.transfer:
            parts.append(transfer_table(self.transfer))
        return [*parts, *self.own_tables(), *self.tune_tables()]

    def of_base(self, base: str) -> Iterator[str]:
        """Tables of one base model; streams of the same tasks are one table."""
        runs, named = self.runs[base], _named(base)
        if self.titles[base]:
            yield f"# {self.titles[base]}\n"
        for tasks in dict.fromkeys(frozenset(run["tasks"]) for run in runs):
            same = [run for run in runs if frozenset(run["tasks"]) == tasks]
            orders = ", ".join(dict.fromkeys(run["order"] for run in same))
            yield main_table(same, f": {orders}{named}" if base else "")
        yield slower_table(self.as_run[base], self.slower[base])
        yield learned_table(runs, self.initial, named)
        yield goals_table(runs, self.goals, named)

    def tune_tables(self) -> Iterator[str]:
        """Settings that were tried on held-out examples."""
        for base in self.titles:
            record = read_if_there((self.results / "tune" / base).with_suffix(".json"))
            if record:
                yield self.tune_table(record, base)

    def tune_table(self, record: Mapping[str, Any], base: str) -> str:
        """Of one base model."""
        return tune_table(record, base)

    def own_tables(self) -> list[str]:
        """Tables that only this experiment has."""
        return []

    def claims(self) -> list[Claim | None]:
        """The paper's claims that this experiment tests; None where the results are missing."""
        return []

    def figure(self, *parts: str) -> Path:
        """File of a figure."""
        name = "-".join([self.name.replace("_", "-"), *(part for part in parts if part)])
        return self.figures / f"{name}.png"

    def draw(self) -> None:
        """All figures."""
        for base, runs in self.runs.items():
            for order in dict.fromkeys(run["order"] for run in runs):
                same = [run for run in runs if run["order"] == order]
                draw_order(same, self.figure(base, self.order_figure(order)))
        for run in self.all_runs:
            if "settling" in run["methods"]["share_strict"]:
                draw_subspace(run, self.initial, self.figure("subspace"))
        if self.kinds:
            draw_kinds(self.kinds, self.figure("kinds"))

    def order_figure(self, order: str) -> str:
        """What the figure of an order is called."""
        return order


def _named(base: str) -> str:
    return f" ({base})" if base else ""


def main(kind: type[Report], arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / kind.name / "results")
    parser.add_argument("--figures", type=Path, default=ROOT.parent / "docs" / "figures")
    kind.add_options(parser)
    options = parser.parse_args(arguments)
    report = kind(options.results, options.figures, options)
    options.figures.mkdir(parents=True, exist_ok=True)
    tables = [section for section in report.sections() if section]
    (report.results / "tables.md").write_text("\n".join(tables))
    command = f"python -m experiments summarise {kind.name}{kind.command_options}"
    write_claims(report.results / "claims.json", report.claims(), command)
    report.draw()
