"""Makes ``store-v3``, a store of schema version 3: base samples, files, labels, where tasks began.

Run it once; it refuses to overwrite. Every later release must read it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from golden.make_store_v1 import numbers, version
from sharespace.store import Operation, commit
from sharespace.subspace.base_weights import sampled_rows
from sharespace.subspace.state import ShareModel

PATH = Path(__file__).parent / "store-v3"

FILES = {
    "chat_template.jinja": b"{{ messages[0]['content'] }}\n",
    "additional_chat_templates/tool_use.jinja": b"",
    "tokenizer.model": bytes(range(256)),
}


def model() -> ShareModel:
    """The first task has all of it, the second nothing."""
    made = version(2)
    first, second = made.tasks.values()
    first = replace(
        first,
        files={
            name: torch.frombuffer(bytearray(b), dtype=torch.uint8)
            if b
            else torch.empty(0, dtype=torch.uint8)
            for name, b in FILES.items()
        },
        labels=("négatif", "positive", ""),
        started_from={"task-" + "ab" * 32 + ".safetensors": 0.75},
    )
    samples = {
        module: sampled_rows(numbers(i, layer.shape.out_features, layer.shape.in_features))
        for i, (module, layer) in enumerate(made.layers.items())
    }
    return replace(made.with_tasks([first, second]), base_samples=samples)


def make(path: Path) -> None:
    """Write it to a new store."""
    made = model()
    commit(path, made, operation=Operation("init", tuple(made.tasks)), expected_parent=None)
    (path / "lock").unlink()  # it names the machine


if __name__ == "__main__":
    make(PATH)
