"""The experiment generation, in its tiny version, and what it has of its own."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("tokenizers")

from experiments_calls import call
from shared_data import TEXT

if not TEXT.is_dir():
    pytest.skip("the text sets are not here", allow_module_level=True)

from experiments.generation import adapters
from experiments.generation.adapters import fresh, scaled, train
from experiments.generation.base import padded, tokenise
from experiments.generation.experiment import Generation
from experiments.generation.many import Stack, adapted
from experiments.generation.rules import RULES, TAUGHT
from experiments.generation.scoring import _forced
from experiments.generation.settings import ALPHA, LORA_RATE, QUICK, RANK, TARGETS
from experiments.generation.tasks import Example
from experiments.harness.experiment import opened, parser

from sharespace.formats import PlainLora, write_adapter

WORDS = ("may", "i", "book", "a", "new", "hotel")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generation")


@pytest.fixture(scope="module")
def experiment(cache: Path) -> Generation:
    arguments = ["--data", str(TEXT), "--cache", str(cache), "--quick"]
    made: Generation = opened(Generation, parser(Generation, None).parse_args(arguments))
    return made


def test_from_data_to_tables_and_figures(
    experiment: Generation, cache: Path, tmp_path: Path
) -> None:
    assert len(experiment.tasks) == 10
    results, figures = tmp_path / "results", tmp_path / "figures"
    common = ("generation", "--data", TEXT, "--cache", cache, "--quick", "--out", results)
    call("merge", *common, "--starts", "own", "--seeds", 0, 1)
    merged = json.loads((results / "merge" / "own-0.json").read_text())
    names = {"original", "base", "mean_adapter", "share 4", "joint 4", "own_svd 4"}
    assert set(merged["methods"]) == {*names, "random_basis 4"}
    assert [step["tasks"] for step in merged["methods"]["joint 4"]["steps"]] == [4, 8, 10]
    again = json.loads((results / "merge" / "own-1.json").read_text())
    assert set(again["methods"]) == {"share 4", "joint 4"}

    methods = ("head_only", "per_task_lora", "share_strict")
    call("run", *common, "--seeds", 0, "--methods", *methods)
    record = json.loads((results / "runs" / "generation-0.json").read_text())
    trained = {m: record["methods"][m]["trainable"]["agnews"] for m in methods}
    modules = 2 * len(TARGETS)
    assert trained == {
        "head_only": 0,
        "per_task_lora": modules * RANK * 2 * QUICK.pretraining.hidden,
        "share_strict": modules * 12 * 12,
    }

    trials = ("--core", 4, 2, 1e-2, 2, "--lora", 2, 1e-3, 2)
    call("tune", *common, "--tasks", "agnews", *trials)
    tried = json.loads((results / "tune.json").read_text())["trials"]
    labels = {"core p=4 phi=2 rate=0.01 steps=2", "lora rank=2 rate=0.001 steps=2"}
    assert set(tried) == {*labels, "head alone"}
    call("weighing", *common)
    check_weighing(json.loads((results / "weighing.json").read_text())["scores"]["4"])

    call("summarise", "generation", "--results", results, "--figures", figures)
    assert "joint (ours)" in (results / "tables.md").read_text()
    assert len(json.loads((results / "claims.json").read_text())["claims"]) == 3
    assert len(list(figures.glob("generation-*.png"))) == 3


def check_weighing(found: Any) -> None:
    """Who counts how much matters, and the library's weights leave the least relative error."""
    assert sum("roots" in label for label in found) == 2
    at_once = {n: v for n, v in found.items() if "at once" in n and "roots" not in n}
    assert len(at_once) == 3
    best = max(at_once, key=lambda label: at_once[label]["explained_variance"])
    assert best == "joint, weight 1/|dW|, at once"


