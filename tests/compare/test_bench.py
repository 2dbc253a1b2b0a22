"""The pieces: plain PEFT, the penalties, batches of several tasks, combinations, refusals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback

from compare.conftest import Everything
from compare.streams import Net, Points, job, jobs, net, settings
from sharespace.compare import ComparisonSettings, TaskJob, Workbench, method, run
from sharespace.compare.lora import add_lora, lora_layers, trained_head
from sharespace.compare.methods.ewc import Quadratic, factors, fisher
from sharespace.compare.methods.replay import ReplayBuffer
from sharespace.compare.trainers import MixedPart, TaskBatches
from sharespace.errors import MismatchError, OptionError, TaskNotFoundError
from sharespace.learn import Setup, fit
from sharespace.subspace.adapter import LayerUpdate


def test_own_lora_is_plain_peft(everything: Everything) -> None:
    task, chosen = jobs()[1], settings()
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, lora_alpha=2, target_modules=["first", "second"], modules_to_save=["classifier"]
    )
    model = peft.get_peft_model(task.model().requires_grad_(False), config)
    fit(model, task.data, chosen.lora)
    adapter = everything.outcomes["per_task_lora"].adapters["task1"]
    for name in ("first", "second"):
        layer, update = model.get_submodule(f"base_model.model.{name}"), adapter.layer(name)
        dense = update.scaling * update.up @ update.down
        assert torch.allclose(layer.get_delta_weight("default"), dense, atol=1e-6)
    head = model.base_model.model.classifier.modules_to_save["default"].weight
    assert torch.allclose(adapter.kept["base_model.model.classifier.weight"], head, atol=1e-6)
    assert everything.outcomes["per_task_lora"].matrix.last["task1"] == task.score(model)


def test_heads_are_never_adapted_by_lora() -> None:
    chosen = settings(targets=r".*(first|classifier)")
    wrapped = add_lora(net(3), chosen, ("classifier",))
    assert list(lora_layers(wrapped)) == ["first"]
    assert isinstance(trained_head(wrapped, "classifier"), nn.Linear)


def test_ewc_of_weight_zero_is_sequential_and_a_huge_one_stays() -> None:
    free = run(jobs(2), settings(ewc=0.0), ["sequential_lora", "ewc"])
    assert free["ewc"].matrix.scores == free["sequential_lora"].matrix.scores
    held = run(jobs(2), settings(ewc=1e9), ["ewc"])["ewc"].matrix.scores
    moved = free["sequential_lora"].matrix.scores
    assert abs(held[1][0] - held[0][0]) < 2 < moved[0][0] - moved[1][0]  # type: ignore[operator]


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_one_quadratic_is_the_sum_of_all_up_to_a_constant(seed: int, tasks: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(5, generator=generator, dtype=torch.float64)

    memory, separate = Quadratic(), []
    for _ in range(tasks):
        information = draw().square()
        information[0] = 0
        at = draw()
        memory.add([information], [nn.Parameter(at)])
        separate.append((information, at))

    def direct(q: Tensor) -> Tensor:
        return sum(((f * (q - at).square()).sum() / 2 for f, at in separate), torch.zeros(()))

    one, other = draw(), draw()
    difference = memory.value([nn.Parameter(one)]) - memory.value([nn.Parameter(other)])
    assert torch.allclose(difference, direct(one) - direct(other), atol=1e-9)


def test_fisher_is_the_mean_of_single_squared_gradients() -> None:
    task = job(0)
    wrapped = add_lora(task.model().requires_grad_(False), settings(), task.heads)
    with torch.no_grad():
        for parameter in factors(wrapped):
            parameter.add_(0.1)
    found = fisher(wrapped, task, len(task.data), seed=0)
    expected = torch.zeros_like(found[0])
    for i in range(len(task.data)):
        example = {k: v[None] for k, v in task.data[i].items()}
        loss = wrapped(**example)["loss"]
        expected += torch.autograd.grad(loss, factors(wrapped)[0])[0].square() / len(task.data)
    assert torch.allclose(found[0], expected, rtol=1e-4)


class Factors(TrainerCallback):  # type: ignore[misc]
    """Reads each task's A of a module when its training ends."""

    def __init__(self) -> None:
        self.downs: list[Tensor] = []

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **kwargs: Any) -> None:
        (down,) = (p for n, p in kwargs["model"].named_parameters() if "second.lora_A" in n)
        self.downs.append(torch.nn.functional.normalize(down.detach().clone()))


def test_o_lora_makes_new_factors_orthogonal() -> None:
    overlaps = []
    for weight in (0.0, 0.5):
        read = Factors()
        stream = [replace(task, setup=Setup(callbacks=[read])) for task in jobs(2)]
        run(stream, settings(orthogonality=weight), ["o_lora"])
        first, second = read.downs
        overlaps.append(float((first @ second.mT).abs().max()))
    assert overlaps[1] < 0.05 < overlaps[0]


