"""What the commands print: sentences and tables for people, or the records of ``json_records``.

One function a result, in the order of the commands; each takes ``as_json``.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table

from sharespace.cli import json_records
from sharespace.cli.tables import (
    fitted,
    layer_table,
    markup,
    new_table,
    storage_sentence,
    task_table,
)
from sharespace.report.warnings import Notice
from sharespace.share import Share
from sharespace.store import Checkout, Pruned, Report, Version
from sharespace.subspace.combine import combination_method
from sharespace.subspace.fidelity import (
    Bytes,
    Fidelity,
    some_losses,
)
from sharespace.subspace.plan import Baselines, BuildPlan, StorageSummary, judge_stored
from sharespace.words import (
    count,
    error_text,
    first_names,
    human,
    k_span,
    percent,
    visible,
)

if TYPE_CHECKING:
    from sharespace.compare import RecipeComparison
    from sharespace.demo import DemoResult
    from sharespace.errors import SharespaceError
    from sharespace.gather import Gathered, Refusal, Submission
    from sharespace.report import WrittenReport
    from sharespace.stream import Event, RouterResult, StreamResult

_console = Console(highlight=False)


def print_build(share: Share, path: Path, as_json: bool) -> None:
    if as_json:
        return _json(json_records.built_record(share, str(path)))
    model = share.model
    _say(
        f"Built [bold]{markup(str(path))}[/]: {count(len(model.tasks), 'task')} in "
        f"{count(len(model.layers), 'layer')} of {_base(model.base.id)}, "
        f"{k_span(layer.k for layer in model.layers.values())}, method {model.settings.method}."
    )
    _print_out_of_core(layer.streamed for layer in model.layers.values())
    _print_table(share.fidelity())
    _print_warnings(share.fidelity(), json_records.notices_of(share))
    return _judged(share.fidelity(), path)


def print_merge(before: Share, after: Share, path: Path, as_json: bool) -> None:
    added = [name for name in after.tasks if name not in before.tasks]
    k_before = {
        module: before.model.layers[module].k if module in before.model.layers else (0, 0)
        for module in after.model.layers
    }
    if as_json:
        record = json_records.built_record(after, str(path), added)
        k_record = {module: list(k) for module, k in k_before.items()}
        return _json({**record, "added": added, "k_before": k_record})
    layers = after.model.layers
    grown = sum(layers[module].k != k for module, k in k_before.items())
    largest = max((max(layer.k) for layer in layers.values()), default=0)
    growth = f"{grown} of {count(len(layers), 'layer')} grew; the largest k is {largest}"
    _say(
        f"Merged {_names(added)} into [bold]{markup(str(path))}[/]: version {after.version} has "
        f"{count(len(after.tasks), 'task')}. {growth}{' (--cap N limits it)' if grown else ''}."
    )
    _print_out_of_core(layer.streamed for layer in layers.values())
    _print_table(after.fidelity())
    _print_warnings(after.fidelity(), json_records.notices_of(after, added))
    return _judged(after.fidelity(), path)


def print_combination(share: Share, name: str, path: Path, as_json: bool) -> None:
    task = share.task(name)
    if as_json:
        return _json(json_records.combined_record(share, name, str(path)))
    low, high = min(task.ranks.values(), default=0), max(task.ranks.values(), default=0)
    method = task.provenance.source.partition(" ")[0]
    of_what = "" if combination_method(method).is_sum else f" from {method} of the stored tasks"
    bound = f"{percent(task.ledger.bound)}{of_what}"
    source = markup(task.provenance.source)
    _say(
        f"Combined {source} into {_names([name])}: rank {low} to {high} in "
        f"{count(len(task.ranks), 'layer')}, error at most {bound}. "
        f"[bold]{markup(str(path))}[/] version {share.version} has "
        f"{count(len(share.tasks), 'task')}."
    )
    budget = share.model.settings.budget
    taken = share.fidelity().bytes
    if budget is not None and taken.basis + taken.coefficients > budget:
        over = human(taken.basis + taken.coefficients - budget)
        _say(f"That is {over} more than the budget, until the next merge splits it again.")
    return None


def print_change(version: Version, what: str, as_json: bool) -> None:
    if as_json:
        return _json(json_records.version_record(version))
    return _say(
        f"{markup(what)}: version {version.number} has {count(version.task_count, 'task')}."
    )


def print_plan(build_plan: BuildPlan, as_json: bool) -> None:
    if as_json:
        return _json(json_records.plan_record(build_plan))
    _print_table(build_plan.fidelity, build_plan.baselines)
    coefficients = build_plan.coefficients_only
    _say(
        f"Coefficients only (as the paper counts): {count(coefficients.parameters, 'number')}, "
        f"{human(coefficients.nbytes)}."
    )
    if build_plan.break_even:
        adapters = count(build_plan.break_even, "adapter")
        _say(f"The Share model is the smaller one from {adapters} like these on.")
    else:
        _say("The Share model is not the smaller one, however many adapters like these there are.")
    if build_plan.per_task_modules:
        _say(f"{count(build_plan.per_task_modules, 'layer')} would be stored per task.")
    if build_plan.budget is not None:
        _say(_budget_choice(build_plan.storage))
    _print_verdict(build_plan.verdict, build_plan.reason)
    if build_plan.verdict == "worth it":
        return _say("Next: sharespace init OUT ADAPTER... with the same options")
    if build_plan.budget is None:
        return _say(f"Next: {_with_budget(build_plan.bytes)}")
    return None


def _print_verdict(verdict: str, reason: str) -> None:
    colour = {"worth it": "green", "marginal": "yellow", "not worth it": "red"}[verdict]
    _say(f"Verdict: [bold {colour}]{verdict}[/], because {markup(reason)}.")


def _with_budget(sizes: Bytes) -> str:
    return f"sharespace plan ADAPTER... --budget {sizes.adapters // 2}"


def _judged(fidelity: Fidelity, path: Path) -> None:
    """A verdict on what was stored, and the one command to run next."""
    sizes = fidelity.bytes
    judged = judge_stored(sizes.total, sizes.adapters, fidelity.tasks)
    _print_verdict(judged.verdict, judged.reason)
    store = shlex.quote(str(path))
    following = {
        "worth it": f"sharespace report {store}",
        "marginal": f"sharespace fidelity {store} --against ADAPTER...",
        "not worth it": _with_budget(sizes),
    }
    _say(f"Next: {markup(following[judged.verdict])}")


def _budget_choice(storage: StorageSummary) -> str:
    """How a byte budget stores the updates, and why."""
    inside = storage.updates - storage.per_task - storage.nothing
    low, high = storage.ranks
    updates = count(storage.updates, "update")
    text = f"The budget chose a rank for each of {updates} ({low} to {high})"
    if inside:
        text += f"; {inside:,} share directions"
    if storage.leading:
        text += f" ({storage.leading:,} of them only the leading ones, all that pays)"
    if storage.per_task:
        text += f"; {storage.per_task:,} are stored per task, because they share nothing that pays"
    if storage.wholly_per_task:
        text += f" ({count(storage.wholly_per_task, 'task')} wholly)"
    if storage.grouped_modules:
        text += f"; in {count(storage.grouped_modules, 'layer')} groups of tasks have subspaces of "
        text += f"their own (up to {storage.subspaces})"
    if storage.nothing:
        text += f"; of {storage.nothing:,} nothing is kept"
    return f"{text}."


def print_fidelity(measured: Fidelity, baselines: Baselines | None, as_json: bool) -> None:
    if as_json:
        return _json(json_records.fidelity_record(measured, baselines))
    return _print_table(measured, baselines)


def print_info(opened: Checkout, with_layers: bool, as_json: bool) -> None:
    content = opened.manifest.content
    budget = content.settings.budget
    wanted = with_layers or budget is not None
    storage = json_records.model_storage(opened) if wanted else None
    if as_json:
        return _json(json_records.info_record(opened, storage))
    dtype = str(content.dtype).removeprefix("torch.")
    _say(
        f"[bold]{markup(str(opened.path))}[/], version {opened.version.number} of "
        f"{opened.version.created}: {count(len(content.tasks), 'task')} in "
        f"{count(len(content.layers), 'layer')} of {_base(content.base.id)}, "
        f"{k_span(layer.k for layer in content.layers)}, method {content.settings.method}, "
        f"stored as {dtype}."
    )
    _print_out_of_core(layer.streamed for layer in content.layers)
    if storage and with_layers:
        _show(layer_table(content.layers, storage, content.dtype.itemsize))
    _show(task_table(opened, storage))
    if storage:
        _say(storage_sentence(storage.total, budget))
    return _print_sizes(json_records.disk_bytes(opened))


def print_export(
    task: str, written: Sequence[Path], server_options: Sequence[str], as_json: bool
) -> None:
    if as_json:
        paths = [str(path) for path in written]
        return _json({"task": task, "written": paths, "server_options": list(server_options)})
    _say(f"Exported {markup(task)} to {', '.join(markup(str(path)) for path in written)}.")
    if server_options:
        _say(f"Start the server with {markup(shlex.join(server_options))}")
    return None


def print_verification(report: Report, as_json: bool) -> None:
    if as_json:
        return _json(json_records.verification_record(report))
    for finding in report.damaged:
        where = "" if finding.version is None else f" (version {finding.version})"
        file, detail = markup(finding.file), markup(finding.detail)
        _say(f"{file}{where} is [red]{finding.status}[/]: {detail}.")
    files = count(len(report.findings), "file")
    versions = f"version {', '.join(map(str, report.versions)) or 'none'}"
    if report.ok:
        return _say(f"{files} of {versions}: [green]all are as they were written[/].")
    return _say(f"{files} of {versions}: [red]{len(report.damaged)} damaged[/].")


def print_history(versions: Sequence[Version], as_json: bool) -> None:
    if as_json:
        return _json({"versions": [json_records.version_record(v) for v in versions]})
    table = new_table("version", "when", "tasks", "what")
    for version in versions:
        operation = version.operation
        about = f"to {operation.version}" if operation.version else _names(operation.tasks)
        if operation.verb == "rename" and len(operation.tasks) == 2:
            about = " to ".join(map(markup, operation.tasks))
        what = f"{operation.verb} {about}"
        table.add_row(str(version.number), version.created, str(version.task_count), what)
    return _show(table)


def print_rollback(current: Version, to: int, as_json: bool) -> None:
    if as_json:
        return _json(json_records.version_record(current))
    tasks = count(current.task_count, "task")
    return _say(f"Version {current.number} has the contents of version {to} again: {tasks}.")


def print_prune(removed: Pruned, as_json: bool) -> None:
    if as_json:
        return _json(json_records.pruned_record(removed))
    return _say(f"Removed {count(len(removed.versions), 'version')} and {human(removed.bytes)}.")


def print_report(written: WrittenReport, as_json: bool) -> None:
    if as_json:
        return _json(json_records.report_record(written))
    for notice in written.notices:
        colour = "yellow" if notice.level == "serious" else "dim"
        _say(f"[{colour}]{markup(notice.title)}.[/]")
    return _say(
        f"Wrote [bold]{markup(str(written.path))}[/], the report of version {written.version}: "
        f"{human(written.bytes)}."
    )


def print_progress(text: str) -> None:
    """A line about work in progress, on standard error."""
    Console(stderr=True, highlight=False).print(markup(text), style="dim", soft_wrap=True)


def print_demo(result: DemoResult, out: Path, as_json: bool) -> None:
    if as_json:
        return _json(asdict(result))
    from sharespace.demo.main import tables

    _console.print(tables(result))
    picture, numbers = markup(str(out / "demo.png")), markup(str(out / "results.json"))
    _say(f"The picture is in {picture}, the numbers are in {numbers}.")
    return _say(f"Go on with: sharespace info {markup(str(out / 'share'))}")


def print_stream_progress(event: Event) -> None:
    """What a stream is doing, on standard error; a missing score stands out."""
    text = markup(event.text)
    style = "yellow" if event.stage == "unscored" else "dim"
    Console(stderr=True, highlight=False).print(text, style=style, soft_wrap=True)


def print_stream(result: StreamResult, as_json: bool) -> None:
    if as_json:
        return _json(json_records.stream_record(result))
    table = new_table("task", "came as", "metric", "first", "last", "trained", "LoRA", "head")
    for learned in result.learned:
        score = result.scores.get(learned.task)
        table.add_row(
            markup(learned.task),
            learned.how,
            score.metric if score else "",
            _score(score.first if score else None),
            _score(score.last if score else None),
            f"{learned.coefficients + learned.temporary + learned.lora:,}",
            f"{learned.own_lora:,}",
            f"{learned.heads:,}",
        )
    _show(table)
    measures = ", ".join(f"{name} {_score(value)}" for name, value in result.measures.items())
    _say(f"After {count(len(result.steps), 'step')}: {measures}.")
    if result.router:
        _print_router(result.router)
    for notice in result.notices:
        _say(f"[yellow]{markup(notice)}[/]")
    _say(f"The Share model is [bold]{markup(str(result.share))}[/], version {result.version}.")
    return _print_sizes(result.steps[-1].bytes)


def print_comparison(result: RecipeComparison, csv: Path | None, as_json: bool) -> None:
    """The table of a recipe's comparison, and where its files are."""
    from sharespace.compare.recipe_table import COLUMNS, cells, write_csv

    if csv is not None:
        write_csv(result, csv)
    if as_json:
        return _json(result.to_record())
    table = new_table(*COLUMNS)
    for line in cells(result):
        table.add_row(*map(markup, line))
    _show(table)
    for name, why in result.unfit.items():
        _say(f"[yellow]{name}: not for this model: {markup(why)}[/]")
    for notice in result.notices:
        _say(f"[yellow]{markup(notice)}[/]")
    return _say(f"Results, table and figure are in [bold]{markup(str(result.folder))}[/].")


