"""What is saved, counted two ways, for 6, 100 and 1000 tasks: stores are written and weighed.

    python -m experiments sizes text_stream

Starts from the Share model that ``run`` left in the cache (seed 0, order glue-first). Further tasks
are derived from those that were learned in the subspace (the same directions with another core, at
random, and the same head), merged in batches of 100: what they take is what trained ones would
take, whatever they can do. A LoRA of rank 8 with a head is weighed as often as there are tasks.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import environment

from experiments.harness import markdown
from experiments.harness.results import write
from sharespace import Share
from sharespace.compare.comparison import claims_markdown
from sharespace.compare.figures import Panel, picture
from sharespace.compare.size import (
    CountedPoint,
    SizeLayout,
    bytes_on_disk,
    claims,
    draw_counts,
    reach,
)
from sharespace.errors import OptionError
from sharespace.subspace.adapter import Adapter, LayerUpdate

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "docs" / "figures"
TASKS = (6, 100, 1000)
RANK = 8
INITIAL = 3
STREAM = "glue-first-0"
BATCH = 100
TRAINED = 17 * 17
"""Numbers that a task trains per module (experiment.py: p = 17)."""


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/text_stream"))
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of all results")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--tasks", type=int, nargs="+", default=list(TASKS))
    options = parser.parse_args(arguments)
    share = Share.load(kept_by_run(options.cache))
    measured = measure(share, options.tasks)
    layout = layout_of(share, measured)
    results: dict[str, Any] = {
        "environment": environment(0),
        "measured": measured,
        "trained": {"lora": lora_numbers(share), "share": TRAINED * len(share.model.layers)},
    }
    write(options.out / "sizes.json", results)
    text = claims_markdown(
        claims(layout, options.tasks),
        [(reach(layout, ratio, "paper"), reach(layout, ratio, "bytes")) for ratio in (10, 20, 100)],
    )
    (options.out / "sizes.md").write_text(f"{text}\n\n{table(measured)}\n")
    draw(layout, options.figures / "text-stream-sizes.png")


def kept_by_run(cache: Path) -> Path:
    """The Share model of the first order and seed.

    Raises:
        OptionError: ``run`` has not left it there.
    """
    stores = sorted((cache / "share").glob(f"*-{STREAM}"))
    if not stores:
        raise OptionError(str(cache), f"has no Share model of {STREAM}", "Run it first")
    return stores[0]


def measure(share: Share, counts: list[int]) -> dict[str, Any]:
    """Bytes on disk of a store with so many tasks, and of as many plain adapters."""
    names = list(share.tasks)
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        # An initial task: it is a LoRA of rank 8.
        share.export(names[0], Path(folder) / "adapter", rank=RANK)
        adapter = bytes_on_disk(Path(folder) / "adapter")
        for count in sorted(counts):
            share = with_tasks(share, names, count)
            store = Path(folder) / f"store-{count}"
            # A copy, so that the store has one version only.
            Share(share.model).save(store)
            measured[str(count)] = {"share": bytes_on_disk(store), "lora": adapter * count}
    return measured


def with_tasks(share: Share, names: list[str], count: int) -> Share:
    """The model with exactly so many tasks."""
    if count < len(share.tasks):
        return share.remove(*share.tasks[count:])
    for begin in range(len(share.tasks), count, BATCH):
        batch = range(begin, min(begin + BATCH, count))
        share = share.merge([derived(share, names, i) for i in batch])
    return share


def derived(share: Share, names: list[str], index: int) -> Adapter:
    """A learned task with another core between its directions."""
    generator = torch.Generator().manual_seed(index)
    known = [name for name in names if name in share.tasks]
    origin = known[-1 - index % max(len(known) - INITIAL, 1)]
    updates = {}
    for module, update in share.updates(origin).items():
        rank = update.up.shape[1]
        turn = torch.linalg.qr(torch.randn(rank, rank, generator=generator))[0]
        updates[module] = LayerUpdate(update.up @ turn, update.down)
    task = share.task(origin)
    return Adapter.from_updates(
        f"derived-{index}", updates, base=share.model.base, kept=task.kept, config=task.config
    )


def lora_numbers(share: Share) -> int:
    """Of one LoRA adapter's factors."""
    return sum(RANK * shape.sides for shape in share.model.shapes.values())


def layout_of(share: Share, measured: dict[str, Any]) -> SizeLayout:
    """What a task looks like; its overheads are what was measured beyond the formula."""
    head = sum(t.numel() for t in share.task(share.tasks[0]).kept.values())
    plain = SizeLayout(
        shapes=tuple(share.model.shapes.values()),
        k=max(max(layer.k) for layer in share.model.layers.values()),
        p=max(c.rank for t in share.model.tasks.values() for c in t.coefficients.values()),
        rank=RANK,
        head=head,
    )
    largest = max(measured, key=int)
    nbytes, count = measured[largest], int(largest)
    exact = claims(plain, (count,))[0].total
    return SizeLayout(
        **{
            **{name: getattr(plain, name) for name in ("shapes", "k", "p", "rank", "head")},
            "share_overhead": max((nbytes["share"] - exact.share) // count, 0),
            "lora_overhead": max((nbytes["lora"] - exact.lora) // count, 0),
        }
    )


def table(measured: dict[str, Any]) -> str:
    """Measured bytes."""
    rows = [
        [count, f"{lora:,}", f"{share:,}", f"{lora / share:.2f}x"]
        for count, lora, share in ((n, s["lora"], s["share"]) for n, s in measured.items())
    ]
    header = "tasks | LoRA adapters, bytes | one Share model, bytes | ratio"
    return markdown.table(header, rows, "r")


def draw(layout: SizeLayout, path: Path) -> None:
    """Both counts against the number of tasks."""
    points = []
    for count in (1, 2, 6, 10, 30, 100, 300, 1000):
        claim = claims(layout, (count,))[0]
        points.append(
            CountedPoint(
                tasks=count,
                lora=claim.total.lora,
                share=claim.total.share,
                lora_factors=claim.paper.lora,
                share_coefficients=claim.paper.share,
            )
        )
    panels = [Panel("bytes against the number of tasks", partial(draw_counts, points=points))]
    title = f"MiniLM, q and v of three layers: k = {layout.k}, p = {layout.p}; LoRA of rank 8"
    picture(path, title, panels, columns=1)
