"""Batches whose rows belong to different tasks: MixedTasks beside what PEFT offers.

A model of random weights and random tasks; only sizes matter here (that rows get what their task
alone gives is tested). The contenders take turns, batch by batch, in one process, so that other
jobs disturb all alike, and with one thread on the CPU its CPU time is taken, which they do not
lengthen; a ratio is the median over rounds of the ratio to the bare base model in each round, and
PEFT's by ours that of each round, too, with the standard error of the median. Rows
are of as many different tasks as there are, or as there are rows. Two phases: a prompt
(``--length`` tokens a row), and a decoding step (one token a row).

- ``base``: the base model, no task at all: the limit.
- ``MixedTasks``: all rows at once; every batch has its tasks in other rows than the one before, so
  that what switching costs is counted.
- ``adapter_names``: PEFT's mixed batch, a LoRA of rank 8 per task.
- ``set_adapter``: PEFT, one task's rows after the other's.
- ``merged copies``: one task's rows after the other's through a merged model of its own, which is
  as fast as the base model; one copy's time stands for all, the memory is counted.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from sharespace import Share
from sharespace.serve.mixed import MixedTasks
from sharespace.subspace.adapter import BaseModel, ModuleShape
from sharespace.subspace.coefficients import Factors
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import BuildSettings, Ledger, ShareModel, Task

TARGETS = {
    "bert": {
        "q, v": ["query", "value"],
        "all linear": ["query", "key", "value", "attention.output.dense", "intermediate.dense",
                       "output.dense"],
    },
    "llama": {
        "q, v": ["q_proj", "v_proj"],
        "all linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                       "down_proj"],
    },
}  # fmt: skip
LAYERS = {"bert": 2, "llama": 1}
"""Of the model; ratios hardly change with more, and 1,024 adapters of PEFT fit into memory."""
PHASES = ("prompt", "step")
VOCABULARY = 1000
RANK = 8
BASE, OURS, NAMES, SWITCH, COPIES = (
    "base", "MixedTasks", "adapter_names", "set_adapter", "merged copies",
)  # fmt: skip
SLOW = {SWITCH: 1, COPIES: 1}
"""Rounds, without one to warm up, of contenders that are far off anyhow ..."""
SLOW_TASKS = 64
"""... and the most tasks that they are measured with: more do not fit into a batch."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    before = common.wait_until_quiet(options.wait)
    clock = common.Clock.now()
    results: dict[str, Any] = {
        "environment": common.environment(options.seed),
        "load_before": before,
        "sizes": {n: getattr(options, n) for n in ("k", "p", "rows", "length", "rounds")}
        | {"layers": {shape: options.layers or LAYERS[shape] for shape in LAYERS}},
        "clock": _clock(options)[0],
        "sets": [],
    }
    if options.add and options.out.exists():
        results["sets"] = json.loads(options.out.read_text())["sets"]
    for shape in options.shapes:
        for targets in [t for t in TARGETS[shape] if t in options.targets]:
            for phase in options.phases:
                found = measure(shape, targets, phase, options)
                results["sets"] = with_set(results["sets"], found)
                # It takes half an hour: what is measured is kept.
                common.write_results(options.out, results | {"others_during": clock.others()})
    print(report(results | {"others_during": clock.others()}))


def with_set(sets: Sequence[dict[str, Any]], found: dict[str, Any]) -> list[dict[str, Any]]:
    """The sets with what was measured now; other numbers of tasks of the same set are kept."""
    known = next((s for s in sets if _place(s) == _place(found)), None)
    runs = {**known["runs"], **found["runs"]} if known else found["runs"]
    merged = {**found, "runs": {n: runs[n] for n in sorted(runs, key=int)}}
    if known is None:
        return [*sets, merged]
    return [merged if s is known else s for s in sets]


def _place(found: dict[str, Any]) -> tuple[str, str, str]:
    return found["shape"], found["targets"], found["phase"]


