"""The paper's table: 500 Mistral-7B adapters of Lots-of-LoRAs in ten batches of 50, k = 256.

    python -m experiments real generation --out results/real

Needs the Hugging Face Hub and a GPU. Adapters are downloaded and read batch by batch, one layer at
a time; each is scored alone on the first test examples of its data set (Rouge-L), before its merge
as it came, right after it, and at the end as the Share model holds it. The Share model is committed
after every batch and every score is written at once: started again, it goes on where it stopped.
``--folder`` takes local copies instead (``base``, ``adapters``, ``data``); the tests run it so,
with tiny stand-ins.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from benchmarks.common import environment

from experiments.generation import hub
from experiments.generation.answers import score
from experiments.generation.hub import Source
from experiments.harness import markdown
from experiments.harness.results import write
from sharespace import Share
from sharespace.extras import require

STAGES = ("original", "after", "final")
PAPER = "0.91 to 1.00"


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="local base, adapters and data; default: Hub")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--k", type=int, default=256)
    parser.add_argument("--method", choices=("share", "joint"), default="share")
    parser.add_argument("--examples", type=int, default=50, help="of each data set")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--seed", type=int, default=0, help="of which adapters, in which order")
    parser.add_argument("--out", type=Path, required=True, help="folder of results and Share model")
    return parser.parse_args(arguments)


@dataclass(eq=False)
class Scores:
    """All scores so far, on disk after each."""

    file: Path
    environment: Mapping[str, Any]
    by_stage: dict[str, dict[str, float]] = field(default_factory=dict)
    """Stage -> task -> percent."""

    @classmethod
    def open(cls, file: Path, about: Mapping[str, Any]) -> Scores:
        known = json.loads(file.read_text())["scores"] if file.is_file() else {}
        return cls(file, about, {stage: known.get(stage, {}) for stage in STAGES})

    def put(self, stage: str, task: str, percent: float) -> None:
        self.by_stage[stage][task] = percent
        write(self.file, {**self.environment, "scores": self.by_stage})


@dataclass(frozen=True, eq=False)
class Judge:
    """Scores a task's adapter."""

    model: Any
    tokenizer: Any
    scores: Scores
    options: argparse.Namespace

    def score(self, stage: str, source: Source, adapter: str) -> None:
        """Of one adapter, unless it is known."""
        if source.name not in self.scores.by_stage[stage]:
            asked = hub.questions(source.data, self.options.examples)
            percent = score(self.model, self.tokenizer, asked, adapter, self.options.tokens)
            self.scores.put(stage, source.name, percent)

    def score_share(self, stage: str, sources: Sequence[Source], share: Share) -> None:
        """Of some tasks as the Share model holds them, by way of PEFT's format."""
        for source in sources:
            with tempfile.TemporaryDirectory() as folder:
                written = share.export(source.name, Path(folder) / "adapter")
                self.score(stage, source, str(written[0]))


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    options = parsed(arguments)
    sources = hub.find(options.folder)
    batches = hub.drawn(sources, options.tasks, options.batches, options.seed)
    model, tokenizer = load_base(str(options.folder / "base") if options.folder else hub.BASE)
    about = {
        "k": options.k,
        "method": options.method,
        "batches": [[source.name for source in batch] for batch in batches],
        "environment": environment(options.seed),
    }
    scores = Scores.open(options.out / "scores.json", about)
    run(batches, Judge(model, tokenizer, scores, options), options)
    (options.out / "table.md").write_text(table(batches, scores.by_stage, options.k))
    print(table(batches, scores.by_stage, options.k))


def load_base(name: str) -> tuple[Any, Any]:
    """The base model in bfloat16, on the GPU where there is one."""
    transformers = require("transformers", "train")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def run(batches: Sequence[Sequence[Source]], judge: Judge, options: argparse.Namespace) -> None:
    """Batch after batch; then all tasks once more."""
    store = options.out / "share"
    share = Share.load(store) if store.exists() else None
    for number, batch in enumerate(batches, 1):
        for source in batch:
            judge.score("original", source, source.adapter)
        share = merged(share, batch, options)
        share.save(store)
        judge.score_share("after", batch, share)
        print(f"batch {number} of {len(batches)}: {share!r}", flush=True)
    if share is not None:
        judge.score_share("final", [source for batch in batches for source in batch], share)


def merged(share: Share | None, batch: Sequence[Source], options: argparse.Namespace) -> Share:
    """With the batch's adapters, unless they are in it already."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    new = {s.name: s.adapter for s in batch if share is None or s.name not in share.tasks}
    if share is None:
        return Share.from_adapters(new, k=options.k, method=options.method, device=device)
    return share.merge(new, device=device) if new else share


def table(
    batches: Sequence[Sequence[Source]], scores: Mapping[str, Mapping[str, float]], k: int
) -> str:
    """Mean relative score of each batch; tasks whose adapter scores 0 are left out."""
    rows = []
    for number, batch in enumerate(batches, 1):
        names = [s.name for s in batch if scores["original"][s.name] > 0]
        cells = [relative(scores, stage, names) for stage in ("after", "final")]
        rows.append([number, len(names), *cells, PAPER])
    header = f"batch | tasks | after its merge | at the end | the paper, k = 256 (here {k})"
    return markdown.table(header, rows) + "\n"


def relative(scores: Mapping[str, Mapping[str, float]], stage: str, names: Sequence[str]) -> str:
    """Mean over the tasks of what is kept of the original's score."""
    parts = [scores[stage][name] / scores["original"][name] for name in names]
    return f"{fmean(parts):.2f}" if parts else "-"
