"""Write the tables of results/*.json into README.md, between their markers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    build,
    cluster,
    combine,
    common,
    equal_bytes,
    errors,
    gpu,
    house,
    many,
    many_tasks,
    merge,
    merge_cost,
    mixed_added,
    mixed_batch,
    round_trip,
    scale,
    training_step,
)

README = Path(__file__).parent / "README.md"
REPORTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "build": build.report,
    "merge": merge.report,
    "errors": errors.report,
    "equal_bytes": equal_bytes.report,
    "round_trip": round_trip.report,
    "training_step": training_step.report,
    "merge_cost": merge_cost.report,
    "combine": combine.report,
    "mixed_batch": mixed_batch.report,
    "mixed_added": mixed_added.report,
    "many": many.report,
    "many_tasks": many_tasks.report,
    "gpu": gpu.report,
    "cluster": cluster.report,
    "scale": scale.report,
    "house-before": house.report,
    "house": lambda results: house.report(results, _read("house-before")),
}


def _read(name: str) -> dict[str, Any]:
    """The results of that name."""
    results: dict[str, Any] = json.loads((common.RESULTS / f"{name}.json").read_text())
    return results


def main() -> None:
    text = README.read_text()
    for name, report in REPORTS.items():
        path = common.RESULTS / f"{name}.json"
        if path.exists():
            results = _read(name)
            text = between(text, name, f"{setting(results)}\n\n{report(results)}")
    README.write_text(text)


def setting(results: dict[str, Any]) -> str:
    """Hardware, versions and seed in one line."""
    found = results["environment"]
    versions = ", ".join(f"{n} {v}" for n, v in found["versions"].items() if v)
    return (
        f"*{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB; "
        f"Python {found['python']}, {versions}; seed {found['seed']}.*"
    )


def between(text: str, name: str, inside: str) -> str:
    """The text with what stands between a name's markers replaced.

    Raises:
        ValueError: the markers are not there.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"no markers {start} ... {end}")
    return f"{before}{start}\n{inside.strip()}\n{end}{after}"


if __name__ == "__main__":
    main()