def test_many_adapters_at_once_are_as_pefts(experiment: Generation, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = experiment.model
    rows = tokenise(base.tokenizer, [Example("may i book", "hotel"), Example("a new", "b")], 64)
    ids, _ = padded(rows)
    names = ["first", "second"]
    stack = Stack.of({name: _drawn(base.model, number) for number, name in enumerate(names)})
    with torch.no_grad(), adapted(base.model, stack):
        ours = base.model(input_ids=ids).logits.float()
    for number, name in enumerate(names):
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": list(TARGETS)}
        write_adapter(tmp_path / name, PlainLora(stack.updates(name), config=config))
        model = peft.PeftModel.from_pretrained(base.model, tmp_path / name)
        with torch.no_grad():
            theirs = model(input_ids=ids[number : number + 1]).logits.float()
        model.unload()
        # bfloat16 weights: PEFT multiplies its factors in float32, ours are cast.
        torch.testing.assert_close(ours[number : number + 1], theirs, rtol=0.05, atol=0.05)
    assert not any(isinstance(m, type(stack)) for m in base.model.modules())


def _drawn(model: Any, seed: int) -> Any:
    stack = fresh(model, ["x"], "own", seed)
    generator = torch.Generator().manual_seed(seed)
    up = {m: torch.randn(u.shape, generator=generator) for m, u in stack.up.items()}
    down = {m: d.detach() for m, d in stack.down.items()}
    return Stack(("x",), up, down).updates("x")


def test_training_many_is_training_each_by_peft(experiment: Generation) -> None:
    """The second of two adapters that are trained together, against PEFT's layers, alone."""
    peft = pytest.importorskip("peft")
    model = experiment.model.model.float()
    size = replace(QUICK, steps=3, batch_size=3)
    names = ["rule-last-2", "rule-reverse"]
    tokenizer = experiment.model.tokenizer
    rows = {n: tokenise(tokenizer, experiment.tasks[n].train, 64) for n in names}
    stack, _ = train(model, rows, size, "own", seed=5)

    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))
    wrapped = peft.get_peft_model(model, config)
    layers = {n: wrapped.base_model.model.get_submodule(n) for n in stack.up}
    for number, layer in enumerate(layers.values()):
        with torch.no_grad():
            first = adapters.first_factor(names[1], layer.in_features, "own", 5, number)
            layer.lora_A["default"].weight.copy_(first)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LORA_RATE, weight_decay=0.0)
    batches = adapters._batches(rows[names[1]], size.batch_size, names[1], 5)
    for step in range(size.steps):
        for group in optimizer.param_groups:
            group["lr"] = LORA_RATE * adapters._rate(step, size.steps)
        ids, labels = padded(next(batches))
        optimizer.zero_grad()
        wrapped(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    for name, layer in layers.items():
        theirs = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        mine = stack.updates(names[1])[name]
        torch.testing.assert_close(mine.up @ mine.down, theirs.detach(), rtol=1e-3, atol=1e-5)
    wrapped.unload()
    experiment.model.model.to(torch.bfloat16)


def test_exact_match_needs_no_generation(experiment: Generation) -> None:
    """A greedy answer is the reference where all its tokens come first, and only there."""
    base = experiment.model
    asked = [Example(f"text: {' '.join(WORDS[:n])} task:", "x") for n in (2, 4, 6)]
    rows = tokenise(base.tokenizer, asked, 64)
    model = base.model
    for row in rows:
        given = torch.tensor([row.ids[: row.prompt]])
        with torch.no_grad():
            made = model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=4,
                do_sample=False,
            )[0].tolist()
        right = replace(row, ids=tuple(made))
        wrong = replace(row, ids=(*made[:-1], (made[-1] + 1) % len(base.tokenizer)))
        test = experiment.tests["agnews"]
        for found, expected in ((right, True), (wrong, False)):
            exact, _ = _forced(model, [replace(test, rows=(found,))], None)
            assert bool(exact[0, 0]) is expected


def test_rules_of_the_stream_are_not_taught() -> None:
    assert not {said for said, _ in TAUGHT.values()} & {said for said, _ in RULES.values()}
    answers = {name: " ".join(rule(WORDS)) for name, (_, rule) in RULES.items()}
    assert answers["reverse"] == "hotel new a book i may"
    assert answers["neighbours"] == "i may a book hotel new"
    assert answers["halves"] == "a new hotel may i book"
    assert answers["initials"] == "m i b a n h"
    assert answers["short"] == "may i a new"
    assert answers["long"] == "book hotel"


def test_an_adapters_start_and_clipping_are_its_own(experiment: Generation) -> None:
    own = fresh(experiment.model.model, ["a", "b"], "own", 0)
    same = fresh(experiment.model.model, ["a", "b"], "same", 0)
    alone = fresh(experiment.model.model, ["b"], "own", 0)
    for module, down in own.down.items():
        assert not torch.equal(down[0], down[1])
        assert torch.equal(down[1], alone.down[module][0])
        assert torch.equal(same.down[module][0], same.down[module][1])
        assert down.abs().max() <= 1 / math.sqrt(QUICK.pretraining.hidden)
    factors = torch.zeros(2, 3, 4, requires_grad=True)
    factors.grad = torch.stack([torch.full((3, 4), 10.0), torch.full((3, 4), 0.01)])
    adapters.clip([factors])
    norms = factors.grad.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 0.01 * math.sqrt(12)]), rtol=1e-4, atol=0)
    assert torch.equal(scaled(own).up["model.layers.0.self_attn.q_proj"], own.up[
        "model.layers.0.self_attn.q_proj"] * ALPHA / RANK)  # fmt: skip
