"""Print results: tables for people, JSON for programs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sharespace.cli import json_records
from sharespace.share import Share
from sharespace.store import Checkout, Pruned, Report, Version
from sharespace.subspace import fidelity as _fidelity
from sharespace.subspace.plan import Baselines, BuildPlan, StorageSummary
from sharespace.words import count, human, percent

if TYPE_CHECKING:
    from sharespace.demo import DemoResult
    from sharespace.report import Written
    from sharespace.stream import Event, StreamResult
    from sharespace.subspace.fidelity import ModelStorage

_console = Console(highlight=False)


def _json(record: Mapping[str, Any]) -> None:
    print(json.dumps(record, indent=2, allow_nan=False))


def _say(text: str) -> None:
    _console.print(text, soft_wrap=True)


def built(share: Share, path: Path, as_json: bool) -> None:
    if as_json:
        return _json(json_records.built_record(share, str(path)))
    _say(f"[bold]{escape(str(path))}[/]: {escape(repr(share))}")
    _out_of_core(layer.streamed for layer in share.model.layers.values())
    found = share.fidelity()
    _fidelity_table(found)
    return _sizes(json_records.bytes_record(found.bytes))


def merged(before: Share, after: Share, path: Path, as_json: bool) -> None:
    new = [n for n in after.tasks if n not in before.tasks]
    found = after.fidelity()
    grown = {
        m: (before.model.layers[m].k if m in before.model.layers else (0, 0), layer.k)
        for m, layer in after.model.layers.items()
    }
    if as_json:
        record = json_records.built_record(after, str(path))
        return _json(
            {**record, "added": new, "k_before": {m: list(k[0]) for m, k in grown.items()}}
        )
    _say(
        f"[bold]{escape(str(path))}[/] version {after.version}: added {_names(new)}; "
        f"{count(len(after.tasks), 'task')}; {_growth(grown)}"
    )
    _out_of_core(after.model.layers[m].streamed for m in grown)
    _fidelity_table(found)
    return _sizes(json_records.bytes_record(found.bytes))


def _out_of_core(layers: Iterable[bool]) -> None:
    """Which layers took in adapters that did not fit in memory together; nothing where none did."""
    found = list(layers)
    if any(found):
        _say(f"out of core: {sum(found)} of {count(len(found), 'layer')}")


def _growth(k: Mapping[str, tuple[tuple[int, int], tuple[int, int]]]) -> str:
    """What a merge did to the subspaces."""
    grown = sum(old != now for old, now in k.values())
    largest = max((max(now) for _, now in k.values()), default=0)
    text = f"{grown} of {count(len(k), 'layer')} grew (largest k {largest})"
    return f"{text}; --cap N caps it" if grown else text


def changed(version: Version, what: str, as_json: bool) -> None:
    if as_json:
        return _json(json_records.version_record(version))
    return _say(f"version {version.number}: {escape(what)}; {count(version.task_count, 'task')}")


def plan(found: BuildPlan, as_json: bool) -> None:
    if as_json:
        return _json(json_records.plan_record(found))
    colour = {"worth it": "green", "marginal": "yellow", "not worth it": "red"}[found.verdict]
    _fidelity_table(found.fidelity, found.baselines)
    _sizes(json_records.bytes_record(found.fidelity.bytes))
    paper = found.paper_count
    _say(f"the paper's count (coefficients only): {paper.parameters:,} = {human(paper.nbytes)}")
    when = f"{count(found.break_even, 'adapter')} like these" if found.break_even else "never"
    _say(f"break-even: {when}; layers stored per task: {found.per_task_modules}")
    if found.budget is not None:
        _say(_storage(found.storage))
    return _say(f"[bold {colour}]{found.verdict}[/]: {escape(found.reason)}")


def _storage(found: StorageSummary) -> str:
    """What a byte budget chose, and why."""
    inside = found.updates - found.per_task - found.nothing
    low, high = found.ranks
    text = f"the budget chose a rank for each of {count(found.updates, 'update')} ({low} to {high})"
    if inside:
        text += f"; {inside:,} share directions"
    if found.leading:
        text += f" ({found.leading:,} of them only the leading ones, all that pays)"
    if found.per_task:
        text += f"; {found.per_task:,} are stored per task, because they share nothing that pays"
    if found.wholly_per_task:
        text += f" ({count(found.wholly_per_task, 'task')} wholly)"
    if found.grouped_modules:
        text += f"; in {count(found.grouped_modules, 'module')} groups of tasks have subspaces of "
        text += f"their own (up to {found.subspaces})"
    if found.nothing:
        text += f"; of {found.nothing:,} nothing is kept"
    return text


def fidelity(found: _fidelity.Fidelity, baselines: Baselines | None, as_json: bool) -> None:
    if as_json:
        return _json(json_records.fidelity_record(found, baselines))
    _fidelity_table(found, baselines)
    return _sizes(json_records.bytes_record(found.bytes))


def _fidelity_table(found: _fidelity.Fidelity, baselines: Baselines | None = None) -> None:
    last = ("own SVD", "mean adapter", "shared") if baselines else ("worst layer's name",)
    table = _table("task", "error", "bound", "worst layer", *last)
    for name, task in found.tasks.items():
        error = percent(task.relative_error)
        row = [_name(name), error if task.measured else f"~{error}", percent(task.bound)]
        row += [percent(task.worst_layer_error)]
        if baselines:
            row += [percent(baselines.own_svd[name]), percent(baselines.mean_adapter[name])]
            row += [f"{baselines.shared_fraction[name]:.0%}"]
        else:
            row += [escape(task.worst_layer)]
        table.add_row(*row)
    _console.print(table)
    if not all(t.measured for t in found.tasks.values()):
        _say("~ estimated from the ledger; only the bound is certain (--against measures)")


def _table(first: str, *others: str) -> Table:
    """Names whole on the left, figures flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold", no_wrap=len(others) > 3)
    for title in others:
        table.add_column(title, justify="right", overflow="fold")
    return table


