"""Arguments and options that several commands share, and their values as people type them."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sharespace.errors import OptionError, TaskExistsError
from sharespace.subspace.basis_methods import shipped_methods
from sharespace.words import visible

if TYPE_CHECKING:
    from sharespace.subspace.executor import Executor

AdapterArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="ADAPTER...",
        help="Paths (PEFT, diffusers, kohya), globs, Hub ids, or NAME=PATH. "
        "A task is named after its adapter's folder.",
        show_default=False,
    ),
]

ShareArgument = Annotated[Path, typer.Argument(metavar="SHARE", help="A stored Share model.")]

InboxArgument = Annotated[
    str,
    typer.Argument(metavar="INBOX", help="A folder, or a URL such as s3://bucket/inbox."),
]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]

MethodOption = Annotated[
    str,
    typer.Option(metavar="NAME", help=f"How bases are found: {', '.join(shipped_methods())}."),
]

CentredFlag = Annotated[
    bool, typer.Option("--centred", help="Centre the columns, if the method can.")
]

KOption = Annotated[
    int | None, typer.Option("--k", help="Subspace dimension of every layer and side.")
]

VarianceOption = Annotated[
    float | None,
    typer.Option(help="Or the smallest k that explains this fraction; 1 keeps all. Default 0.99."),
]

ErrorOption = Annotated[
    float | None,
    typer.Option(help="Or the smallest k that leaves no task a larger error in any layer."),
]

BudgetOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Or bytes for bases and coefficients: 500k, 2MB, 1GiB."),
]

PseudoRankOption = Annotated[
    int | None, typer.Option("--p", help="Pseudo-rank of the tasks; default min(k, r), exact.")
]

MemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory that one layer of all these adapters may take (default 2GB); larger ones are "
        "built out of core.",
    ),
]

BaseOption = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Base model, where the adapters do not say or disagree."),
]

DTypeOption = Annotated[
    str | None, typer.Option(help="Stored dtype: float32, float16, bfloat16, float64.")
]

DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 ...")]

WorkersOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|ADDRESS",
        help="Compute layers in N processes, or on the Dask cluster with its scheduler at ADDRESS.",
    ),
]

SeedOption = Annotated[int, typer.Option(help="Seed of the randomised range finder.")]

CapOption = Annotated[
    int | None, typer.Option("--cap", help="A new cap on the subspace dimension of every layer.")
]

MaxErrorOption = Annotated[
    float | None,
    typer.Option(
        "--max-error",
        metavar="X",
        help="Refuse what would leave a task, old or new, with a larger relative error (0.1).",
    ),
]

ComparedRecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="As for run; every task has data and no adapter.")
]

MethodsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Of head, lora, share, share-full, joint, warm, sequential, o-lora, ewc, replay, osf, "
        "ties, task-arithmetic, mean, random, projection and own_svd; default: all that fit.",
    ),
]

SeedsOption = Annotated[int, typer.Option(help="How many, from the recipe's seed on.")]

RatesOption = Annotated[
    str,
    typer.Option(
        metavar="X,...",
        help="Each method takes the best of these multiples of its learning rate, on examples held "
        "out of training; 1: the recipe's.",
    ),
]

ComparisonOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where results go; default <share>.compare beside the recipe's share.",
    ),
]

CsvOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A line a method and seed, in a file more.")
]

RepositoryArgument = Annotated[
    str, typer.Argument(metavar="REPO", help="USER/REPO on the Hugging Face Hub; made if new.")
]

PullRequestFlag = Annotated[
    bool, typer.Option("--pull-request", help="Propose it, instead of committing.")
]

LicenseOption = Annotated[
    str | None,
    typer.Option(
        "--license", metavar="ID", help="Licence that the model card states, such as apache-2.0."
    ),
]

ConflictOption = Annotated[
    Literal["refuse", "rename", "replace"],
    typer.Option(help="What to do where other content has the task's name."),
]

WeightArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="TASK=WEIGHT...", help="Tasks and their weights; a negative one subtracts."
    ),
]

CombinationOption = Annotated[
    str, typer.Option(metavar="NAME", help="linear (exact), task_arithmetic (the same) or ties.")
]

DensityOption = Annotated[
    float | None,
    typer.Option(help="ties: fraction of each core's entries that stays; default 0.2."),
]

ScaleOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN=X", help="Factor of all weights in the layers that match; repeatable."
    ),
]

HeadsOption = Annotated[
    str | None,
    typer.Option(metavar="TASK", help="Whose head and tokenizer it has, where they differ."),
]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?)?b?\s*", re.IGNORECASE)


def adapter_paths(arguments: Iterable[str]) -> dict[str, str]:
    """Task name -> path or Hub id, from arguments ``PATH``, ``GLOB`` or ``NAME=PATH``.

    Raises:
        OptionError: a glob matches nothing.
        TaskExistsError: two of them have the same name.
    """
    from sharespace.formats import default_name

    paths: dict[str, str] = {}
    for argument in arguments:
        name, path = _split_name(argument)
        for match in _expanded(path):
            task = name if name is not None else default_name(match)
            if task in paths:
                raise TaskExistsError(
                    f"task {task!r}",
                    f"two adapters have that name: {paths[task]} and {match}",
                    "Name one of them yourself: NAME=PATH",
                )
            paths[task] = match
    return paths


def numbers_by_name(arguments: Iterable[str]) -> dict[str, float]:
    """Name -> number, from arguments ``NAME=NUMBER``; a name may hold an equals sign.

    Raises:
        OptionError: an argument is not of that form, or a name stands twice.
    """
    numbers: dict[str, float] = {}
    for argument in arguments:
        name, equals, text = argument.rpartition("=")
        try:
            number = float(text)
        except ValueError:
            equals = ""
        if not equals or not name or name in numbers:
            why = "stands twice" if equals and name in numbers else "is not NAME=NUMBER"
            raise OptionError(f"{argument!r}", why, "For example legal=0.7")
        numbers[name] = number
    return numbers


def _split_name(argument: str) -> tuple[str | None, str]:
    """``NAME=PATH``; what exists as a path as it stands is a path."""
    name, equals, path = argument.partition("=")
    if not equals or not name or os.path.lexists(argument):
        return None, argument
    return name, path


def _expanded(path: str) -> list[str]:
    """A shell expands globs itself; this is for those in quotes and for scripts."""
    if not any(c in path for c in "*?[") or os.path.lexists(path):
        return [path]
    pattern = Path(path).expanduser()
    matches = sorted(
        str(p) for p in Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    )
    if not matches:
        raise OptionError(f"adapters {path!r}", "nothing matches", "Check the path")
    return matches


def names(text: str | None) -> list[str] | None:
    """Names with commas between them; None where there is no text."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def numbers(option: str, text: str) -> list[float]:
    """Numbers with commas between them.

    Raises:
        OptionError: one is no number.
    """
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise OptionError(
            f"{option} {text}", "is no list of numbers", "Give 0.25,1,4, say"
        ) from error


