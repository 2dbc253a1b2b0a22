"""Mixtures of tasks, asked for by name: against the sum of plain LoRAs in PEFT, and churning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from builders import adapter, build, strangers, update
from serve.mixed.test_batch import llama, without_heads
from shared_data import public_adapters
from sharespace import Share
from sharespace.errors import MismatchError, OptionError, TaskNotFoundError, UnsupportedAdapterError
from sharespace.mixture_names import mixture_name
from sharespace.serve import vllm
from sharespace.serve.mixed import MixedTasks
from tuner.spaces import seeded, space

TASKS = ("a", "b:c", "d")
MIXTURE = "a:0.7+b%3Ac:-0.4+d:1.3"
WEIGHTS = {"a": 0.7, "b:c": -0.4, "d": 1.3}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


@pytest.fixture(scope="module")
def share(model: Any) -> Share:
    return Share(without_heads(space(model, tasks=TASKS), "lm_head"))


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


def summed_loras(share: Share, folder: Path, ids: Tensor) -> Tensor:
    """The logits of PEFT with the exact sum of the tasks' plain LoRAs."""
    base = llama()
    names = {name: f"task{i}" for i, name in enumerate(WEIGHTS)}
    for name, plain in names.items():
        share.export(name, folder / plain)
    first = next(iter(names.values()))
    tuned = peft.PeftModel.from_pretrained(base, folder / first, adapter_name=first).eval()
    for plain in list(names.values())[1:]:
        tuned.load_adapter(folder / plain, adapter_name=plain)
    tuned.add_weighted_adapter(
        list(names.values()), list(WEIGHTS.values()), "sum", combination_type="cat"
    )
    tuned.set_adapter("sum")
    return logits(tuned, ids)


def test_logits_of_a_mixture_are_those_of_the_summed_loras(
    model: Any, share: Share, tmp_path: Path
) -> None:
    ids = torch.randint(2, 40, (1, 9), generator=torch.Generator().manual_seed(0))
    wanted = summed_loras(share, tmp_path, ids)
    mixed = MixedTasks(model, share)
    with mixed.tasks([MIXTURE, "a", None, "a:1"]):
        rows = logits(model, ids.repeat(4, 1))
    with mixed.tasks([MIXTURE]):
        alone = logits(model, ids)
    mixed.remove()
    torch.testing.assert_close(rows[:1], wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(rows[3], rows[1], rtol=0, atol=1e-5)
    assert float((rows[0] - rows[1]).abs().max()) > 1e-3
    # The same mixture as a plain LoRA: what SGLang or vLLM would load.
    for target in ("peft", "vllm", "sglang"):
        share.export(MIXTURE, tmp_path / target, to=target)
    exported = peft.PeftModel.from_pretrained(llama(), tmp_path / "peft").eval()
    torch.testing.assert_close(logits(exported, ids), wanted, rtol=0, atol=1e-5)


def test_a_mixture_generates_as_the_combined_task(model: Any, share: Share) -> None:
    both = share.combine({"a": 0.7, "d": 1.3}, name="both")
    ids = torch.tensor([[5, 6, 7]])
    mixed = MixedTasks(model, both)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    with mixed.tasks(["a:0.7+d:1.3", "both"]):
        tokens = model.generate(ids.repeat(2, 1), **options)
    mixed.remove()
    assert torch.equal(tokens[0], tokens[1])


def test_a_mixture_takes_one_slot(model: Any, share: Share) -> None:
    mixed = MixedTasks(model, share, slots=2)
    with mixed.tasks([MIXTURE, "a:0.5", MIXTURE]):
        assert set(mixed.slots.at_hand) == {MIXTURE, "a:0.5"}
    mixed.remove()


@pytest.mark.parametrize("name", ["a:1+x:1", "x", "a+d", "a:", "b:c:1"])
def test_what_is_not_there_is_refused(model: Any, share: Share, name: str) -> None:
    mixed = MixedTasks(model, share)
    with pytest.raises(TaskNotFoundError), mixed.tasks([name]):
        pass
    with pytest.raises(OptionError, match="twice"), mixed.tasks(["a:1+a:1"]):
        pass
    mixed.remove()


def test_a_tasks_own_name_goes_first() -> None:
    """A store of an earlier release may have a task that is called like a mixture."""
    share = Share(build(strangers(2), 3))
    task = share.task("t1").with_name("t0:2.0")
    named = Share(share.model.with_tasks([share.task("t0"), task]))
    wanted, found = share.updates("t1")["m"], named.updates("t0:2.0")["m"]
    assert torch.equal(found.up, wanted.up)
    assert not torch.equal(share.updates("t0:2.0")["m"].up, wanted.up)


def test_mixtures_of_what_cannot_be_combined_are_refused() -> None:
    head = "base_model.model.classifier.weight"
    adapters = [
        adapter(name, update(12, 9, 2, i), kept={key: torch.full((2, 2), float(i))})
        for i, (name, key) in enumerate(
            {"x": head, "y": head, "z": "base_model.model.m.lora_magnitude_vector.weight"}.items()
        )
    ]
    share = Share(build(adapters, 4))
    with pytest.raises(MismatchError, match="heads"):
        share.updates("x:1+y:1")
    with pytest.raises(UnsupportedAdapterError, match="DoRA"):
        share.updates("z:0.5")
    share.updates("x:0.5")


def test_vllm_gets_a_mixture_as_a_plain_lora(share: Share, tmp_path: Path) -> None:
    share.save(tmp_path / "s")
    written = vllm.write(tmp_path / "s", MIXTURE, tmp_path / "cache")
    of_version = vllm.write(tmp_path / "s", f"{MIXTURE}@1", tmp_path / "cache")
    assert written.path == of_version.path
    assert written.rank >= 1
    with pytest.raises(TaskNotFoundError):
        vllm.write(tmp_path / "s", "a:1+x:1", tmp_path / "cache")


def test_a_mixture_of_adapters_that_others_trained_is_their_sum_in_peft() -> None:
    """Three public adapters of GPT-2, on a model of its shapes (the weights do not matter)."""
    folders = {path.name: path for path in public_adapters("gpt2")}
    weights = dict(zip(folders, (0.7, -0.3, 0.5), strict=False))
    share = Share.from_adapters({name: folders[name] for name in weights}, variance=1.0)
    config = GPT2Config(n_layer=12, vocab_size=100, n_positions=16)
    first, *others = weights
    tuned = peft.PeftModel.from_pretrained(
        seeded(lambda: GPT2LMHeadModel(config)), folders[first], adapter_name=first
    )
    for name in others:
        tuned.load_adapter(folders[name], adapter_name=name)
    tuned.add_weighted_adapter(list(weights), list(weights.values()), "sum", combination_type="cat")
    tuned.set_adapter("sum")
    tuned.eval()
    ids = torch.randint(0, 100, (1, 12), generator=torch.Generator().manual_seed(0))
    plain = seeded(lambda: GPT2LMHeadModel(config)).eval()
    with MixedTasks(plain, share).tasks([mixture_name(weights)]):
        found = logits(plain, ids)
    torch.testing.assert_close(found, logits(tuned, ids), rtol=0, atol=1e-5)
