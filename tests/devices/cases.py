"""What must work on any device, each against the CPU; run on a GPU and on an emulated device."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.planted import Planted
from safetensors.torch import load_file
from torch import Tensor, nn

from serve.conftest import tokenizer
from serve.mixed import test_batch as batches
from serve.mixed.test_diffusion import only, unet
from sharespace import Share
from sharespace.serve.base_model import GeneratingRow, ServedModel
from sharespace.serve.mixed import MixedTasks
from sharespace.serve.requests import (
    Classify,
    ClassLogits,
    Embed,
    Generate,
    Piece,
    Sampling,
    Vector,
)
from tuner.spaces import adapted, mlp, points, space

RULES: dict[str, dict[str, Any]] = {
    "k": {"k": 6},
    "variance": {"variance": 0.9},
    "error": {"error": 0.3},
    "budget": {"budget": 40000},
    "pseudo_rank": {"k": 6, "p": 2},
    "out_of_core": {"k": 6, "memory": 2000},
    "sixteen_bits": {"k": 6, "dtype": torch.float16},
    "share": {"k": 6, "method": "share"},
    "share_centred": {"k": 6, "method": "share", "centred": True},
}


def built(rule: Mapping[str, Any], device: torch.device) -> tuple[Share, dict[str, Any]]:
    """A build of three adapters and a merge of a fourth; and the adapters' own updates."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Planted(tasks=4, d=24, r=3, rank=5).write(Path(folder) / "set")
        names = list(paths)
        share = Share.from_adapters({n: paths[n] for n in names[:3]}, device=device, **rule).merge(
            {names[3]: paths[names[3]]}, device=device
        )
        tensors = {n: load_file(p / "adapter_model.safetensors") for n, p in paths.items()}
    return share, tensors


def errors(share: Share, originals: Mapping[str, Mapping[str, Tensor]]) -> list[float]:
    """Relative error of each task over all its modules (LoRA's scaling is 2)."""
    found = []
    for task, tensors in originals.items():
        lost = whole = 0.0
        for module, update in share.updates(task).items():
            key = f"base_model.model.{module}.lora_"
            dense = 2 * tensors[f"{key}B.weight"].double() @ tensors[f"{key}A.weight"].double()
            ours = update.up.double() @ update.down.double()
            lost += float((dense - ours).square().sum())
            whole += float(dense.square().sum())
        found.append((lost / whole) ** 0.5)
    return found


def build(rule: Mapping[str, Any], device: torch.device) -> None:
    """The same errors as a build on the CPU: bases may turn in their own span."""
    here, originals = built(rule, torch.device("cpu"))
    there, _ = built(rule, device)
    stored = [b for la in there.model.layers.values() for b in (la.left_basis, la.right_basis)]
    assert {b.device.type for b in stored} == {"cpu"}, "what is stored is on the CPU"
    torch.testing.assert_close(
        torch.tensor(errors(there, originals)),
        torch.tensor(errors(here, originals)),
        rtol=0.02,
        atol=2e-4,
    )


def output(model: Any, x: Tensor) -> Tensor:
    found = model(x)
    return torch.as_tensor(getattr(found, "logits", found))


def rows(
    make: Callable[[], Any],
    share: Share,
    x: Tensor,
    names: Sequence[str | None],
    device: torch.device,
) -> None:
    """A mixed batch of a model on the device is what the CPU gives row by row."""
    model = make()
    expected = batches.each_alone(model, share, names, partial(output, model), x)
    moved = make().to(device)
    mixed = MixedTasks(moved, share)
    with torch.no_grad(), mixed.tasks(names):
        found = output(moved, x.to(device))
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)


def share_of(model: nn.Module, *heads: str, k: int = 4) -> Share:
    return Share(batches.without_heads(space(model, k=k, tasks=batches.TASKS), *heads or ("-",)))


def mixed_text(device: torch.device) -> None:
    """Rows of three tasks and of none; b has a head of five labels."""
    share = share_of(batches.bert(), "classifier")
    rows(batches.bert, share, batches.tokens(), batches.MIXED, device)
    own = {"classifier.weight": torch.randn(3, 16), "classifier.bias": torch.randn(3)}
    with_head = batches.with_heads(share, {"b": own})
    moved = batches.bert().to(device)
    mixed = MixedTasks(moved, with_head)
    with torch.no_grad(), mixed.tasks(batches.MIXED):
        assert moved(batches.tokens().to(device)).logits.shape == (6, 3)


