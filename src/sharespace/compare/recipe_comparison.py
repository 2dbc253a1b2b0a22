"""Share beside other methods on the tasks of a recipe: ``sharespace compare``.

Every method learns the same tasks, from the same examples and heads, by the same Trainer. Its
learning rate is the best of the same number of rates on examples that are held out of training, at
the first seed; then it is trained on all of them, at every seed, and scored. The folder of a
comparison gets each result as it comes::

    stream.share.compare/
      lock                          held while the comparison runs
      recipe.json                   the recipe and the rates that it was started with
      rates/share_strict.json       the rate that a method chose, and what was tried
      seed-0/share_strict.json      one run of one method
      seed-0/own/sst2               own LoRAs, which several methods start from
      comparison.csv, comparison.md, comparison.png
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sharespace.compare.bench import OwnLora, Workbench
from sharespace.compare.compared import ComparedMethod, method
from sharespace.compare.comparison import Comparison
from sharespace.compare.job import ComparisonSettings, Outcome
from sharespace.compare.own_folder import load_own, save_own
from sharespace.compare.recipe_jobs import (
    RecipeJobs,
    recipe_jobs,
    recipe_notices,
    recipe_problems,
)
from sharespace.compare.recipe_table import write_results
from sharespace.errors import CorruptStoreError, OptionError, RecipeError, SharespaceError
from sharespace.extras import require
from sharespace.files import disk_errors, lock, make_directory
from sharespace.learn import TrainingSettings
from sharespace.learn.training import quiet
from sharespace.stream.folder import plain, read_json, write_json
from sharespace.stream.learning import check_stream
from sharespace.stream.recipe import Recipe, load_recipe, record, refuse_other
from sharespace.stream.records import Event, Observer, ignore

if TYPE_CHECKING:
    pass

METHODS = (
    "head_only",
    "per_task_lora",
    "share_strict",
    "joint_lora",
    "warm_lora",
    "sequential_lora",
    "o_lora",
    "ewc",
    "replay",
    "osf",
    "ties",
    "task_arithmetic",
    "mean_adapter",
    "random_basis",
)
"""What is compared unless methods are named; ``share_full``, too, where the recipe says
``finetune``."""

RATES = (0.25, 1.0, 4.0)
"""What each method's own learning rate is multiplied with, to find the best."""

_FORMAT = {"format": "sharespace.compare", "version": 1}

_OWN = "per_task_lora"


@dataclass(frozen=True)
class ChosenRate:
    """The learning rate that a method is trained at."""

    method: str
    rate: float
    factor: float
    """Of the recipe's own rate."""
    tried: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Factor -> task -> score on the examples that were held out; empty: nothing was tried."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Factor -> why it cannot be trained at: it diverged."""
    seconds: float = 0.0
    """That the choice took."""

    @property
    def at_the_edge(self) -> bool:
        """True where the best rate is the smallest or the largest of several."""
        factors = [float(f) for f in (*self.tried, *self.dropped)]
        return len(factors) > 1 and self.factor in (min(factors), max(factors))


@dataclass(frozen=True, eq=False)
class RecipeComparison:
    """What came out of a recipe's comparison."""

    comparison: Comparison
    """A row a method and seed."""
    rates: Mapping[str, ChosenRate]
    """Method -> its learning rate, of the methods that train something of their own."""
    unfit: Mapping[str, str]
    """Method that cannot be had for the recipe's model -> why."""
    notices: Sequence[str]
    """What a reader must know, a line each."""
    folder: Path
    """Where the results, the table and the figure are."""

    def to_record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "folder": str(self.folder),
            **self.comparison.to_record(),
            "rates": {name: dict(vars(chosen)) for name, chosen in self.rates.items()},
            "unfit": dict(self.unfit),
            "notices": list(self.notices),
        }


