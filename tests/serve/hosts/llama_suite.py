"""GGUF adapters through a real llama.cpp: ``make llama``.

For every architecture that an export knows, a tiny model of random weights and a random task: what
transformers says of the next token, with and without the task, must be what llama.cpp says with
and without the exported file. llama.cpp comes as the ``xllamacpp`` package in an environment of
its own (``--python``). The result is written to ``llama_result.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from serve.hosts.llama_base import write_base
from sharespace.formats import ExportOptions, PlainLora, write_adapter
from sharespace.formats.gguf import ARCHITECTURES
from sharespace.subspace.adapter import LayerUpdate
from tuner.spaces import seeded

RESULT = Path(__file__).with_name("llama_result.json")
PROMPT = [3, 17, 8, 25, 11, 30, 6]
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_positions": 128,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "granite": {"attention_multiplier": 0.25, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "phi3": {"original_max_position_embeddings": 128},
    "smollm3": {"no_rope_layers": [1, 1]},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 64},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 64},
}
TIED = {"llama": False, "mistral": False, "qwen2": False, "qwen3": False, "phi3": False}
LARGEST = 2e-3
"""Difference of two log probabilities that rounding explains."""


@dataclass(frozen=True)
class Case:
    """One architecture on disk, and what transformers says."""

    base: Path
    adapter: Path
    expected: dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="with xllamacpp")
    parser.add_argument("--only", nargs="*", default=sorted(ARCHITECTURES))
    chosen = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.only:
            found[name] = _compare(_case(name, Path(folder) / name), chosen.python)
            print(name, found[name], flush=True)
    record = {
        "xllamacpp": _version(chosen.python),
        "gguf": version("gguf"),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "largest difference of log probabilities": found,
        "allowed": LARGEST,
    }
    if set(chosen.only) == set(ARCHITECTURES):
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
    if any(row[side] > LARGEST for row in found.values() for side in ("base", "task")):
        sys.exit(1)


def _case(model_type: str, folder: Path) -> Case:
    folder.mkdir()
    config = _config(model_type)
    model = seeded(lambda: transformers.AutoModelForCausalLM.from_config(config)).eval()
    _spread(model)
    config.save_pretrained(folder)
    write_base(folder / "base.gguf", model)
    lora = _task(model)
    (adapter,) = write_adapter(folder / "ink", lora, ExportOptions(base=str(folder)), to="gguf")
    expected = {"base": _next(model)}
    for module, update in lora.updates.items():
        weight = model.get_submodule(module).weight
        change = update.scaling * update.up @ update.down
        weight.data += change.mT if model_type == "gpt2" else change
    return Case(folder / "base.gguf", adapter, expected | {"task": _next(model)})


def _config(model_type: str) -> Any:
    sizes = {} if model_type == "gpt2" else SIZES
    tied = {"tie_word_embeddings": TIED[model_type]} if model_type in TIED else {}
    return transformers.AutoConfig.for_model(model_type, **(sizes | tied | OWN.get(model_type, {})))


def _spread(model: Any) -> None:
    """Larger weights than at the start of training, so that every layer matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name and "wte" not in name:
                parameter.data = torch.randn_like(parameter) * 0.15
            elif parameter.dim() == 1:
                parameter.data += torch.randn_like(parameter) * 0.1


def _task(model: Any) -> PlainLora:
    """Of all linear layers (Conv1D has its weight the other way round)."""
    updates: dict[str, LayerUpdate] = {}
    draw = torch.Generator().manual_seed(1)
    for name, module in model.named_modules():
        if type(module).__name__ not in ("Linear", "Conv1D"):
            continue
        if name == "lm_head" and model.config.tie_word_embeddings:
            continue
        shape = module.weight.shape
        n, d = shape if type(module).__name__ == "Linear" else reversed(shape)
        r = 2 + len(updates) % 3
        up, down = torch.randn(n, r, generator=draw), torch.randn(r, d, generator=draw)
        updates[name] = LayerUpdate(0.05 * up, down, 1.0 + len(updates) % 2)
    return PlainLora(updates, {}, {}, {})


@torch.no_grad()
def _next(model: Any) -> Tensor:
    """Log probabilities of the next token."""
    found: Tensor = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    return found


def _compare(case: Case, python: Path) -> dict[str, float]:
    run = Path(__file__).with_name("llama_run.py")
    found = {}
    for side, adapters in (("base", []), ("task", [str(case.adapter)])):
        out = case.base.with_name(f"{side}.json")
        command = [str(python), str(run), str(case.base), json.dumps(PROMPT), str(out), *adapters]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            print(done.stderr[-4000:], file=sys.stderr)
            raise RuntimeError(f"llama.cpp failed on {case.base.parent.name}, {side}")
        theirs = {int(token): value for token, value in json.loads(out.read_text()).items()}
        ours = case.expected[side]
        found[side] = max(abs(value - float(ours[token])) for token, value in theirs.items())
        found[f"tokens of {side}"] = len(theirs)
    found["change"] = float((case.expected["task"] - case.expected["base"]).abs().max())
    return {name: round(value, 6) for name, value in found.items()}


def _version(python: Path) -> str:
    code = "import importlib.metadata as m; print(m.version('xllamacpp'))"
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