def _clock(options: argparse.Namespace) -> tuple[str, Callable[[], float]]:
    """CPU time where one thread does all the work: other jobs do not lengthen it."""
    if options.device == "cpu" and options.threads == 1:
        return "CPU time", time.process_time
    return "wall clock", time.perf_counter


def parsed(
    arguments: Sequence[str] | None, name: str = "mixed_batch", said: str | None = __doc__
) -> argparse.Namespace:
    """The options, which ``gpu`` and ``mixed_added`` need, too."""
    parser = common.parser(said, name)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--shapes", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    names = list(TARGETS["bert"])
    parser.add_argument("--targets", nargs="+", default=names, choices=names)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--phases", nargs="+", default=PHASES, choices=PHASES)
    parser.add_argument("--layers", type=int, help=f"of the model; default {LAYERS}")
    parser.add_argument("--add", action="store_true", help="to what the results file has")
    parser.add_argument("--width", type=int, help="another hidden size, for tests")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--p", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for a quiet machine")
    return parser.parse_args(arguments)


def measure(shape: str, targets: str, phase: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model and choice of modules, for all numbers of tasks."""
    modules = TARGETS[shape][targets]
    length = options.length if phase == "prompt" else 1
    runs = {}
    for count in options.tasks:
        contenders = Contenders(shape, modules, count, length, options)
        runs[str(count)] = contenders.compare(options.rounds, _clock(options)[1])
        said = {n: round(r["ratio"], 2) for n, r in runs[str(count)].items()}
        print(f"{shape}, {targets}, {phase}, {count} tasks: {said}", flush=True)
    return {"shape": shape, "targets": targets, "phase": phase, "runs": runs}


class Contenders:
    """Everything that runs the same batch of rows."""

    def __init__(
        self,
        shape: str,
        modules: list[str],
        count: int,
        length: int,
        options: argparse.Namespace,
    ) -> None:
        torch.manual_seed(options.seed)
        self.device = torch.device(options.device)
        self.inputs = torch.randint(VOCABULARY, (options.rows, length), device=self.device)
        order = torch.randperm(max(count, options.rows))[: options.rows]
        self.rows = [f"task-{int(i) % count}" for i in order]
        self.bare = self._model(shape, options)
        self.mixed = self._mixed(shape, modules, count, options)
        self.peft = self._peft(shape, modules, count, options)
        self.calls: dict[str, Callable[[], object]] = {
            BASE: lambda: self.bare(self.inputs),
            OURS: self._all_at_once,
            NAMES: lambda: self.peft(input_ids=self.inputs, adapter_names=self.rows),
            SWITCH: self._switching,
            COPIES: self._copies,
        }
        if count > SLOW_TASKS:
            self.calls = {n: call for n, call in self.calls.items() if n not in SLOW}

    def _model(self, shape: str, options: argparse.Namespace) -> nn.Module:
        layers = options.layers or LAYERS[shape]
        return base_model(shape, layers, options.width).eval().to(self.device)

    def _twin(self, shape: str, options: argparse.Namespace) -> nn.Module:
        """With the bare model's weights, in the same memory: where they lie changes times, too."""
        model = self._model(shape, options)
        model.load_state_dict(self.bare.state_dict(), assign=True)
        return model

    def _mixed(
        self, shape: str, modules: list[str], count: int, options: argparse.Namespace
    ) -> MixedTasks:
        model = self._twin(shape, options)
        share = Share(random_share(model, modules, count, options.k, options.p))
        return MixedTasks(model, share, slots=count)

    def _peft(self, shape: str, modules: list[str], count: int, options: argparse.Namespace) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, target_modules=modules, init_lora_weights=False)
        model = get_peft_model(self._twin(shape, options), config, adapter_name="task-0")
        for i in range(1, count):
            _add_lora(model, f"task-{i}", config)
        return model.eval()

    def _all_at_once(self) -> None:
        self.rows = [*self.rows[1:], self.rows[0]]
        with self.mixed.tasks(self.rows):
            self.mixed.model(self.inputs)

    def _switching(self) -> None:
        for name, mine in self._by_task():
            self.peft.set_adapter(name)
            self.peft(input_ids=mine)

    def _copies(self) -> None:
        for _, mine in self._by_task():
            self.bare(mine)

    def _by_task(self) -> list[tuple[str, Tensor]]:
        rows = torch.tensor([int(n.removeprefix("task-")) for n in self.rows], device=self.device)
        names = dict.fromkeys(self.rows)
        return [(n, self.inputs[rows == int(n.removeprefix("task-"))]) for n in names]

    @torch.no_grad()
    def compare(self, rounds: int, clock: Callable[[], float]) -> dict[str, dict[str, float]]:
        """Seconds a batch, its ratio to the base model's, and bytes of one task."""
        times: dict[str, list[float]] = {name: [] for name in self.calls}
        for turn in range(rounds + 1):
            names = list(self.calls)
            # Another one is first in each round: nobody always runs after the same neighbour.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if turn > SLOW.get(name, rounds) or (not turn and name in SLOW):
                    continue
                start = clock()
                self._finished(name)
                times[name] += [clock() - start] * bool(turn)
        found = {}
        for name, mine in times.items():
            ratio, error = median_ratio(mine, times[BASE])
            found[name] = {
                "seconds": statistics.median(mine),
                "ratio": ratio,
                "error": error,
                "rounds": len(mine),
                "bytes_a_task": self._bytes(name),
            }
        ratio, error = median_ratio(times[NAMES], times[OURS])
        found[NAMES] |= {"by_ours": ratio, "by_ours_error": error}
        return found

    def _finished(self, name: str) -> None:
        self.calls[name]()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _bytes(self, name: str) -> float:
        if name == OURS:
            return self.mixed.slots.nbytes / (len(self.mixed.share.tasks) + 1)
        if name == COPIES:
            return sum(p.nbytes for p in self.bare.parameters())
        mine = [p for n, p in self.peft.named_parameters() if ".task-0." in n]
        return 0.0 if name == BASE else sum(p.nbytes for p in mine)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Median over the rounds both ran, and its standard error (from the quartiles)."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
    if len(ratios) < 2:
        return ratios[0], 0.0
    first, median, third = statistics.quantiles(ratios, n=4, method="inclusive")
    # Normal noise: a standard deviation is 0.741 of that range; a median's error 1.253 of a mean's.
    return median, 1.253 * 0.741 * (third - first) / math.sqrt(len(ratios))