def compare_recipe(
    recipe: Recipe | str | os.PathLike[str],
    methods: Sequence[str] | None = None,
    *,
    seeds: int = 1,
    rates: Sequence[float] = RATES,
    out: str | os.PathLike[str] | None = None,
    observe: Observer | None = None,
    bars: bool = False,
) -> RecipeComparison:
    """Compare Share with other methods on a recipe's tasks, or go on where it was stopped.

    Everything is checked before anything is trained. A run that is in the folder is not run again,
    so that methods and seeds may be added later.

    Args:
        recipe: read, or the path of its file.
        methods: names or short names of ``all_methods``; None: ``METHODS``.
        seeds: how many, from the recipe's own seed on.
        rates: factors of the recipe's learning rates; each method takes the best of them on
            held-out examples. One factor: nothing is tried.
        out: folder of the results; None: ``<share>.compare`` beside the recipe's Share model.
        observe: called after everything that happens.
        bars: show Trainer's progress bars.

    Returns:
        All runs of the methods asked for, and where they are.

    Raises:
        RecipeError: the recipe is wrong, no comparison can be made of it, or the folder has that
            of another one.
        OptionError: an unknown method, one that the model cannot have, or a number out of range.
        StoreLockedError: the comparison is running in another process.
        CorruptStoreError: a record in the folder is damaged.
        MissingExtraError: the extras ``train`` and ``report`` are needed.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    observe = observe or ignore
    names = _names(recipe, methods)
    factors = _factors(rates)
    if seeds < 1:
        raise OptionError(f"seeds={seeds}", "must be at least 1", "Give at least 1")
    require("matplotlib", "report")
    if problems := tuple(recipe_problems(recipe)):
        raise RecipeError(str(recipe.file or "recipe"), problems)
    folder = Path(out) if out is not None else _default_folder(recipe)
    _refuse_other_comparison(recipe, factors, folder)
    with quiet():
        check_stream(recipe, (), observe)
        first = recipe_jobs(recipe, recipe.seed, bars=bars)
        unfit = _unfit(first, names)
        if methods is not None and unfit:
            name, why = next(iter(unfit.items()))
            raise OptionError(f"method {name!r}", why, "Leave it out")
        with disk_errors(folder, "writing the comparison"):
            make_directory(folder)
        with lock(folder / "lock"):
            write_json(folder, "recipe.json", _about(recipe, factors))
            running = _Running(recipe, folder, factors, first, observe, bars)
            for name in names:
                if name not in unfit:
                    running.run(method(name), range(recipe.seed, recipe.seed + seeds))
            result = _result(recipe, folder, [n for n in names if n not in unfit], seeds, unfit)
            write_results(result)
    return result


def _names(recipe: Recipe, methods: Sequence[str] | None) -> tuple[str, ...]:
    """Registered names, each once, own LoRA before what starts from it."""
    wanted = METHODS if methods is None else tuple(methods)
    if not wanted:
        raise OptionError("methods", "none is named", "Name at least one")
    if methods is None and recipe.finetune:
        wanted = (*wanted, "share_full")
    names = dict.fromkeys(method(name).name for name in wanted)
    return tuple(sorted(names, key=lambda name: name != _OWN))


def _factors(rates: Sequence[float]) -> tuple[float, ...]:
    factors = tuple(sorted({float(rate) for rate in rates}))
    if not factors or not all(math.isfinite(f) and f > 0 for f in factors):
        raise OptionError(
            f"rates={list(rates)}", "must be above 0", "Give factors such as 0.25,1,4"
        )
    return factors


def _default_folder(recipe: Recipe) -> Path:
    return recipe.share.with_name(f"{recipe.share.name}.compare")


def _about(recipe: Recipe, factors: Sequence[float]) -> dict[str, Any]:
    return {**_FORMAT, "rates": list(factors), **record(recipe)}


def _refuse_other_comparison(recipe: Recipe, factors: Sequence[float], folder: Path) -> None:
    """Refuse a folder whose results are of another recipe or of other rates."""
    file = folder / "recipe.json"
    if not file.exists():
        if folder.exists() and any(folder.iterdir()):
            why = "is not empty, and has no comparison"
            raise OptionError(str(folder), why, "Choose another folder with out")
        return
    stored = read_json(file)
    if len(stored["tasks"]) != len(recipe.tasks):
        why = (
            f"its comparison is of {len(stored['tasks'])} tasks, the recipe has {len(recipe.tasks)}"
        )
        raise OptionError(str(folder), why, "Choose another folder with out")
    refuse_other(recipe, stored)
    if list(stored["rates"]) != list(factors):
        why = f"its comparison has the rates {stored['rates']}, not {list(factors)}"
        raise OptionError(str(folder), why, "Give those, or another folder with out")


def _unfit(jobs: RecipeJobs, names: Iterable[str]) -> dict[str, str]:
    """Method -> why it cannot be had. Modules that cannot be adapted are refused here, too."""
    bench = Workbench(jobs.jobs, jobs.settings)
    bench.target_shapes()
    reasons = {name: method(name).unfit(bench) for name in names}
    return {name: why for name, why in reasons.items() if why is not None}


@dataclass(eq=False)
class _Running:
    """A comparison that is being run; its folder is locked."""

    recipe: Recipe
    folder: Path
    factors: tuple[float, ...]
    first: RecipeJobs
    """Jobs of the first seed."""
    observe: Observer
    bars: bool
    rates: dict[str, ChosenRate] = field(default_factory=dict)
    """Method -> its rate, of those that were asked for."""
    held_own: dict[float, dict[str, OwnLora]] = field(default_factory=dict)
    """Factor -> own LoRAs that were trained without what is held out."""

    def run(self, compared: ComparedMethod, seeds: Iterable[int]) -> None:
        """Run a method at the seeds that the folder lacks."""
        for seed in seeds:
            folder = self.folder / f"seed-{seed}"
            file = f"{plain(compared.name)}.json"
            if (folder / file).exists():
                self._say(compared, f"seed {seed} is there already")
                continue
            factor = self._rate(compared).factor if compared.trains else 1.0
            settings = self._settings(compared, factor)
            jobs = self.first
            if seed != self.recipe.seed:
                jobs = recipe_jobs(self.recipe, seed, bars=self.bars)
                settings = replace(settings, seed=seed, build=jobs.settings.build)
            uses_own = _uses_own(compared)
            bench = Workbench(jobs.jobs, settings, load_own(folder / "own") if uses_own else None)
            outcome = compared(bench)
            make_directory(folder)
            if uses_own:
                save_own(folder / "own", bench.own)
            write_json(folder, file, {**_FORMAT, "seed": seed, "outcome": outcome.to_record()})
            mean = fmean(outcome.matrix.last.values())
            self._say(compared, f"seed {seed}: mean score {mean:.2f}, {outcome.seconds:.1f} s")

    def _settings(self, compared: ComparedMethod, factor: float) -> ComparisonSettings:
        """The recipe's numbers at own LoRA's rate, and at a factor of the method's own rate."""
        base = self.first.settings
        changed: dict[str, Any] = {}
        if _uses_own(compared) and compared.name != _OWN:
            own = self._rate(method(_OWN)).factor
            changed["lora"] = _scaled(base.lora, own)
        if compared.trains is not None:
            changed[compared.trains] = _scaled(_base(base, compared), factor)
        return replace(base, **changed)

    def _rate(self, compared: ComparedMethod) -> ChosenRate:
        """The rate that a method chose, or chooses now."""
        name = compared.name
        folder, file = self.folder / "rates", f"{plain(name)}.json"
        if name not in self.rates and (folder / file).exists():
            self.rates[name] = _read_rate(folder / file)
        if name not in self.rates:
            self.rates[name] = self._choose(compared)
            make_directory(folder)
            write_json(folder, file, {**_FORMAT, **vars(self.rates[name])})
        return self.rates[name]

    def _choose(self, compared: ComparedMethod) -> ChosenRate:
        """Train a method at every factor, without what is held out, and take the best."""
        base = _base(self.first.settings, compared).rate
        if len(self.factors) == 1:
            (factor,) = self.factors
            return ChosenRate(compared.name, factor * base, factor)
        began = time.perf_counter()
        tried: dict[str, dict[str, float]] = {}
        dropped: dict[str, str] = {}
        for factor in self.factors:
            try:
                scores = self._held_out(compared, factor)
            except SharespaceError as error:
                # A training that diverged has no score; the other rates do.
                dropped[f"{factor:g}"] = str(error)
                self._say(compared, f"rate {factor * base:g} is dropped: {error}")
            else:
                tried[f"{factor:g}"] = scores
                mean = fmean(scores.values())
                self._say(compared, f"rate {factor * base:g}: {mean:.2f} on held-out examples")
        if not tried:
            raise OptionError(
                f"method {compared.name!r}",
                f"cannot be trained at any rate ({next(iter(dropped.values()))})",
                "Give smaller factors with rates, or leave the method out",
            )
        factor, seconds = best_factor(tried), time.perf_counter() - began
        return ChosenRate(compared.name, factor * base, factor, tried, dropped, seconds)

    def _held_out(self, compared: ComparedMethod, factor: float) -> dict[str, float]:
        """Task -> score on what is held out, of a method at a factor of its rate."""
        settings = self._settings(compared, factor)
        if not _uses_own(compared):
            return dict(compared(Workbench(self.first.choosing, settings)).matrix.last)
        own_factor = factor if compared.name == _OWN else self._rate(method(_OWN)).factor
        bench = Workbench(self.first.choosing, settings, self.held_own.get(own_factor))
        scores = dict(compared(bench).matrix.last)
        self.held_own[own_factor] = bench.own
        return scores

    def _say(self, compared: ComparedMethod, text: str) -> None:
        self.observe(Event("learning", compared.name, f"{compared.name}: {text}"))