def _sizes(sizes: Mapping[str, int]) -> None:
    parts = ", ".join(f"{name} {human(sizes[name])}" for name in ("basis", "coefficients", "other"))
    share = sizes["total"] / sizes["adapters"] if sizes["adapters"] else 1.0
    _say(
        f"{human(sizes['adapters'])} of adapters as {human(sizes['total'])} ({share:.0%}): {parts}"
    )


def info(found: Checkout, with_layers: bool, as_json: bool) -> None:
    budget = found.manifest.content.settings.budget
    storing = json_records.storing_of(found) if with_layers or budget is not None else None
    record = json_records.info_record(found, storing)
    if as_json:
        return _json(record)
    base = record["base_model"]["id"] or "not stated"
    _say(
        f"[bold]{escape(record['share'])}[/] version {record['version']} ({record['created']}): "
        f"base {escape(base)}, method {record['method']}, {record['dtype']}, {_k_span(record)}, "
        f"{count(len(record['layers']), 'layer')}, {count(len(record['tasks']), 'task')}"
    )
    _out_of_core(layer["out_of_core"] for layer in record["layers"].values())
    if storing and with_layers:
        _console.print(_layer_table(record, storing))
    _console.print(_task_table(record, storing))
    if storing:
        _say(json_records.sentence(storing.total, budget))
    return _sizes(record["bytes"])


def _task_table(record: Mapping[str, Any], storing: ModelStorage | None) -> Table:
    private = bool(storing and storing.total.per_task.updates)
    table = _table(
        *("task", "format", "layers", *(["per task"] if private else [])),
        *("bound", "coefficients", "adapter"),
    )
    for name, task in record["tasks"].items():
        alone = [str(task["stored"]["per_task"]["updates"])] if private else []
        table.add_row(
            _name(name),
            task["format"],
            str(task["layers"]),
            *alone,
            percent(task["bound"]),
            human(task["coefficient_bytes"]),
            human(task["adapter_bytes"]),
        )
    return table


def _layer_table(record: Mapping[str, Any], storing: ModelStorage) -> Table:
    every = storing.total
    table = _table("layer", "k", *json_records.heads(every), "bases")
    for module, layer in record["layers"].items():
        mine = storing.layers[module]
        table.add_row(
            _name(module),
            "×".join(map(str, layer["k"])) + _subspaces(layer),
            *json_records.cells(mine, every),
            human(layer["basis_bytes"]),
        )
    return table


def _subspaces(layer: Mapping[str, Any]) -> str:
    return f" in {len(layer['groups'])}" if layer["groups"] else ""


def _k_span(record: Mapping[str, Any]) -> str:
    sides = [k for layer in record["layers"].values() for k in layer["k"]]
    return f"k {min(sides)} to {max(sides)}" if sides else "no layers"


def exported(
    task: str, written: Sequence[Path], server_options: Sequence[str], as_json: bool
) -> None:
    if as_json:
        paths = [str(p) for p in written]
        return _json({"task": task, "written": paths, "server_options": list(server_options)})
    _say(f"{_name(task)} -> {', '.join(escape(str(p)) for p in written)}")
    if server_options:
        _say(f"start the server with {escape(shlex.join(server_options))}")
    return None


