"""The tables of the sweep, and what the paper claims of language understanding and of sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.harness.claims import (
    OWN,
    Claim,
    Said,
    as_joint,
    count,
    having,
    means,
    near_lora,
    no_forgetting,
)
from experiments.harness.markdown import section, table
from experiments.harness.results import read_if_there
from experiments.harness.summarise import Report
from experiments.harness.tables import Goals

_BASE = "MiniLM, 7 tasks, LoRA of rank 8; the paper: roberta-base on GLUE"


NEAR = Said(
    "Learned one after the other, without old data, Share stays near per-task LoRA (GLUE)",
    _BASE,
    paper="78.7 against 83.4: 94.3 %",
)
NO_FORGETTING = Said(
    "Hardly any forgetting",
    "k has room for all tasks; with k = 32 merges at the cap forget a point",
    paper="minimal",
)
AS_JOINT = Said("As good as joint training", "one LoRA of rank 8 for all tasks together")


class TextStream(Report):
    """See the package."""

    name = "text_stream"
    goals = Goals(score=0.99, gain=0.95, forgetting=0.5)

    def own_tables(self) -> list[str]:
        tables = {"sweep": sweep_table, "router": router_table}
        records = {stage: read_if_there(self.results / f"{stage}.json") for stage in tables}
        return [tables[stage](record) for stage, record in records.items() if record]

    def claims(self) -> list[Claim | None]:
        runs = self.all_runs
        sizes = read_if_there(self.results / "sizes.json")
        return [
            near_lora(runs, NEAR),
            no_forgetting(runs, NO_FORGETTING, self.goals.forgetting),
            as_joint(runs, AS_JOINT),
            self._full(),
            *(_sizes(sizes) if sizes else []),
        ]

    def _full(self) -> Claim | None:
        runs = having(self.all_runs, "share_full", OWN)
        if not runs:
            return None
        full, own = means(runs, "share_full", OWN)
        return Claim(
            "Share-full, finetuned with all data, equals per-task LoRA (GLUE)",
            "83.44 against 83.43",
            f"{full:.1f} against {own:.1f} ({count(runs)})",
            "yes" if full >= own - 0.3 else "no",
            _BASE,
        )


def _sizes(sizes: Mapping[str, Any]) -> list[Claim]:
    trained, measured = sizes["trained"], sizes["measured"]
    by_tasks = {int(t): m["lora"] / m["share"] for t, m in measured.items()}
    most = max(by_tasks)
    said = ", ".join(f"{ratio:.1f}x at {tasks} tasks" for tasks, ratio in sorted(by_tasks.items()))
    return [
        Claim(
            "Up to 100 times fewer trained parameters a task",
            "100x (against LoRA of rank 32)",
            f"{trained['lora'] / trained['share']:.0f}x (against LoRA of rank 8)",
            "partly",
            "against rank 8 the paper's own coefficients are 24x fewer (1.18M at rank 32)",
        ),
        Claim(
            "281 times less memory",
            "281x (coefficients alone, 6 tasks)",
            f"every byte: {said}",
            "yes" if by_tasks[most] >= 281 else "no",
            "the paper leaves the bases out; a trained core has a flat spectrum here",
        ),
    ]


def sweep_table(record: Mapping[str, Any]) -> str:
    """Percent of the test examples, one number changed at a time, and LoRA's gain that is left."""
    tasks = list(record["tasks"])
    ends = [(record["tasks"][t]["head only"], record["tasks"][t]["own LoRA"]) for t in tasks]
    rows = [
        ["head only", *(f"{head:.1f}" for head, _ in ends), "0%", "0"],
        ["own LoRA", *(f"{own:.1f}" for _, own in ends), "100%", "6,144"],
    ]
    for name in record["tasks"][tasks[0]]:
        scored = [by_name.get(name) for by_name in record["tasks"].values()]
        if name not in ("head only", "own LoRA") and all(scored):
            rows.append(_sweep_row(record, name))
    return section(
        "## Where learning in the subspace breaks",
        "One task at a time in the subspace of three own LoRAs (`sweep`, seed 0): percent of the "
        "test examples and, in brackets, the part of LoRA's gain over the head alone. Nothing was "
        "chosen by these figures.",
        f"what is changed | {' | '.join(tasks)} | gain kept, mean | trained a module",
        rows,
    )


def _sweep_row(record: Mapping[str, Any], name: str) -> list[str]:
    cells, reached, possible, trained = [name], 0.0, 0.0, 0.0
    for by_name in record["tasks"].values():
        score, head = by_name[name]["score"], by_name["head only"]
        gain = by_name["own LoRA"] - head
        cells.append(f"{score:.1f} ({_part(score - head, gain)})")
        reached, possible = reached + score - head, possible + gain
        trained = by_name[name]["trained a module"]
    return [*cells, _part(reached, possible), f"{trained:,.0f}"]


def _part(gain: float, possible: float) -> str:
    return f"{gain / possible:.0%}" if possible else "-"


def router_table(record: Mapping[str, Any]) -> str:
    """Which task an input belongs to, found by the router."""
    streams, energies = record["streams"], record["energy"]["accuracy"]
    rows = []
    for size, stream in streams.items():
        plain = stream["no_margin"]
        cells = [plain[k] for k in ("routing", "oracle", "routed", "class_incremental")]
        inside = f"{100 * (1 - stream['margin']['fallback']['mean']):.1f}"
        outside = _percent(stream["outside_fallback"]["mean"])
        rows.append([size, *map(_percent, cells), inside, outside])
    parts = [
        section(
            "## Routing without a task id",
            "Percent, mean over the tasks and ± sample standard deviation over the seeds "
            "(`router`). Routing: sent to the right task. Oracle: accuracy with the task given. "
            "Routed: with the router (a wrong task can still give the right label). "
            "Class-incremental: right task and right label. At a margin, inputs of a task that "
            "fall back to the base count as wrong. A task takes "
            f"{record['router_bytes_a_task']:,} bytes.",
            "tasks | routing | oracle | routed | class-incremental | not sent to base at a margin "
            "| outside sent to base",
            rows,
            "r",
        )
    ]
    for what in ("layer", "shrinkage"):
        tried = list(next(iter(streams.values()))[f"by_{what}"])
        rows = [
            [f"{size} tasks", *map(_percent, stream[f"by_{what}"].values())]
            for size, stream in streams.items()
        ]
        parts.append(table(" | ".join([f"routing by {what}", *tried]), rows, "r") + "\n")
    parts.append(
        f"By energy, {next(iter(streams))} tasks. Relative: divided by the mean energy of a task's "
        "own inputs in its own directions. Against all: by that of inputs of all tasks, which a "
        "strict stream does not have: an upper limit.\n"
    )
    rows = [[definition, *map(_percent, row.values())] for definition, row in energies.items()]
    parts.append(table("definition | raw | relative | against all", rows, "lr") + "\n")
    return "\n".join(parts)


def _percent(cell: Mapping[str, float | None]) -> str:
    mean, deviation = cell["mean"] or 0.0, cell["sd"]
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