class Values(Dataset[dict[str, Any]]):
    """A regression with a field that no model takes."""

    def __init__(self) -> None:
        self.x = torch.randn(50, 10, generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": "unused", "x": self.x[index], "labels": self.x[index, 0]}


class Regression(Net):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = super().forward(x)["logits"][:, 0]
        if labels is None:
            return {"logits": logits}
        assert labels.dtype == torch.float32
        return {"loss": (logits - labels).square().mean(), "logits": logits}


def regression() -> TaskJob:
    def model() -> Regression:
        made = Regression(1)
        made.load_state_dict(
            {k: v[:1] if "classifier" in k else v for k, v in net(2).state_dict().items()}
        )
        return made

    data = Values()

    def score(trained: nn.Module) -> float:
        return -100 * float((trained(x=data.x)["logits"] - data.x[:, 0]).square().mean())

    return TaskJob("values", data, model, score, steps=30)


def test_tasks_of_any_kind_stand_beside_each_other() -> None:
    found = run([job(0), regression()], settings(), ["head_only", "joint_lora", "replay"])
    assert found["joint_lora"].steps == 50 + 30
    assert found["joint_lora"].matrix.last["values"] > found["head_only"].matrix.last["values"]


def test_batches_have_one_task_and_go_through_all_examples() -> None:
    parts = [MixedPart(job(0), 7), MixedPart(job(1), 3, indices=[4, 9])]
    batches = TaskBatches(parts, 32, seed=0)
    assert len(batches) == 10
    first = [index for number, batch in batches.batches if number == 0 for index in batch]
    assert sorted(first[:160]) == list(range(160))
    assert all(sorted(b) == [4, 9] for n, b in batches.batches if n == 1)
    assert TaskBatches(parts, 32, seed=0).batches == batches.batches
    assert TaskBatches(parts, 32, seed=1).batches != batches.batches


def test_task_arithmetic_is_the_sum_of_the_updates(everything: Everything) -> None:
    adapters = everything.outcomes["per_task_lora"].adapters
    summed = {
        module: LayerUpdate(
            torch.cat([0.4 * a.layer(module).up for a in adapters.values()], dim=1),
            torch.cat([a.layer(module).down for a in adapters.values()]),
        )
        for module in ("first", "second")
    }
    bench = everything.bench
    scores = {name: bench.score_updates(name, summed, a) for name, a in adapters.items()}
    assert everything.outcomes["task_arithmetic"].matrix.last == scores


class Picture(nn.Module):
    """A convolution, and statistics that training would change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.classifier = nn.Linear(6, 2)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        pictures = x[:, :9].reshape(-1, 1, 3, 3)
        logits = self.classifier(self.norm(self.conv(pictures)).relu().mean(dim=(2, 3)))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def picture() -> Picture:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Picture()


def test_convolutions_and_running_statistics() -> None:
    stream = [job(seed, 2, model=picture) for seed in range(2)]
    short = replace(settings().lora, max_steps=5)
    chosen = settings(targets=("conv",), lora=short, coefficients=short, initial=1)
    bench = Workbench(stream, chosen)
    for name in ("per_task_lora", "o_lora", "task_arithmetic", "share_strict"):
        assert set(method(name)(bench).matrix.last) == {"task0", "task1"}
    with pytest.raises(OptionError, match="linear modules only"):
        method("osf")(bench)
    now, before = bench.fresh("task0").state_dict(), picture().state_dict()
    floats = {k for k, v in before.items() if v.is_floating_point()}
    assert all(torch.equal(now[k], before[k]) for k in floats)


def test_jobs_may_have_steps_and_rates_of_their_own() -> None:
    lora = replace(settings().lora, head_learning_rate=1e-2)
    finetune = replace(lora, max_steps=7)
    chosen = settings(lora=lora, finetune=finetune, seed=3)
    own = job(0, steps=11, rate=1.5)
    found = chosen.training(lora, own)
    assert (found.max_steps, found.seed) == (11, 3)
    assert found.learning_rate == pytest.approx(1.5 * lora.rate)
    assert found.head_learning_rate == pytest.approx(1.5e-2)
    # Share-full's last step is the same for every job.
    assert chosen.training(finetune, own) == replace(finetune, seed=3)
    assert chosen.training(lora, job(0)) == replace(lora, seed=3)
    with pytest.raises(OptionError, match="rate"):
        job(0, rate=0.0)


def test_bad_input_is_named() -> None:
    with pytest.raises(OptionError, match=r"is not known.*share-full"):
        run(jobs(1), settings(), ["share_srict"])
    with pytest.raises(OptionError, match="twice"):
        Workbench([job(0), job(0)], settings())
    with pytest.raises(OptionError, match="head 'score'"):
        Workbench([job(0, heads=("score",))], settings())
    with pytest.raises(TaskNotFoundError):
        Workbench([job(0)], settings()).fresh("other")
    with pytest.raises(OptionError, match="replay"):
        settings(replay=0.0)
    with pytest.raises(OptionError, match="ties"):
        ComparisonSettings(settings().head, settings().lora, settings().lora, ties="linear")  # type: ignore[arg-type]

    def other() -> Net:
        made = net(3)
        nn.init.zeros_(made.first.weight)
        return made

    with pytest.raises(MismatchError, match=r"first\.weight"):
        Workbench([job(0), job(1, model=other)], settings())
    assert len(Points(0, 2)) == 160


def test_replay_counts_examples_of_any_kind() -> None:
    @dataclass(frozen=True)
    class Tokens:
        ids: tuple[int, ...]
        prompt: int

    example = {"x": torch.zeros(3), "text": "dé", "tokens": Tokens((1, 2, 3), 1), "label": 4}
    task = job(0, data=[example] * 100)
    buffer = ReplayBuffer(Workbench([task], settings()))
    buffer.add(task)
    # 2 % of the examples; numbers have 8 bytes each.
    assert buffer.nbytes() == 2 * (3 * 4 + 3 + 4 * 8 + 8)