def report(found: Report, as_json: bool) -> None:
    if as_json:
        return _json(json_records.report_record(found))
    for finding in found.damaged:
        _say(
            f"[red]{finding.status}[/] {escape(finding.file)} (version {finding.version}): "
            f"{escape(finding.detail)}"
        )
    verdict = "[green]all well[/]" if found.ok else f"[red]{len(found.damaged)} damaged[/]"
    versions = ", ".join(map(str, found.versions)) or "none"
    return _say(f"{len(found.findings)} files of version {versions}: {verdict}")


def pruned(removed: Pruned, as_json: bool) -> None:
    if as_json:
        return _json(json_records.pruned_record(removed))
    return _say(f"removed {count(len(removed.versions), 'version')} and {human(removed.bytes)}")


def history(versions: Sequence[Version], as_json: bool) -> None:
    if as_json:
        return _json({"versions": [json_records.version_record(v) for v in versions]})
    table = _table("version", "when", "tasks", "what")
    for version in versions:
        operation = version.operation
        names = operation.tasks
        to = f"to {operation.version}" if operation.version else _names(names)
        if operation.verb == "rename" and len(names) == 2:
            to = f"{_name(names[0])} to {_name(names[1])}"
        what = f"{operation.verb} {to}"
        table.add_row(str(version.number), version.created, str(version.task_count), what)
    return _console.print(table)


def rolled_back(now: Version, to: int, as_json: bool) -> None:
    if as_json:
        return _json(json_records.version_record(now))
    return _say(f"version {now.number} is version {to} again; {count(now.task_count, 'task')}")


def page(written: Written, as_json: bool) -> None:
    if as_json:
        return _json(json_records.page_record(written))
    for notice in written.notices:
        colour = "yellow" if notice.level == "serious" else "dim"
        _say(f"[{colour}]{escape(notice.title)}[/]")
    return _say(
        f"[bold]{escape(str(written.path))}[/]: report of version {written.version}, "
        f"{human(written.bytes)}"
    )


def progress_line(text: str) -> None:
    """A line about work in progress, on standard error."""
    Console(stderr=True, highlight=False).print(text, style="dim", soft_wrap=True)


def demo(result: DemoResult, out: Path, as_json: bool) -> None:
    if as_json:
        return _json(asdict(result))
    from sharespace.demo.result import tables

    _console.print(tables(result))
    _say(f"picture: {escape(str(out / 'demo.png'))}, numbers: {escape(str(out / 'results.json'))}")
    return _say(f"go on with: sharespace info {escape(str(out / 'share'))}")


def stream_progress(event: Event) -> None:
    """What a stream is doing, on standard error; a missing score stands out."""
    text = escape(event.text if event.text.isprintable() else repr(event.text))
    style = "yellow" if event.stage == "unscored" else "dim"
    Console(stderr=True, highlight=False).print(text, style=style, soft_wrap=True)


def stream(found: StreamResult, as_json: bool) -> None:
    record = json_records.stream_record(found)
    if as_json:
        return _json(record)
    table = _table("task", "came as", "metric", "first", "last", "trained", "LoRA", "head")
    for name, task in record["tasks"].items():
        scored = record["scores"].get(name) or {"metric": "", "first": None, "last": None}
        trained = task["coefficients"] + task["temporary"] + task["lora"]
        table.add_row(
            _name(name),
            task["how"],
            scored["metric"],
            _score(scored["first"]),
            _score(scored["last"]),
            f"{trained:,}",
            f"{task['own_lora']:,}",
            f"{task['heads']:,}",
        )
    _console.print(table)
    measures = ", ".join(f"{n} {_score(v)}" for n, v in record["measures"].items())
    _say(f"after {count(len(record['steps']), 'step')}: {measures}")
    if record["router"]:
        _router(record["router"])
    for notice in record["notices"]:
        _say(f"[yellow]{escape(notice)}[/]")
    _say(f"[bold]{escape(record['share'])}[/] version {record['version']}")
    return _sizes(record["bytes"])


def _router(record: Mapping[str, Any]) -> None:
    """Percentages of the evaluation data; see ``RoutedTask``."""
    table = _table("task", "routed right", "to base", "oracle", "with router", "among all classes")
    rows = {**{_name(n): s for n, s in record["scores"].items()}, "[bold]mean[/]": record["means"]}
    columns = ("routing", "fallback", "oracle", "routed", "class_incremental")
    for name, scores in rows.items():
        table.add_row(name, *(_score(scores[column]) for column in columns))
    _console.print(table)
    margin, rate = _score(record["margin"]), percent(record["fallback_rate"])
    size = human(record["bytes"])
    _say(f"router: {escape(record['path'])} ({size}), margin {margin} for a fallback of {rate}")


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _name(name: str) -> str:
    """A task's name on one line of a terminal, whatever is in it."""
    return escape(name if name.isprintable() else repr(name))


def _names(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(_name(n) for n in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
