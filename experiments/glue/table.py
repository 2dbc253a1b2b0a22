"""What was run here, and what the paper printed: two tables, never one.

python -m experiments table glue experiments/glue/results/*.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import table

from sharespace.compare.comparison import Comparison, ComparisonRow, Cost, markdown
from sharespace.stream.measures import ScoreMatrix
from sharespace.stream.recipe import load_recipe, record

HERE = Path(__file__).parent
_UNLIKE = ("share", "seed")


def text(files: Sequence[Path]) -> str:
    """Markdown: our runs, the paper's table, and whether the one may be held against the other.

    Args:
        files: results of ````run``, one a seed.
    """
    results = [json.loads(file.read_text()) for file in files]
    paper = printed()
    parts = [markdown(comparison(results)), _paper_table(paper)]
    if all(is_published(each["recipe"]) for each in results):
        parts.append(_differences(comparison(results), paper))
    else:
        parts.append("Another recipe than full.yaml was run: don't hold one against the other.\n")
    return "\n".join(["## Run here\n", parts[0], "## Printed in the paper\n", *parts[1:]])


def printed() -> dict[str, Any]:
    """The paper's table."""
    content: dict[str, Any] = json.loads((HERE / "paper.json").read_text())
    return content


def comparison(results: Sequence[Mapping[str, Any]]) -> Comparison:
    """All runs of all files."""
    return Comparison(tuple(row for each in results for row in _rows(each)))


def is_published(recipe: Mapping[str, Any]) -> bool:
    """The record of a recipe is that of full.yaml, with whatever seed."""
    return bool(_plain(recipe) == _plain(record(load_recipe(HERE / "full.yaml"))))


def _plain(recipe: Mapping[str, Any]) -> Any:
    keys = {k: v for k, v in recipe["recipe"].items() if k not in _UNLIKE}
    return json.loads(json.dumps({**recipe, "recipe": keys}))


def _rows(results: Mapping[str, Any]) -> Iterator[ComparisonRow]:
    """One a method."""
    matrices = {
        name: ScoreMatrix.from_record(outcome["matrix"])
        for name, outcome in results["methods"].items()
    }
    last = {name: matrix.last for name, matrix in matrices.items()}
    own, head = last.get("per_task_lora"), last.get("head_only")
    for name, outcome in results["methods"].items():
        cost, seed = Cost(**outcome["cost"]), results["environment"]["seed"]
        yield ComparisonRow.from_matrix(name, matrices[name], cost, own=own, head=head, seed=seed)


def _paper_table(paper: Mapping[str, Any]) -> str:
    header = ["method", *paper["tasks"], "mean", "trained", "MB"]
    rows = [
        [
            row["name"],
            *(f"{score:.2f}" for score in (*row["scores"], row["mean"])),
            row["trained"],
            str(row["megabytes"]),
        ]
        for row in paper["rows"]
    ]
    return f"{table(header, rows)}\n\n{paper['base']}. Source: {paper['source']}.\n"


def _differences(ours: Comparison, paper: Mapping[str, Any]) -> str:
    """Points of ours above the paper's; for the methods that both have."""
    means = {summary.method: summary for summary in ours.summary()}
    rows = []
    for row in paper["rows"]:
        if row["method"] in means:
            summary = means[row["method"]]
            mine = [summary.scores[task].mean for task in paper["tasks"]] + [summary.mean.mean]
            theirs = [*row["scores"], row["mean"]]
            points = [f"{a - b:+.2f}" for a, b in zip(mine, theirs, strict=True)]
            rows.append([row["name"], *points])
    header = ["run here minus printed", *paper["tasks"], "mean"]
    return f"{table(header, rows)}\n"


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="results of `run`, one a seed")
    print(text(parser.parse_args(arguments).files))
