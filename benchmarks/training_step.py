"""A training step in the subspace against one of PEFT's LoRA (r = 8), at the same targets.

A BERT encoder of random weights for two labels, AdamW, batches of random tokens. The contenders
take turns step by step in one process, so that other jobs disturb all of them alike; the ratio is
the median over rounds of the ratio in each round. Memory is measured in two ways: exactly, by what
autograd keeps for the backward pass plus what the method adds to the model and the optimizer; and
as the peak resident set of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common

SHAPES = {"minilm": (384, 6, 12, 1536), "bert-base": (768, 12, 12, 3072)}
"""Hidden size, layers, heads, intermediate size."""
TARGETS = {
    "q, v": ["query", "value"],
    "all linear": ["query", "key", "value", "attention.output.dense", "intermediate.dense",
                   "output.dense"],
}  # fmt: skip
LORA, SHARE, TEMPORARY, CORE = "LoRA r=8", "Share phi=0", "Share phi=1", "Share core"
CONTENDERS: dict[str, dict[str, Any]] = {
    SHARE: {"p": 8, "phi": 0, "form": "factors"},
    TEMPORARY: {"p": 8, "phi": 1, "form": "factors"},
    CORE: {"p": 8, "phi": 1, "form": "core"},
}
VOCABULARY = 1000


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    if options.only:
        _alone(options)
        return
    before = common.wait_until_quiet(options.wait)
    clock = common.Clock.now()
    sets = [
        {"shape": shape, "targets": targets, "runs": compare(shape, targets, options)}
        for shape in options.shapes
        for targets in TARGETS
    ]
    results = {
        "environment": common.environment(options.seed),
        "load_before": before,
        "others_during": clock.others(),
        "sizes": {"k": options.k, "batch": options.batch, "length": options.length},
        "sets": sets,
    }
    common.write_results(options.out, results)
    print(report(results))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "training_step")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for a quiet machine")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def compare(shape: str, targets: str, options: argparse.Namespace) -> dict[str, Any]:
    """All contenders, step by step in turns."""
    names = [LORA, *CONTENDERS]
    steps = {name: Step(shape, targets, name, options) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for step in steps.values():
        step()
    for turn in range(options.rounds):
        # Another one is first in each round: nobody always runs after the same neighbour.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(common.seconds(steps[name]))
    found = {}
    for name, step in steps.items():
        ratios = [t / base for t, base in zip(times[name], times[LORA], strict=True)]
        found[name] = {
            "seconds": statistics.median(times[name]),
            "ratio": statistics.median(ratios),
            **step.sizes(),
            "peak_rss": _peak(shape, targets, name, options),
        }
        print(f"{shape}, {targets}, {name}: {found[name]['ratio']:.3f} of LoRA", flush=True)
    return found


class Step:
    """One training step of one contender."""

    def __init__(self, shape: str, targets: str, name: str, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.model = _adapted(_base(shape, options.layers), targets, name, options)
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-3)
        size = (options.batch, options.length)
        labels = torch.randint(2, size[:1])
        self.inputs = {"input_ids": torch.randint(VOCABULARY, size), "labels": labels}

    def __call__(self) -> None:
        self.model(**self.inputs).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def sizes(self) -> dict[str, int]:
        """Bytes; the head, which all train alike, is left out of the first three."""
        mine = [p for n, p in self.model.named_parameters() if p.requires_grad and "class" not in n]
        state = [t for p in mine for t in self.optimizer.state[p].values() if t.dim()]
        bases = [b for n, b in self.model.named_buffers() if n.endswith("_basis")]
        return {
            "trained": sum(p.numel() for p in mine),
            "optimizer_and_gradients": _bytes(state) + _bytes(mine),
            "added": _bytes(mine) + _bytes(state) + _bytes(bases),
            "kept_for_backward": self._kept(),
        }

    def _kept(self) -> int:
        """Bytes of the storages that autograd keeps, weights and buffers of the model left out."""
        own = {t.untyped_storage().data_ptr() for t in self.model.state_dict().values()}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = self.model(**self.inputs).loss
        del loss
        return sum(kept.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _base(shape: str, layers: int | None) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    hidden, depth, heads, inner = SHAPES[shape]
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers or depth,
        num_attention_heads=heads,
        intermediate_size=inner,
        vocab_size=VOCABULARY,
        num_labels=2,
    )
    model: nn.Module = BertForSequenceClassification(config)
    return model


def _adapted(base: nn.Module, targets: str, name: str, options: argparse.Namespace) -> Any:
    from peft import LoraConfig, get_peft_model

    from sharespace.tuner import ShareConfig, publish

    modules = TARGETS[targets]
    if name == LORA:
        return get_peft_model(base, LoraConfig(r=8, target_modules=modules, task_type="SEQ_CLS"))
    space = _space(base, modules, options.k)
    config = ShareConfig(share=publish(space), task_type="SEQ_CLS", **CONTENDERS[name])
    return get_peft_model(base, config)


def _space(base: nn.Module, targets: list[str], k: int) -> Any:
    """Random orthonormal bases: only their sizes matter here."""
    from sharespace.subspace.adapter import BaseModel, ModuleShape
    from sharespace.subspace.layer import LayerSubspace
    from sharespace.subspace.state import BuildSettings, ShareModel

    layers = {}
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear) and any(name.endswith(f".{t}") for t in targets):
            n, d = module.out_features, module.in_features
            left, right = (torch.linalg.qr(torch.randn(side, k))[0] for side in (n, d))
            layers[name] = LayerSubspace(ModuleShape(n, d), left, right)
    return ShareModel(BaseModel(), BuildSettings(), torch.float32, layers, {})


def _alone(options: argparse.Namespace) -> None:
    shape, targets, name = options.only
    step = Step(shape, targets, name, options)
    for _ in range(3):
        step()
    print(json.dumps(common.peak_rss()))


def _peak(shape: str, targets: str, name: str, options: argparse.Namespace) -> int:
    """Peak resident set of a process of its own after three steps, in bytes."""
    numbers = {n: getattr(options, n) for n in ("k", "batch", "length", "threads", "seed")}
    if options.layers:
        numbers["layers"] = options.layers
    passed = [f"--{n}={v}" for n, v in numbers.items()]
    command = [sys.executable, "-m", "benchmarks.training_step", *passed]
    done = subprocess.run(
        [*command, "--only", shape, targets, name], check=True, capture_output=True, text=True
    )
    return int(done.stdout.splitlines()[-1])


def report(results: dict[str, Any]) -> str:
    """One table of all sets."""
    rows = [_row(one, name, run) for one in results["sets"] for name, run in one["runs"].items()]
    header = [
        "shape", "targets", "method", "s a step", "by LoRA", "trained", "fewer",
        "optimizer state + gradients, kB", "kept for backward, MB", "with what it adds, MB",
        "peak RSS, MB",
    ]  # fmt: skip
    sizes = results["sizes"]
    said = f"k = {sizes['k']}, p = 8, batches of {sizes['batch']} x {sizes['length']} tokens"
    return f"{said}\n\n{common.table(header, rows)}"


def _row(one: dict[str, Any], name: str, run: dict[str, Any]) -> list[str]:
    lora = one["runs"][LORA]
    return [
        one["shape"],
        one["targets"],
        name,
        f"{run['seconds']:.3f}",
        f"{run['ratio']:.2f}x",
        f"{run['trained']:,.0f}",
        f"{lora['trained'] / run['trained']:.1f}x",
        f"{run['optimizer_and_gradients'] / 1e3:,.0f}",
        f"{run['kept_for_backward'] / 1e6:.1f}",
        f"{(run['kept_for_backward'] + run['added']) / 1e6:.1f}",
        f"{run['peak_rss'] / 1e6:.0f}",
    ]


if __name__ == "__main__":
    main()
