"""Real (small) adapters that the benchmarks train themselves: LoRA with PEFT on digits.

The base is an MLP (64 - 256 - 256 - 256 - 10) trained on the ten digits. Every adapter is a LoRA of
rank 8 on its three inner layers, trained for one task with a fresh head: which digit, odd or even,
large or small, and so on, on images as they are or rotated, mirrored or inverted. Seeded, and kept
in a cache folder, because training takes longer than measuring.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

CACHE = Path(tempfile.gettempdir()) / "sharespace-benchmarks"
HIDDEN, RANK = 256, 8
TARGETS = ["first", "second", "third"]

Data = tuple[Tensor, Tensor]


class Net(nn.Module):
    """The base model; ``head`` is replaced for every task."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.third = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second, self.third):
            x = torch.relu(layer(x))
        logits: Tensor = self.head(x)
        return logits


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained."""

    task: int
    """Index into ``TASKS``."""
    rate: float = 3e-3
    init: int = 0
    """Seed of LoRA's random start; adapters with the same one are relatives."""
    steps: int = 200
    every: int = 0
    """Save a checkpoint every so many steps as well; 0: only the end."""


def rates(count: int) -> list[float]:
    """Learning rates from 1e-4 to 1e-1, evenly in the logarithm."""
    return [1e-4 * 1e3 ** (i / max(count - 1, 1)) for i in range(count)]


def norm_spread(count: int, steps: int) -> list[Recipe]:
    """Strangers whose norms differ: every task its own start and learning rate."""
    return [Recipe(i, rate, init=i, steps=steps) for i, rate in enumerate(rates(count))]


def strangers(count: int, steps: int) -> list[Recipe]:
    """Every task its own start."""
    return [Recipe(i, init=i, steps=steps) for i in range(count)]


def one_start(count: int, steps: int) -> list[Recipe]:
    """Different tasks from one start."""
    return [Recipe(i, steps=steps) for i in range(count)]


def one_run(count: int, steps: int) -> list[Recipe]:
    """Checkpoints of one run."""
    return [Recipe(0, steps=steps, every=steps // count)]


def train(label: str, recipes: list[Recipe], seed: int, cache: Path = CACHE) -> dict[str, Path]:
    """PEFT directories of these adapters, from the cache where they were trained before."""
    folder = cache / f"{label}-{len(recipes)}x{recipes[0].steps}-seed{seed}"
    done = folder / "done"
    if not done.exists():
        base = _base(seed, recipes[0].steps)
        for recipe in recipes:
            _train_adapter(base, recipe, seed, folder)
        done.touch()
    return {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}


def digits() -> Data:
    """All 1797 images of scikit-learn's digits (8 x 8) and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32) / 8 - 1
    return images, torch.tensor(found.target)


def _same(images: Tensor) -> Tensor:
    return images


def _rotated(images: Tensor) -> Tensor:
    return images.rot90(1, (1, 2))


def _mirrored(images: Tensor) -> Tensor:
    return images.flip(2)


def _inverted(images: Tensor) -> Tensor:
    return -images


TASKS: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
    (_same, lambda y: y % 2),
    (_rotated, lambda y: y),
    (_mirrored, lambda y: y // 5),
    (_inverted, lambda y: y % 3),
    (_same, lambda y: (y == 8).long()),
    (_rotated, lambda y: y % 2),
    (_mirrored, lambda y: y),
    (_inverted, lambda y: y // 3),
]
"""What is done to the images, and what is asked of the label."""


def _base(seed: int, steps: int) -> Mapping[str, Tensor]:
    torch.manual_seed(seed)
    net = Net()
    images, labels = digits()
    _fit(net, images.flatten(1), labels, rate=1e-3, steps=steps)
    return net.state_dict()


def _fit(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rate: float,
    steps: int,
    after: Callable[[int], None] = lambda _: None,
) -> None:
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate)
    for step in range(1, steps + 1):
        batch = torch.randint(len(x), (64,))
        loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        after(step)


def _train_adapter(base: Mapping[str, Tensor], recipe: Recipe, seed: int, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    net = Net()
    net.load_state_dict(base)
    torch.manual_seed(1000 * (seed + 1) + recipe.init)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS)
    model = get_peft_model(net, config)
    torch.manual_seed(1000 * (seed + 1) + recipe.task)
    change, ask = TASKS[recipe.task % len(TASKS)]
    images, labels = digits()

    def save(step: int) -> None:
        if step == recipe.steps or (recipe.every and step % recipe.every == 0):
            name = f"task{recipe.task}" + (f"-step{step:04d}" if recipe.every else "")
            model.save_pretrained(str(folder / name))

    x = change(images).flatten(1)
    _fit(model, x, ask(labels), rate=recipe.rate, steps=recipe.steps, after=save)
