"""The one table of all comparisons: methods, their scores over several runs, and what they cost.

It is markdown for files and rich for a terminal; size claims are markdown too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any

from rich.markup import escape
from rich.table import Table

from sharespace.compare.size import Claim, Reach
from sharespace.errors import OptionError
from sharespace.stream import measures
from sharespace.stream.measures import ScoreMatrix

_AFTER_TASKS = (
    "mean",
    "forgetting",
    "BWT",
    "gain retained",
    "trained a task",
    "with head",
    "paper's count",
    "bytes on disk",
    "runs",
)

_NONE = "-"


@dataclass(frozen=True)
class Cost:
    """What a method takes."""

    trainable: float
    """Numbers trained per task, heads excluded (mean over the tasks); 0: nothing is trained."""
    trainable_with_heads: float
    """The same, heads included."""
    nbytes: int
    """Every byte on disk that all tasks need beside the base model, heads included."""
    paper_count: float | None = None
    """Coefficients only (as the paper counts): numbers a task; None for other methods."""
    seconds: float | None = None
    """Seconds of training, of all tasks together; None: it was not measured."""


@dataclass(frozen=True)
class ComparisonRow:
    """One run of one method."""

    method: str
    scores: Mapping[str, float]
    """Task -> score at the end."""
    cost: Cost
    forgetting: float | None = None
    """Points; None for a method that has no steps. Likewise ``backward_transfer``."""
    backward_transfer: float | None = None
    gain_retained: float | None = None
    """Fraction; None where own LoRA or head only was not run, or own LoRA gains nothing."""
    seed: int = 0
    order: str = ""
    """Name of the order of the tasks, where there are several."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", MappingProxyType(dict(self.scores)))

    @property
    def mean(self) -> float:
        """Mean score over the tasks (ACC)."""
        return fmean(self.scores.values())

    @classmethod
    def from_matrix(
        cls,
        method: str,
        matrix: ScoreMatrix,
        cost: Cost,
        *,
        own: Mapping[str, float] | None = None,
        head: Mapping[str, float] | None = None,
        seed: int = 0,
        order: str = "",
    ) -> ComparisonRow:
        """A row from an R matrix.

        Args:
            method: its name.
            matrix: every task learned and scored at the end.
            cost: of the method.
            own: task -> score of own LoRA, of the same seed.
            head: task -> score of the head alone.
            seed: of the run.
            order: of its tasks.

        Raises:
            OptionError: the matrix is not complete, or ``own`` or ``head`` are of other tasks.
        """
        both = own is not None and head is not None
        steps = len(matrix.steps) > 1
        return cls(
            method,
            matrix.last,
            cost,
            measures.forgetting(matrix) if steps else None,
            measures.backward_transfer(matrix) if steps else None,
            measures.gain_retained(matrix.last, own or {}, head or {}) if both else None,
            seed,
            order,
        )

    def to_record(self) -> dict[str, Any]:
        """The row as JSON values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "scores": dict(self.scores), "cost": asdict(self.cost)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ComparisonRow:
        """The row that ``to_record`` made a record of.

        Args:
            record: values as JSON has them.

        Raises:
            OptionError: the record does not fit.
        """
        try:
            return cls(**{**record, "cost": Cost(**record["cost"])})
        except (TypeError, KeyError, ValueError) as error:
            raise OptionError("row", f"its record does not fit: {error}") from error


@dataclass(frozen=True)
class Spread:
    """A figure over several runs."""

    mean: float
    std: float | None
    """Sample standard deviation (n - 1); None for one run."""


@dataclass(frozen=True)
class Summary:
    """One method over its runs."""

    method: str
    runs: int
    scores: Mapping[str, Spread]
    mean: Spread
    forgetting: Spread | None
    """None where a run has none; likewise below."""
    backward_transfer: Spread | None
    gain_retained: Spread | None
    trainable: float
    trainable_with_heads: float
    nbytes: float
    paper_count: float | None
    seconds: float | None


@dataclass(frozen=True)
class Comparison:
    """Runs of several methods on the same tasks.

    Raises:
        OptionError: there are no rows, rows of different tasks, or a run that is there twice.
    """

    rows: tuple[ComparisonRow, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        if not self.rows or not self.rows[0].scores:
            raise OptionError("comparison", "no rows or no tasks", "Give one run at least")
        seen = set()
        for row in self.rows:
            run = (row.method, row.seed, row.order)
            if run in seen:
                why = f"{row.method!r} twice with seed {row.seed} and order {row.order!r}"
                raise OptionError("comparison", why, "Name a variant of a method differently")
            seen.add(run)
            if set(row.scores) != set(self.tasks):
                why = f"{row.method!r} has the tasks {sorted(row.scores)}, not {sorted(self.tasks)}"
                raise OptionError("comparison", why, "Compare the same tasks")

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order of the first row."""
        return tuple(self.rows[0].scores)

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order in which they first came."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, ascending."""
        return tuple(sorted({row.seed for row in self.rows}))

    @property
    def orders(self) -> tuple[str, ...]:
        """All orders of the tasks, in the order in which they first came."""
        return tuple(dict.fromkeys(row.order for row in self.rows))

    def summary(self) -> tuple[Summary, ...]:
        """Mean and standard deviation of every method over its runs."""
        return tuple(
            _summary(self.tasks, [row for row in self.rows if row.method == method])
            for method in self.methods
        )

    def to_record(self) -> dict[str, Any]:
        """The comparison as JSON values: every run, and the summary for readers."""
        return {
            "seeds": list(self.seeds),
            "orders": list(self.orders),
            "rows": [row.to_record() for row in self.rows],
            "summary": [asdict(summary) for summary in self.summary()],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Comparison:
        """The comparison that ``to_record`` made a record of; its summary is computed again.

        Args:
            record: values as JSON has them.

        Raises:
            OptionError: the record does not fit.
        """
        if "rows" not in record:
            raise OptionError("comparison", "no 'rows' in its record")
        return cls(tuple(ComparisonRow.from_record(row) for row in record["rows"]))


def _summary(tasks: tuple[str, ...], runs: list[ComparisonRow]) -> Summary:
    counts = [run.cost.paper_count for run in runs]
    return Summary(
        method=runs[0].method,
        runs=len(runs),
        scores={task: _spread([run.scores[task] for run in runs]) for task in tasks},
        mean=_spread([run.mean for run in runs]),
        forgetting=_known([run.forgetting for run in runs]),
        backward_transfer=_known([run.backward_transfer for run in runs]),
        gain_retained=_known([run.gain_retained for run in runs]),
        trainable=fmean(run.cost.trainable for run in runs),
        trainable_with_heads=fmean(run.cost.trainable_with_heads for run in runs),
        nbytes=fmean(run.cost.nbytes for run in runs),
        paper_count=spread.mean if (spread := _known(counts)) else None,
        seconds=spread.mean if (spread := _known([r.cost.seconds for r in runs])) else None,
    )


def _spread(values: list[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def _known(values: list[float | None]) -> Spread | None:
    """None where one is missing: a mean of the others would be of other runs than its row."""
    known = [value for value in values if value is not None]
    return _spread(known) if len(known) == len(values) else None


def markdown(comparison: Comparison) -> str:
    """The table as markdown, and a line that says what it shows.

    Args:
        comparison: what ``run`` gave.
    """
    rows = [_cells(summary) for summary in comparison.summary()]
    return f"{grid(_header(comparison), rows)}\n\n{caption(comparison)}\n"


def rich_table(comparison: Comparison) -> Table:
    """The same table for a terminal.

    Args:
        comparison: what ``run`` gave.
    """
    table = Table(caption=caption(comparison))
    for i, name in enumerate(_header(comparison)):
        table.add_column(escape(name), justify="right" if i else "left", overflow="fold")
    for summary in comparison.summary():
        table.add_row(*(escape(cell) for cell in _cells(summary)))
    return table


def caption(comparison: Comparison) -> str:
    """What the figures are, and over how many seeds and orders.

    Args:
        comparison: what ``run`` gave.
    """
    seeds, orders = len(comparison.seeds), len(comparison.orders)
    over = f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
    if orders > 1:
        over += f" and {orders} orders of the tasks"
    text = "Scores after the last task; forgetting and BWT in points."
    if any(summary.runs > 1 for summary in comparison.summary()):
        text += f" Mean ± sample standard deviation over the runs ({over})."
    else:
        text += f" One run ({over})."
    return (
        f"{text} Trained: numbers per task, without and with the head. "
        "Paper's count: coefficients per task alone. Bytes: all tasks, heads included."
    )


def claims_markdown(claims: Sequence[Claim], reached: Sequence[tuple[Reach, Reach]] = ()) -> str:
    """Size claims counted both ways.

    Args:
        claims: a line each.
        reached: (paper's count, every byte) of some ratios, told below the table.
    """
    header = ["tasks", "LoRA", "paper's count", "times", "LoRA, all bytes", "all bytes", "times"]
    rows = [
        [
            f"{c.paper.tasks:,}",
            *(f"{c.paper.lora:,}", f"{c.paper.share:,}", f"{c.paper.ratio:.1f}"),
            *(f"{c.total.lora:,}", f"{c.total.share:,}", f"{c.total.ratio:.1f}"),
        ]
        for c in claims
    ]
    lines = [
        f"- {paper.ratio:g} times smaller: paper's count {_reached(paper)}; "
        f"every byte {_reached(total)}"
        for paper, total in reached
    ]
    return "\n".join([grid(header, rows), "", "Sizes in bytes.", *lines, ""])


def _reached(reach: Reach) -> str:
    if reach.tasks is None:
        return f"never (limit {reach.limit:.1f})"
    return f"from {reach.tasks:,} {'task' if reach.tasks == 1 else 'tasks'} on"


def _header(comparison: Comparison) -> list[str]:
    return ["method", *comparison.tasks, *_AFTER_TASKS]


def _cells(summary: Summary) -> list[str]:
    """One line of the table."""
    return [
        summary.method,
        *(spread_text(spread) for spread in summary.scores.values()),
        spread_text(summary.mean),
        spread_text(summary.forgetting, 2),
        spread_text(summary.backward_transfer, 2, sign="+"),
        _fraction(summary.gain_retained),
        _number(summary.trainable),
        _number(summary.trainable_with_heads),
        _number(summary.paper_count),
        _number(summary.nbytes),
        str(summary.runs),
    ]


def spread_text(spread: Spread | None, digits: int = 1, sign: str = "") -> str:
    """Mean, and standard deviation where there are several runs; ``-`` for None."""
    if spread is None:
        return _NONE
    # Rounded before it is written, and 0.0 added: a tiny negative number would read "-0.00".
    mean = f"{round(spread.mean, digits) + 0.0:{sign}.{digits}f}"
    return mean if spread.std is None else f"{mean} ± {spread.std:.{digits}f}"


def _fraction(spread: Spread | None) -> str:
    if spread is None:
        return _NONE
    hundred = Spread(100 * spread.mean, None if spread.std is None else 100 * spread.std)
    return f"{spread_text(hundred)} %"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, the first column to the left, the others to the right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