def _print_router(router: RouterResult) -> None:
    """Percentages of the evaluation data; see ``RoutedTask``."""
    table = new_table(
        "task", "routed right", "to base", "oracle", "with router", "among all classes"
    )
    columns = ("routing", "fallback", "oracle", "routed", "class_incremental")
    for name, scores in router.scores.items():
        table.add_row(markup(name), *(_score(getattr(scores, column)) for column in columns))
    table.add_row("[bold]mean[/]", *(_score(router.means[column]) for column in columns))
    _show(table)
    _say(
        f"The router is {markup(str(router.path))} ({human(router.bytes)}); its margin of "
        f"{_score(router.margin)} leaves {percent(router.fallback_rate)} of the inputs to the base "
        "model."
    )


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def print_submission(submission: Submission, as_json: bool) -> None:
    if as_json:
        return _json(asdict(submission))
    form = "as plain factors"
    if submission.version is not None:
        form = f"in the bases of version {submission.version}"
    place = f"{submission.inbox}/{submission.file}"
    _print(f"Handed in {submission.task} {form} ({human(submission.bytes)}):")
    _print(place)
    return None


def print_gather(outcome: Gathered, inbox: str, as_json: bool) -> None:
    """What one run of ``gather`` did; ``print_gather_batch`` has told people of its batches."""
    if as_json:
        return _json(json_records.gathered_record(outcome))
    if not (outcome.merged or outcome.refused or outcome.repeated):
        _print(f"There is nothing to gather in {inbox}: version {outcome.version} stays.")
    return None