def _uses_own(compared: ComparedMethod) -> bool:
    """True where a method is, or starts from, own LoRAs."""
    return compared.name == _OWN or compared.trains in (None, "coefficients", "warm")


def _base(settings: ComparisonSettings, compared: ComparedMethod) -> TrainingSettings:
    """The training whose rate a method chooses, as the recipe has it."""
    training: TrainingSettings | None = getattr(settings, str(compared.trains))
    return settings.lora if training is None else training


def _scaled(training: TrainingSettings, factor: float) -> TrainingSettings:
    return replace(training, learning_rate=factor * training.rate)


def best_factor(tried: Mapping[str, Mapping[str, float]]) -> float:
    """The factor with the best mean over the tasks; of equal ones the smallest.

    Each task counts by where its score lies between its worst and its best, so that a task with a
    loss weighs as much as one with percentages.

    Args:
        tried: factor -> task -> score, at least one.
    """
    first = next(iter(tried.values()))
    spans = {task: [scores[task] for scores in tried.values()] for task in first}

    def place(task: str, score: float) -> float:
        low, high = min(spans[task]), max(spans[task])
        return (score - low) / (high - low) if high > low else 0.0

    means = {f: fmean(place(t, score) for t, score in tried[f].items()) for f in tried}
    return float(max(sorted(means, key=float), key=means.__getitem__))