def optional_size(text: str | None) -> int | None:
    """``size_in_bytes`` of an option that may have been left out."""
    return None if text is None else size_in_bytes(text)


def size_in_bytes(text: str) -> int:
    """``500000``, ``500k``, ``1.5MB`` (powers of ten) or ``2MiB`` (powers of two).

    Raises:
        OptionError: it is none of these.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise OptionError(f"size {text!r}", "not a number of bytes", "For example 500k, 2MB, 1GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


@contextmanager
def layer_executor(workers: str | None) -> Iterator[Executor]:
    """Where layers are computed: here for None, else in processes or on the cluster at an address.

    Raises:
        OptionError: neither a number nor an address.
        ClusterError: there is no cluster at the address.
        MissingExtraError: Dask is not installed.
    """
    from sharespace.subspace.executor import LOCAL, Dask

    if workers is None:
        yield LOCAL
        return
    with Dask(_parsed(workers)) as cluster:
        yield cluster


def _parsed(workers: str) -> int | str:
    if workers.lstrip("-").isdecimal():
        return int(workers)
    if ":" not in workers:
        raise OptionError(
            f"--workers {workers!r}",
            "neither a number nor the address of a Dask scheduler",
            "For example --workers 4, or --workers tcp://10.0.0.1:8786",
        )
    return workers


def on_terminal() -> bool:
    """True where a person reads standard error."""
    return sys.stderr.isatty()


@contextmanager
def layer_progress(doing: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar over layers on standard error; None where that is not a terminal."""
    if not on_terminal():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[at]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, at="", total=None)

        def advance(module: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, at=escape(visible(module)))

        yield advance


@contextmanager
def stopped_by_signals() -> Iterator[Event]:
    """An event that SIGINT and SIGTERM set; a second signal acts as it always does."""
    stop = Event()
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        # The batch that was begun is brought to its end; who cannot wait signals again.
        signal.signal(number, before[signal.Signals(number)])

    for one in before:
        signal.signal(one, handle)
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