def print_gather_batch(outcome: Gathered, *, prefix: str = "") -> None:
    """A line for a batch, and one on standard error for each contribution that was set aside."""
    _print(f"{prefix}{_gathered_line(outcome)}")
    if outcome.losses:
        lost = some_losses(list(outcome.losses))
        _print(f"{prefix}Warning: the error is up to {lost}.", file=sys.stderr)
    for refusal in outcome.refused:
        _print(f"{prefix}{_refusal_line(refusal)}", file=sys.stderr)


def print_watched_batch(outcome: Gathered) -> None:
    """The same with the time, for the log of ``gather --watch``."""
    print_gather_batch(outcome, prefix=f"{_now()} ")


def print_watched_record(outcome: Gathered) -> None:
    """A batch as one line of JSON with the time, for ``gather --watch --json``."""
    record = {"time": _now(), **json_records.gathered_record(outcome)}
    print(json.dumps(record, allow_nan=False), flush=True)


def print_watch_failure(error: SharespaceError) -> None:
    """A look that failed; the watch goes on and looks again."""
    _print(f"{_now()} Not gathered now: {error_text(error)}", file=sys.stderr)


def _gathered_line(outcome: Gathered) -> str:
    text = f"Version {outcome.version}: merged {count(len(outcome.merged), 'task')}"
    if outcome.merged:
        text += f" ({first_names(sorted(arrival.task for arrival in outcome.merged))})"
    if outcome.refused:
        text += f", quarantined {len(outcome.refused)}"
    if outcome.repeated:
        text += f", skipped {len(outcome.repeated)} that had been merged before"
    return f"{text}."