def mixed_one_task(device: torch.device) -> None:
    """With the task's own factors."""
    share = share_of(batches.gpt2(), "lm_head", k=8)
    rows(batches.gpt2, share, batches.tokens(), ["b", None] * 3, device)


def mixed_convolutions(device: torch.device) -> None:
    share = share_of(batches.convolutions())
    x = torch.randn(6, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    rows(batches.convolutions, share, x, batches.MIXED, device)


def mixed_images(device: torch.device) -> None:
    """A denoiser whose batch is doubled by guidance."""
    share = Share(only(space(unet(), tasks=("a", "b", "c")), "to_q", "to_k", "conv1"))
    generator = torch.Generator().manual_seed(1)
    x, text = (
        torch.randn(4, 2, 8, 8, generator=generator),
        torch.randn(4, 3, 8, generator=generator),
    )
    found = []
    for place in (torch.device("cpu"), device):
        model = unet().to(place)
        mixed = MixedTasks(model, share)
        with torch.no_grad(), mixed.tasks(["a", "b"], copies=2):
            found.append(model(x.to(place), 5, text.to(place)).sample.cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


def versions_and_few_slots(device: torch.device) -> None:
    """Tasks are brought, pushed out and brought again; a version is replaced."""
    share = share_of(batches.bert(), "classifier")
    moved, x = batches.bert().to(device), batches.tokens()[:1].to(device)
    mixed = MixedTasks(moved, share, slots=1)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for name in (*batches.TASKS, *batches.TASKS):
            with mixed.tasks([name]):
                now = moved(x).logits.cpu()
            assert torch.equal(found.setdefault(name, now), now)
        mixed.replace(share.remove("a"))
        with mixed.tasks(["b"]):
            assert torch.equal(moved(x).logits.cpu(), found["b"])


def served(make: Callable[[], Any], head: str, device: torch.device) -> ServedModel:
    share = share_of(make(), head)
    mixed = MixedTasks(make().to(device), share)
    return ServedModel(mixed, tokenizer(pad_left=head == "lm_head"), "m")


def serving(device: torch.device) -> None:
    """Classification, embeddings and sampled text."""
    cpu = torch.device("cpu")
    texts = [(5, 6, 7), (8, 9)]
    for kind in ("classify", "embed"):
        answers = []
        for place in (cpu, device):
            model = served(batches.bert, "classifier", place)
            if kind == "classify":
                scores = model.classify([Classify(t, x) for t, x in zip("ab", texts, strict=True)])
                answers.append([s.logits for s in scores if isinstance(s, ClassLogits)])
            else:
                vectors = model.embed([Embed(t, x) for t, x in zip("ab", texts, strict=True)])
                answers.append([v.values for v in vectors if isinstance(v, Vector)])
        torch.testing.assert_close(torch.tensor(answers[1]), torch.tensor(answers[0]))
    assert written(device) == written(cpu)


class Said:
    """What one answer says."""

    text = ""

    def hear(self, piece: Piece | Exception) -> None:
        assert isinstance(piece, Piece)
        self.text += piece.text


def written(device: torch.device) -> list[str]:
    """Two answers, one greedy and one sampled with a seed."""
    model = served(batches.llama, "lm_head", device)
    said = [Said(), Said()]
    asked = [
        Generate("a", (5, 6), Sampling(max_tokens=5, temperature=0)),
        Generate("b", (7,), Sampling(max_tokens=5, temperature=1, seed=3)),
    ]
    lines = [
        GeneratingRow(r, model.tokenizer, frozenset({39}), s.hear, lambda: False)
        for r, s in zip(asked, said, strict=True)
    ]
    model.generate(lines)
    return [s.text for s in said]


def training(device: torch.device) -> None:
    """The PEFT method: a forward and a backward pass of every layer, and what is collected."""
    gradients = []
    for place in (torch.device("cpu"), device):
        model = adapted(mlp(), target_modules=["first", "second"], p=2, phi=1).to(place)
        model.train()(points().to(place)).square().sum().backward()
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        gradients.append(torch.cat([g.cpu().flatten() for g in named.values()]))
    assert len(gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


CASES: dict[str, Callable[[torch.device], None]] = {
    **{f"build_{name}": partial(build, rule) for name, rule in RULES.items()},
    "mixed_text": mixed_text,
    "mixed_one_task": mixed_one_task,
    "mixed_convolutions": mixed_convolutions,
    "mixed_images": mixed_images,
    "versions_and_few_slots": versions_and_few_slots,
    "serving": serving,
    "training": training,
}
