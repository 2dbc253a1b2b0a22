"""The curves of ``scale``: time and peak memory against the number of adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

STYLES = {"streamed": ("o", "-"), "in memory": ("s", ":"), "merge": ("^", "-.")}


def draw(results: dict[str, Any], path: Path) -> None:
    """Two log-log panels; dashed: one pass over the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    points = results["points"]
    _lines(time, points, lambda p: p["build"][1])
    _lines(memory, points, lambda p: p["peak_bytes"] / 1e6)
    for number, width in enumerate(sorted({p["width"] for p in points})):
        line = _line(points, "streamed", width)
        x = [p["tasks"] for p in line]
        time.loglog(x, [p["limit"][1] for p in line], "--", color=f"C{number}", linewidth=1)
    time.plot([], [], "k--", linewidth=1, label="limit: one pass over the files")
    time.set_ylabel("CPU seconds, 1 thread")
    memory.set_ylabel("peak memory beyond imports, MB")
    for axes in (time, memory):
        axes.set_xlabel("adapters")
        axes.grid(which="both", alpha=0.25)
    time.legend(fontsize=8)
    figure.suptitle(
        f"2 modules of width x width, rank {results['r']}, k = {results['k']}; "
        f"streamed with --memory {results['memory'] / 1e6:.0f}MB"
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    print(f"written: {path.name}")


def _lines(
    axes: Any, points: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]
) -> None:
    for number, width in enumerate(sorted({p["width"] for p in points})):
        for kind, (marker, style) in STYLES.items():
            line = _line(points, kind, width)
            if line:
                axes.loglog(
                    [p["tasks"] for p in line],
                    [value(p) for p in line],
                    color=f"C{number}",
                    marker=marker,
                    linestyle=style,
                    label=f"{kind}, width {width}",
                )


def _line(points: list[dict[str, Any]], kind: str, width: int) -> list[dict[str, Any]]:
    found = [p for p in points if p["kind"] == kind and p["width"] == width]
    return sorted(found, key=lambda p: int(p["tasks"]))