def _refusal_line(refusal: Refusal) -> str:
    reason = f"{refusal.what}: {refusal.why}. {refusal.remedy}"
    return f"Quarantined {refusal.file[:26]}...: {reason}"


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def print_push(repository: str, url: str | None, as_json: bool) -> None:
    if as_json:
        return _json({"repository": repository, "url": url})
    _print(f"Pushed to {repository}: {url}" if url else f"{repository} is up to date.")
    return None


def print_pull(share: Path, version: Version | None, as_json: bool) -> None:
    """The version that is current now, or that there was nothing new."""
    if as_json:
        return _json({"version": version.number if version else None})
    if version is None:
        _print(f"{share} is up to date.")
    else:
        _print(f"{share} is at version {version.number} now: {count(version.task_count, 'task')}.")
    return None


def _print_table(fidelity: Fidelity, baselines: Baselines | None = None) -> None:
    """The table of tasks and the bytes."""
    extra = ("own SVD", "mean adapter", "shared") if baselines else ("worst layer's name",)
    table = new_table("task", "error", "bound", "worst layer", *extra)
    for name, task in fidelity.tasks.items():
        error = percent(task.relative_error)
        row = [markup(name), error if task.measured else f"~{error}", percent(task.bound)]
        row += [percent(task.worst_layer_error)]
        if baselines:
            row += [percent(baselines.own_svd[name]), percent(baselines.mean_adapter[name])]
            row += [percent(baselines.shared_fraction[name])]
        else:
            row += [markup(task.worst_layer)]
        table.add_row(*row)
    _show(table)
    if not all(task.measured for task in fidelity.tasks.values()):
        _say("~ marks an estimate from the ledger; only the bound is certain. --against measures.")
    _print_sizes(json_records.bytes_record(fidelity.bytes))


