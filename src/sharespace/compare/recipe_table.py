"""The table, the CSV file and the figure of a recipe's comparison."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sharespace.compare.comparison import Spread, Summary, grid, spread_text
from sharespace.compare.figures import INK, PALE, Panel, look, picture, tidy
from sharespace.files import disk_errors, make_directory, write_files
from sharespace.words import human

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sharespace.compare.recipe_comparison import ChosenRate, RecipeComparison

COLUMNS = (
    "method",
    "score",
    "forgetting",
    "gain retained",
    "numbers trained",
    "bytes",
    "seconds",
    "rate",
)


def cells(result: RecipeComparison) -> list[list[str]]:
    """The table of a comparison: a line a method, those that cannot be had last.

    Args:
        result: of ``compare_recipe``.

    Returns:
        Texts, in the order of ``COLUMNS``.
    """
    lines = [_line(summary, result.rates) for summary in result.comparison.summary()]
    blank = [""] * (len(COLUMNS) - 2)
    return [*lines, *([name, "not for this model", *blank] for name in result.unfit)]


def _line(summary: Summary, rates: Mapping[str, ChosenRate]) -> list[str]:
    gain = summary.gain_retained
    hundred = gain and Spread(100 * gain.mean, None if gain.std is None else 100 * gain.std)
    rate = rates.get(summary.method)
    return [
        summary.method,
        spread_text(summary.mean, 2),
        spread_text(summary.forgetting, 2),
        f"{spread_text(hundred)} %" if hundred else spread_text(None),
        f"{summary.trainable:,.0f}",
        human(round(summary.nbytes)),
        "-" if summary.seconds is None else f"{summary.seconds:.1f}",
        "-" if rate is None else f"{rate.rate:g}",
    ]


def write_csv(result: RecipeComparison, file: str | os.PathLike[str]) -> None:
    """Write a line a method and seed, with the score of every task.

    Args:
        result: of ``compare_recipe``.
        file: is replaced.

    Raises:
        StoreError: the disk refuses.
    """
    path, tasks = Path(file), result.comparison.tasks
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_CSV_COLUMNS, *tasks])
    for row in result.comparison.rows:
        rate = result.rates.get(row.method)
        writer.writerow(
            [
                *(row.method, row.seed, row.mean, row.forgetting, row.gain_retained),
                *(row.cost.trainable, row.cost.trainable_with_heads, row.cost.nbytes),
                *(row.cost.seconds, None if rate is None else rate.rate),
                *(row.scores[task] for task in tasks),
            ]
        )
    with disk_errors(path, "writing the table"):
        make_directory(path.parent)
        write_files(path.parent, [(path.name, [text.getvalue().encode()])])


_CSV_COLUMNS = (
    "method",
    "seed",
    "score",
    "forgetting",
    "gain_retained",
    "numbers_trained",
    "numbers_trained_with_heads",
    "bytes",
    "seconds",
    "learning_rate",
)


def write_results(result: RecipeComparison) -> None:
    """Write ``comparison.csv``, ``comparison.md`` and ``comparison.png`` into the folder of a
    comparison.

    Args:
        result: of ``compare_recipe``.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StoreError: the disk refuses.
    """
    folder = result.folder
    write_csv(result, folder / "comparison.csv")
    lines = [f"# {folder.name}", "", grid(COLUMNS, cells(result)), ""]
    lines += [f"- {name}: not for this model: {why}" for name, why in result.unfit.items()]
    lines += [f"- {notice}" for notice in result.notices]
    write_files(folder, [("comparison.md", ["\n".join([*lines, ""]).encode()])])
    draw_comparison(result, folder / "comparison.png")


def draw_comparison(result: RecipeComparison, path: Path) -> None:
    """Draw the mean score of every method, and score against numbers trained and stored bytes.

    Args:
        result: of ``compare_recipe``.
        path: of a PNG, which is replaced.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    summaries = result.comparison.summary()
    trained = {s.method: s.trainable for s in summaries}
    stored = {s.method: s.nbytes for s in summaries}
    panels = [
        Panel("mean score at the end", partial(_draw_scores, summaries)),
        Panel("score, by numbers trained a task", partial(_draw_cost, summaries, trained)),
        Panel("score, by bytes of all tasks", partial(_draw_cost, summaries, stored)),
    ]
    picture(path, "", panels)


def _draw_scores(summaries: Sequence[Summary], axes: Axes) -> None:
    places = range(len(summaries))
    means = [s.mean.mean for s in summaries]
    spreads = [s.mean.std or 0.0 for s in summaries]
    axes.errorbar(means, places, xerr=spreads, fmt="o", color=INK, ecolor=PALE)
    axes.set_yticks(places, [s.method for s in summaries])
    axes.invert_yaxis()
    axes.set_xlabel("mean score")
    tidy(axes, "x")


def _draw_cost(summaries: Sequence[Summary], costs: Mapping[str, float], axes: Axes) -> None:
    for index, summary in enumerate(summaries):
        colour, mark = look(index)
        axes.plot(
            costs[summary.method], summary.mean.mean, mark, color=colour, label=summary.method
        )
    # Linear below 1: a method that trains nothing has 0.
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_ylabel("mean score")
    tidy(axes)
    axes.legend(fontsize="x-small", frameon=False)
