"""Rows of many tasks in one forward pass, against one task at a time with weights changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from sharespace import Share
from sharespace.errors import MismatchError, OptionError, TaskNotFoundError
from sharespace.serve.mixed import MixedTasks
from sharespace.subspace.coefficients import Core, Factors, PerTask
from sharespace.subspace.state import ShareModel, Task, reconstruct
from sharespace.tuner import applied
from tuner.spaces import seeded, space

TASKS = ("a", "b", "c")
MIXED = ("b", None, "a", "b", "c", "a")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")


def bert(labels: int = 3) -> Any:
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, num_labels=labels,
    )  # fmt: skip
    return seeded(lambda: BertForSequenceClassification(config)).eval()


def gpt2() -> Any:
    config = GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32,
        bos_token_id=1, eos_token_id=39, pad_token_id=0,
    )  # fmt: skip
    return seeded(lambda: GPT2LMHeadModel(config)).eval()


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, eos_token_id=39,
    )  # fmt: skip
    return seeded(lambda: LlamaForCausalLM(config)).eval()


def vit() -> Any:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    return seeded(lambda: ViTForImageClassification(config)).eval()


def convolutions() -> Any:
    """With groups, stride, padding that is not zeros, and a linear end."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(8, 8, 3, stride=2, groups=4, padding=1),
            nn.Conv2d(8, 6, 1),
            nn.Flatten(),
            nn.Linear(6 * 9, 5),
        )
    ).eval()


def without_heads(model: ShareModel, *heads: str) -> ShareModel:
    """Only modules that are no heads are adapted."""
    layers = {n: layer for n, layer in model.layers.items() if not n.startswith(heads)}
    tasks = [
        replace(t, coefficients={n: c for n, c in t.coefficients.items() if n in layers})
        for t in model.tasks.values()
    ]
    return model.with_layers(layers).with_tasks(tasks)


def shared(model: nn.Module, *heads: str, tasks: tuple[str, ...] = TASKS) -> Share:
    """A Share model of all linear and convolution modules but the heads."""
    found = space(model, tasks=tasks)
    return Share(without_heads(found, *heads) if heads else found)


def alone(model: nn.Module, share: Share, name: str | None, run: Callable[[], Tensor]) -> Tensor:
    """One task, by changed weights."""
    with torch.no_grad():
        if name is None:
            return run()
        with applied(model, reconstruct(share.model, name)):
            return run()