def _print_warnings(fidelity: Fidelity, notices: Sequence[Notice], most: int = 5) -> None:
    """The tasks that lost most and the report's warnings of them; nothing where all is well."""
    if any(notice.level == "serious" for notice in notices):
        bounds = {name: task.bound for name, task in fidelity.tasks.items()}
        worst = sorted(bounds, key=lambda name: -bounds[name])[:most]
        _say(f"Worst: {', '.join(f'{markup(name)} {percent(bounds[name])}' for name in worst)}.")
    for notice in notices:
        text = markup(f"{notice.text} {notice.remedy}")
        _say(f"[yellow]Warning: {markup(notice.title)}.[/] {text}")


def _print_sizes(sizes: Mapping[str, int]) -> None:
    parts = ", ".join(f"{name} {human(sizes[name])}" for name in ("basis", "coefficients", "other"))
    share = sizes["total"] / sizes["adapters"] if sizes["adapters"] else 1.0
    adapters, total = human(sizes["adapters"]), human(sizes["total"])
    _say(f"The adapters take {adapters}, the Share model {total} ({percent(share)}): {parts}.")


def _print_out_of_core(streamed: Iterable[bool]) -> None:
    """How many layers took in adapters that did not fit in memory together; or nothing."""
    layers = list(streamed)
    if any(layers):
        _say(f"{sum(layers)} of {count(len(layers), 'layer')} were built out of core.")


def _base(base: str | None) -> str:
    return markup(base) if base else "a base model that is not stated"


def _show(table: Table) -> None:
    _console.print(fitted(table, _console.width))


def _names(names: Sequence[str], most: int = 4) -> str:
    return markup(first_names(names, most))


def _print(text: str, file: TextIO | None = None) -> None:
    """A line as it is, without markup."""
    print(visible(text), file=file, flush=True)


def _json(record: Mapping[str, object]) -> None:
    print(json.dumps(record, indent=2, allow_nan=False))


def _say(text: str) -> None:
    _console.print(text, soft_wrap=True)
