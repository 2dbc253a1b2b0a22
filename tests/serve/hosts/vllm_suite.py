"""The tasks of a Share model through a real vLLM, token by token: ``make vllm``.

Every task's greedy tokens from vLLM's server must be those of transformers with our mixed forward.
vLLM lives in an environment of its own (``--python``), which must have sharespace, too. Without
``--model`` and ``--share`` a tiny Llama with random tasks is made; with them any causal language
model and Share model are taken. The result is written to ``vllm_result.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))

from serve.conftest import tokenizer
from sharespace import Share
from sharespace.formats import read_adapter
from sharespace.serve.mixed import MixedTasks
from tuner.spaces import seeded

RESULT = Path(__file__).with_name("vllm_result.json")
PROMPTS = ("once upon a time", "the answer is", "0123456789")
TASKS = 6
RANK = 8


def main() -> None:
    chosen = _options()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = chosen.model or _tiny(place / "model")
        store = chosen.share or _tasks(model, place)
        expected = _expected(model, store, chosen.tokens)
        with Server(chosen.python, model, store, place) as (process, address):
            _wait(process, address)
            found = {
                task: [_complete(address, task, prompt, chosen.tokens) for prompt in PROMPTS]
                for task in expected
            }
            version = _get(f"{address}/version")["version"]
            missing = _status(address, "nobody")
    wrong = {
        task: [pair for pair in zip(expected[task], found[task], strict=True) if pair[0] != pair[1]]
        for task in expected
        if expected[task] != found[task]
    }
    tasks = len({json.dumps(answers) for answers in expected.values()})
    record = {
        "vllm": version,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "model": "a given one" if chosen.model else "a tiny Llama, random weights",
        "tasks": len(expected),
        "tasks with answers of their own": tasks,
        "prompts": len(PROMPTS),
        "tokens": chosen.tokens,
        "tasks whose tokens differ": wrong,
        "status of an unknown task": missing,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    if wrong or missing != 404:
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="of the environment of vLLM")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--share", type=Path)
    parser.add_argument("--tokens", type=int, default=12)
    return parser.parse_args()


def _tiny(folder: Path) -> Path:
    """Heads of 32, the least that vLLM's attention takes on a CPU."""
    config = transformers.LlamaConfig(
        vocab_size=258, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, eos_token_id=1,
        max_position_embeddings=256,
    )  # fmt: skip
    seeded(lambda: transformers.LlamaForCausalLM(config)).save_pretrained(folder)
    tokenizer(pad_left=True).save_pretrained(folder)
    return folder


def _tasks(model: Path, place: Path) -> Path:
    """Random LoRAs by PEFT, and a Share model of them that is not exact."""
    import peft

    adapters = {}
    for i in range(TASKS):
        torch.manual_seed(i)
        base = transformers.AutoModelForCausalLM.from_pretrained(model)
        config = peft.LoraConfig(
            r=RANK, lora_alpha=64, target_modules="all-linear", init_lora_weights=False
        )
        peft.get_peft_model(base, config).save_pretrained(place / f"lora-{i}")
        adapters[f"task-{i}"] = read_adapter(place / f"lora-{i}", f"task-{i}")
    Share.from_adapters(adapters, k=24).save(place / "tasks.share")
    return place / "tasks.share"


@torch.no_grad()
def _expected(model: Path, store: Path, count: int) -> dict[str, list[list[int]]]:
    """Task -> tokens after each prompt."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(model)
    share = Share.load(store)
    mixed = MixedTasks(base, share)
    found: dict[str, list[list[int]]] = {}
    for prompt in PROMPTS:
        ids = torch.tensor([words(prompt)["input_ids"]]).repeat(len(share.tasks), 1)
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False}
        with mixed.tasks(share.tasks):
            out = base.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)
        for task, row in zip(share.tasks, out.tolist(), strict=True):
            found.setdefault(task, []).append(row[ids.shape[1] :])
    return found


class Server:
    """vLLM's server as a process, its log in a file."""

    def __init__(self, python: Path, model: Path, store: Path, place: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.log = place / "vllm.log"
        self.command = [
            str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
            "--served-model-name", "base", "--port", str(self.port), "--dtype", "float32",
            "--enforce-eager", "--enable-lora", "--max-lora-rank", "32", "--max-loras", "8",
            "--max-model-len", "128", "--max-num-seqs", "8",
        ]  # fmt: skip
        self.environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "SHARESPACE_VLLM_SHARE": str(store),
            "SHARESPACE_VLLM_CACHE": str(place / "cache"),
        }

    def __enter__(self) -> tuple[subprocess.Popen[bytes], str]:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        return self.process, f"http://127.0.0.1:{self.port}"

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        if error[0] is not None:
            print(self.log.read_text()[-5000:], file=sys.stderr)


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError("vLLM did not start")
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        except OSError:
            time.sleep(1)
    raise RuntimeError("vLLM was not ready in ten minutes")


def _complete(address: str, task: str, prompt: str, count: int) -> list[int]:
    body = {
        "model": task,
        "prompt": prompt,
        "max_tokens": count,
        "temperature": 0,
        # As min_new_tokens of transformers: the end is not chosen before.
        "min_tokens": count,
        "return_token_ids": True,
    }
    found: list[int] = _post(address, body)["choices"][0]["token_ids"]
    return found


def _status(address: str, task: str) -> int:
    try:
        _post(address, {"model": task, "prompt": "x", "max_tokens": 1})
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def _post(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def _get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