def each_alone(
    model: nn.Module,
    share: Share,
    names: Sequence[str | None],
    run: Callable[[Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    """Row by row, each with its task's changed weights."""
    rows = zip(names, x[:, None], strict=True)
    return torch.cat([alone(model, share, name, partial(run, row)) for name, row in rows])


def check_rows(model: nn.Module, share: Share, run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Every row of a mixed batch is what its task alone gives."""
    expected = each_alone(model, share, MIXED, run, x)
    mixed = MixedTasks(model, share)
    with torch.no_grad(), mixed.tasks(MIXED):
        found = run(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    mixed.remove()
    with torch.no_grad():
        assert torch.equal(run(x[:1]), alone(model, share, None, lambda: run(x[:1])))


def logits(model: Any, x: Tensor) -> Tensor:
    return torch.as_tensor(model(x).logits)


def tokens() -> Tensor:
    return torch.randint(2, 39, (len(MIXED), 7), generator=torch.Generator().manual_seed(1))


def test_bert_gpt2_llama_vit() -> None:
    images = torch.randn(len(MIXED), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for make, head, x in (
        (bert, "classifier", tokens()),
        (gpt2, "lm_head", tokens()),
        (llama, "lm_head", tokens()),
        (vit, "classifier", images),
    ):
        model = make()
        check_rows(model, shared(model, head), partial(logits, model), x)


def test_convolutions() -> None:
    model = convolutions()
    x = torch.randn(len(MIXED), 4, 6, 6, generator=torch.Generator().manual_seed(1))
    check_rows(model, shared(model), model, x)


def test_other_forms_and_missing_modules() -> None:
    """Whole cores, larger p, updates stored per task, and a task that lacks a module."""
    model = bert()
    share = shared(model, "classifier")
    names = list(share.model.layers)
    a, b, c = (dict(share.task(n).coefficients) for n in TASKS)
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / 4

    for name in names:
        k_left, k_right = share.model.layers[name].k
        b[name] = Factors(normal(k_left, 3), normal(k_right, 3))
    c[names[0]] = Core(normal(*share.model.layers[names[0]].k))
    shape = share.model.layers[names[1]].shape
    c[names[1]] = PerTask(normal(shape.out_features, 2), normal(shape.in_features, 2))
    del a[names[2]]
    tasks = [replace(share.task(n), coefficients=x) for n, x in zip(TASKS, (a, b, c), strict=True)]
    check_rows(model, Share(share.model.with_tasks(tasks)), partial(logits, model), tokens())


def test_a_private_update_of_a_convolution() -> None:
    model = convolutions()
    share = shared(model)
    c = dict(share.task("c").coefficients)
    for name in ("0", "1"):
        shape = share.model.layers[name].shape
        c[name] = PerTask(torch.randn(shape.out_features, 2), torch.randn(shape.in_features, 2))
    tasks = [share.task("a"), share.task("b"), replace(share.task("c"), coefficients=c)]
    x = torch.randn(len(MIXED), 4, 6, 6)
    check_rows(model, Share(share.model.with_tasks(tasks)), model, x)


def with_heads(share: Share, heads: dict[str, dict[str, Tensor]]) -> Share:
    """The tasks with heads of their own, as PEFT's files name them."""
    tasks = []
    for name, task in share.model.tasks.items():
        kept = {f"base_model.model.{k}": t for k, t in heads.get(name, {}).items()}
        tasks.append(replace(task, kept=kept))
    return Share(share.model.with_tasks(tasks))


def test_heads_with_different_numbers_of_labels() -> None:
    model = bert(labels=3)
    sizes = {"a": 2, "b": 5}
    heads = {
        name: {"classifier.weight": torch.randn(n, 16), "classifier.bias": torch.randn(n)}
        for name, n in sizes.items()
    }
    share = with_heads(shared(model, "classifier"), heads)
    mixed, x = MixedTasks(model, share), tokens()
    with torch.no_grad(), mixed.tasks(MIXED):
        found = model(x).logits
    assert found.shape == (len(MIXED), 5)
    for i, name in enumerate(MIXED):
        single = bert(labels=sizes.get(name or "", 3))
        single.load_state_dict(model.state_dict() | heads.get(name or "", {}))
        expected = alone(single, share, name, partial(logits, single, x[i : i + 1]))
        labels = expected.shape[1]
        torch.testing.assert_close(found[i : i + 1, :labels], expected, rtol=1e-4, atol=1e-5)
        assert found[i, labels:].tolist() == [-torch.inf] * (5 - labels)


def test_biases_and_other_modules_of_a_task() -> None:
    """bias="all" and a layer norm that was trained whole."""
    model = bert()
    query = "bert.encoder.layer.0.attention.self.query.bias"
    norm = "bert.encoder.layer.1.output.LayerNorm"
    own = {
        "a": {query: torch.randn(16)},
        "b": {f"{norm}.weight": torch.randn(16), f"{norm}.bias": torch.randn(16)},
    }
    share = with_heads(shared(model, "classifier"), own)
    x = tokens()
    mixed = MixedTasks(model, share)
    with torch.no_grad(), mixed.tasks(MIXED):
        found = model(x).logits
    for i, name in enumerate(MIXED):
        with (
            torch.no_grad(),
            applied(
                model, {} if name is None else reconstruct(share.model, name), own.get(name or "")
            ),
        ):
            mixed.remove()
            torch.testing.assert_close(
                found[i : i + 1], model(x[i : i + 1]).logits, rtol=1e-4, atol=1e-5
            )


def test_a_head_that_the_model_has_not() -> None:
    model = bert()
    share = with_heads(shared(model, "classifier"), {"a": {"score.weight": torch.zeros(2, 16)}})
    mixed = MixedTasks(model, share)
    with pytest.raises(MismatchError, match=r"task 'a'.*score.weight"), mixed.tasks(["a"]):
        pass
    with mixed.tasks(["b"]), torch.no_grad():
        assert torch.isfinite(model(tokens()[:1]).logits).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_generation(beams: int) -> None:
    model = llama()
    share = shared(model, "lm_head")
    x = tokens()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams}

    def run(rows: Tensor) -> Tensor:
        mask = torch.ones_like(rows)
        return torch.as_tensor(model.generate(rows, attention_mask=mask, **options))

    expected = each_alone(model, share, MIXED, run, x)
    assert len(set(map(str, expected[:, -6:].tolist()))) > 1, "the tasks differ"
    mixed = MixedTasks(model, share)
    with torch.no_grad(), mixed.tasks(MIXED, beams=beams):
        assert torch.equal(run(x), expected)


def test_only_the_base_model_is_the_base_model_bit_for_bit() -> None:
    model = bert()
    x = tokens()
    with torch.no_grad():
        expected = model(x).logits
        mixed = MixedTasks(model, shared(model, "classifier"))
        with mixed.tasks([None] * len(x)):
            assert torch.equal(model(x).logits, expected)
        assert torch.equal(model(x).logits, expected)


def test_an_unknown_task_and_a_wrong_number_of_rows() -> None:
    model = bert()
    mixed = MixedTasks(model, shared(model, "classifier"))
    with pytest.raises(TaskNotFoundError, match="'x'"), mixed.tasks(["a", "x"]):
        pass
    with mixed.tasks(["a", "b"]), pytest.raises(OptionError, match="3 rows"):
        model(tokens()[:3])
    with pytest.raises(OptionError, match="slots"):
        MixedTasks(model, mixed.share, slots=0)


def test_another_base_model() -> None:
    share = shared(bert(), "classifier")
    with pytest.raises(MismatchError, match="not in this model"):
        MixedTasks(gpt2(), share)
    other = bert()
    other.bert.encoder.layer[0].attention.self.query = nn.Linear(16, 8)
    with pytest.raises(MismatchError, match=r"query'.*is \(8, 16\)"):
        MixedTasks(other, share)


def test_tasks_come_and_go_through_few_slots(tmp_path: Path) -> None:
    """From a store; more tasks than slots, so that coefficients are read again."""
    model = bert()
    names = tuple(f"t{i}" for i in range(7))
    share = shared(model, "classifier", tasks=names)
    share.save(tmp_path / "s.share")
    stored = Share.load(tmp_path / "s.share")
    x, pairs = tokens()[:2], list(zip(names, names[1:] + names[:1], strict=True))
    expected = [each_alone(model, share, pair, partial(logits, model), x) for pair in pairs]
    mixed = MixedTasks(model, stored, slots=2)
    for pair, wanted in zip(pairs, expected, strict=True):
        with torch.no_grad(), mixed.tasks(pair):
            torch.testing.assert_close(model(x).logits, wanted, rtol=1e-4, atol=1e-5)
        assert set(mixed.slots.at_hand) == set(pair)
    with pytest.raises(OptionError, match="3 tasks in one batch"), mixed.tasks(names[:3]):
        pass


def test_memory_does_not_grow_with_the_tasks(tmp_path: Path) -> None:
    model = bert()
    names = tuple(f"t{i}" for i in range(12))
    shared(model, "classifier", tasks=names).save(tmp_path / "s.share")
    stored = Share.load(tmp_path / "s.share")
    mixed = MixedTasks(model, stored, slots=3)
    sizes = []
    for name in names:
        with mixed.tasks([name]):
            sizes.append(mixed.slots.nbytes)
    assert len(set(sizes[2:])) == 1
    assert not stored.model.tasks._cache  # type: ignore[attr-defined]


def test_passes_in_inference_mode_and_outside() -> None:
    """What one pass leaves (tasks at hand, factors) serves the next in any mode."""
    model = gpt2()
    share = shared(model, "lm_head")
    mixed, x = MixedTasks(model, share), tokens()[:2]
    for names in (("a", "a"), ("b", None)):
        with torch.inference_mode(), mixed.tasks(names):
            expected = model(x).logits.tolist()
        with torch.no_grad(), mixed.tasks(names):
            assert model(x).logits.tolist() == expected
        with mixed.tasks(names):
            found = model(x).logits
        found.sum().backward()
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_versions() -> None:
    """What is replaced holds from the next block on, and a refused version changes nothing."""
    model = bert()
    share = shared(model, "classifier")
    x = tokens()[:1]
    mixed = MixedTasks(model, share)
    with torch.no_grad(), mixed.tasks(["a"]):
        before = model(x).logits
    longer = Share(
        share.model.with_tasks(
            [*share.model.tasks.values(), share.task("a").with_name("copy of a")]
        )
    )
    mixed.replace(longer.remove("a"))
    with torch.no_grad(), mixed.tasks(["copy of a"]):
        assert torch.equal(model(x).logits, before)
    with pytest.raises(TaskNotFoundError), mixed.tasks(["a"]):
        pass
    with pytest.raises(MismatchError):
        mixed.replace(shared(gpt2()))
    with torch.no_grad(), mixed.tasks(["copy of a"]):
        assert torch.equal(model(x).logits, before)


def test_threads_wait_for_each_other_and_for_new_versions() -> None:
    model = bert()
    share = shared(model, "classifier")
    mixed, x = MixedTasks(model, share), tokens()[:1]
    expected = {}
    for name in TASKS:
        with torch.no_grad(), mixed.tasks([name]):
            expected[name] = model(x).logits
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(15):
            with torch.no_grad(), mixed.tasks([name]):
                if not torch.equal(model(x).logits, expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in TASKS]
    for thread in threads:
        thread.start()
    for _ in range(10):
        mixed.replace(share)
    for thread in threads:
        thread.join()
    assert not wrong


def test_sixteen_bits() -> None:
    model = llama().to(torch.bfloat16)
    share = shared(llama(), "lm_head")
    mixed, x = MixedTasks(model, share, dtype=torch.bfloat16), tokens()
    with torch.no_grad(), mixed.tasks(MIXED):
        found = model(x).logits
    mixed.remove()
    plain = llama()
    exact = each_alone(plain, share, MIXED, partial(logits, plain), x)
    rounded = each_alone(model, share, MIXED, partial(logits, model), x)
    # As near to float32 as what weights changed in bfloat16 give.
    assert (found - exact).norm() <= 5 * (rounded - exact).norm()


def test_coefficients_are_those_of_the_task() -> None:
    """One layer by the definition, with dW in float64."""
    layer = seeded(lambda: nn.Sequential(nn.Linear(12, 10)))
    share = shared(layer)
    x = torch.randn(3, 4, 12)
    mixed = MixedTasks(layer, share)
    with torch.no_grad(), mixed.tasks(["c", "a", "b"]):
        found = layer(x)
        for i, name in enumerate(("c", "a", "b")):
            task: Task = share.task(name)
            update = task.coefficients["0"].as_update(share.model.layers["0"])
            dense = layer[0].weight.double() + update.up.double() @ update.down.double()
            expected = x[i].double() @ dense.mT + layer[0].bias.double()
            torch.testing.assert_close(found[i].double(), expected, rtol=1e-5, atol=1e-5)