def _add_lora(model: Any, name: str, config: Any) -> None:
    """As ``add_adapter``, whose time a call grows with the adapters: hours for 1,024 of them."""
    from peft.tuners.lora import LoraLayer

    model.peft_config[name] = config
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            # It would visit all adapters again; the active one stays the first.
            layer.set_adapter = lambda *_, **__: None
            layer.update_layer(name, config.r, lora_alpha=config.lora_alpha, config=config)
            del layer.set_adapter


def base_model(shape: str, layers: int, width: int | None) -> nn.Module:
    """BERT-base's layers, or those of a Llama of 1.1B parameters."""
    import transformers

    sizes = {"bert": (768, 12, 3072), "llama": (2048, 32, 5632)}
    hidden, heads, inner = sizes[shape] if width is None else (width, 2, 2 * width)
    common_sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": VOCABULARY,
    }
    if shape == "bert":
        bert: nn.Module = transformers.BertModel(transformers.BertConfig(**common_sizes))
        return bert
    # Four key-value heads, as TinyLlama has.
    config = transformers.LlamaConfig(**common_sizes, num_key_value_heads=min(4, heads))
    llama: nn.Module = transformers.LlamaModel(config)
    return llama


def random_share(
    model: nn.Module, modules: Sequence[str], count: int, k: int, p: int
) -> ShareModel:
    """Orthonormal bases and coefficients at random."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and any(name.endswith(f".{m}") for m in modules):
            n, d = module.out_features, module.in_features
            left, right = (torch.linalg.qr(torch.randn(side, k))[0] for side in (n, d))
            layers[name] = LayerSubspace(ModuleShape(n, d), left, right)
    norms = torch.ones(len(layers), dtype=torch.float64)
    ledger = Ledger(tuple(layers), norms, norms.new_zeros(len(layers), 0), ())
    tasks = {}
    for i in range(count):
        found = {m: Factors(torch.randn(k, p) / k, torch.randn(k, p)) for m in layers}
        tasks[f"task-{i}"] = Task(f"task-{i}", found, ledger)
    return ShareModel(BaseModel(), BuildSettings(), torch.float32, layers, tasks)


def report(results: dict[str, Any]) -> str:
    """One table of all sets, and what the goals say."""
    header = ["shape", "targets", "phase", "tasks", "base, ms"]
    header += [f"{n}, by base" for n in (OURS, NAMES, SWITCH, COPIES)]
    header += [f"{NAMES} by {OURS}", "the same, beyond base"]
    header += ["kB a task: MixedTasks", "LoRA", "a copy"]
    rows = [_row(one, count, run) for one in results["sets"] for count, run in one["runs"].items()]
    sizes = results["sizes"]
    layers = ", ".join(f"{n} {shape}" for shape, n in sizes["layers"].items())
    said = (
        f"{sizes['rows']} rows; a prompt has {sizes['length']} tokens a row, a step one. k = "
        f"{sizes['k']}, p = {sizes['p']}, LoRA of rank {RANK}; layers: {layers}. Medians of "
        f"{_rounds(results)} rounds ({SLOW[SWITCH]} of {SWITCH} and {COPIES}), "
        f"{results['clock']}; other jobs had {results['others_during']:.0%} of the cores. "
        "±: the median's standard error. "
        "Beyond base: the time that is added to the base model's, PEFT's by ours."
    )
    return f"{said}\n\n{common.table(header, rows)}"


def _rounds(results: dict[str, Any]) -> str:
    """The fewest and the most of any line."""
    before = results["sizes"]["rounds"]
    counts = [r[OURS].get("rounds", before) for s in results["sets"] for r in s["runs"].values()]
    least, most = min(counts), max(counts)
    return f"{least}" if least == most else f"{least} to {most}"


def _row(one: dict[str, Any], count: str, run: dict[str, Any]) -> list[str]:
    ratios = [f"{run[n]['ratio']:.2f}x" if n in run else "-" for n in (OURS, NAMES, SWITCH, COPIES)]
    copy = next((r[COPIES]["bytes_a_task"] for r in one["runs"].values() if COPIES in r), 0.0)
    sizes = [run[n]["bytes_a_task"] for n in (OURS, NAMES)] + [copy]
    ours, theirs = run[OURS]["ratio"], run[NAMES]["ratio"]
    # Less than a hundredth of the base model's time, or three errors, is noise, not a factor.
    clear = all(run[n]["ratio"] - 1 > max(0.01, 3 * run[n].get("error", 0)) for n in (OURS, NAMES))
    beyond = f"{(theirs - 1) / (ours - 1):.1f}x" if clear else "-"
    kilobytes = [f"{size / 1e3:,.1f}" for size in sizes]
    first = [one["shape"], one["targets"], one["phase"], count, f"{1e3 * run[BASE]['seconds']:.1f}"]
    direct = f"{run[NAMES].get('by_ours', theirs / ours):.3f}x"
    if run[NAMES].get("by_ours_error"):
        direct += f" ± {run[NAMES]['by_ours_error']:.3f}"
    return [*first, *ratios, direct, beyond, *kilobytes]


if __name__ == "__main__":
    main()