def _read_rate(file: Path) -> ChosenRate:
    stored = read_json(file)
    try:
        return ChosenRate(**{k: v for k, v in stored.items() if k not in _FORMAT})
    except TypeError as error:
        raise CorruptStoreError(
            str(file), f"no record of a rate ({error})", "Remove it: it is chosen again"
        ) from error


def _result(
    recipe: Recipe, folder: Path, names: Sequence[str], seeds: int, unfit: Mapping[str, str]
) -> RecipeComparison:
    """What the folder has of these methods and seeds."""
    rows = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        outcomes = {
            name: _outcome(folder / f"seed-{seed}" / f"{plain(name)}.json") for name in names
        }
        own, head = (
            dict(outcomes[name].matrix.last) if name in outcomes else None
            for name in (_OWN, "head_only")
        )
        rows += [outcome.row(own=own, head=head, seed=seed) for outcome in outcomes.values()]
    rates = {
        name: _read_rate(folder / "rates" / f"{plain(name)}.json")
        for name in names
        if method(name).trains is not None
    }
    notices = [*recipe_notices(recipe), *_rate_notices(rates)]
    if not {_OWN, "head_only"} <= set(names):
        notices.append("gain retained needs the methods lora and head")
    return RecipeComparison(Comparison(tuple(rows)), rates, unfit, tuple(notices), folder)


def _outcome(file: Path) -> Outcome:
    try:
        return Outcome.from_record(read_json(file)["outcome"])
    except (KeyError, TypeError, OptionError) as error:
        raise CorruptStoreError(
            str(file), f"no record of a run ({error})", "Remove it: it is run again"
        ) from error


def _rate_notices(rates: Mapping[str, ChosenRate]) -> Iterator[str]:
    for name, chosen in rates.items():
        if chosen.at_the_edge:
            yield (
                f"{name}: the best rate ({chosen.rate:g}) is at the edge of those tried; another "
                "may be better"
            )
