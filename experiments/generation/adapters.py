"""The stream's adapters: own LoRAs of all tasks, trained many at a time, kept as PEFT's folders.

Each adapter's training is the same as if it were trained alone: its loss, its clipping and its
examples depend on no other (``tests/experiments/test_generation.py`` holds one against PEFT).
"""

from __future__ import annotations

import hashlib
import math
import random
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.generation.base import IGNORED, Base, Tokens, padded, tokenise
from experiments.generation.many import Stack, adapted
from experiments.generation.settings import ALPHA, LORA_RATE, RANK, TARGETS, Size, Start
from experiments.generation.tasks import GenerationTask
from sharespace.formats import ExportOptions, PlainLora, read_adapter, write_adapter
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate

SEED = 0
"""Of the starts and of the order of the examples."""
_WARMUP = 0.06
_CLIPPED = 1.0
"""Largest norm of an adapter's gradient, as Trainer has it."""


def adapters_folder(
    base: Base, tasks: Sequence[GenerationTask], size: Size, start: Start, cache: Path
) -> Path:
    """Where the adapters of a stream are kept, by what they are made from."""
    numbers = (size.steps, size.batch_size, LORA_RATE, RANK, ALPHA, TARGETS, start, SEED)
    content = repr((base.name, numbers, [(t.name, t.train) for t in tasks]))
    return cache / f"adapters-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def load_adapters(
    folder: Path, base: Base, tasks: Sequence[GenerationTask], size: Size, start: Start
) -> dict[str, Adapter]:
    """Task -> its own LoRA, from the folder where it is there; the others are trained (minutes).

    Args:
        folder: of the stream (``adapters_folder``).
        base: the base model.
        tasks: those that are wanted.
        size: of the training.
        start: "own": each adapter begins with its own random A; "same": all with one.
    """
    missing = [t for t in tasks if not (folder / t.name / "adapter_config.json").is_file()]
    for at in range(0, len(missing), size.together):
        some = missing[at : at + size.together]
        rows = {t.name: tokenise(base.tokenizer, t.train, size.pretraining.length) for t in some}
        began = time.process_time()
        stack, loss = train(base.model, rows, size, start, SEED)
        for task in some:
            _write(folder / task.name, stack.updates(task.name), base)
        print(f"{at + len(some)} of {len(missing)} adapters ({start} start), last loss {loss:.3f}, "
              f"{time.process_time() - began:.0f} s of CPU", flush=True)  # fmt: skip
    return {task.name: read_adapter(folder / task.name, task.name) for task in tasks}


def _write(folder: Path, updates: Mapping[str, LayerUpdate], base: Base) -> None:
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": sorted(TARGETS)}
    plain = PlainLora(updates, config=config, base=BaseModel(base.name))
    write_adapter(folder, plain, ExportOptions(overwrite=True))


def targets(model: nn.Module) -> dict[str, nn.Linear]:
    """Module -> linear layer, of those that are adapted."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in TARGETS and isinstance(module, nn.Linear)
    }


def fresh(model: nn.Module, names: Sequence[str], start: Start, seed: int) -> Stack:
    """LoRA's start as PEFT draws it: B = 0, and A uniform (He et al. 2015, with a = sqrt(5))."""
    up, down = {}, {}
    for number, (module, layer) in enumerate(targets(model).items()):
        n, d = layer.weight.shape
        drawn = [first_factor(name, d, start, seed, number) for name in names]
        down[module] = torch.stack(drawn).requires_grad_(True)
        up[module] = torch.zeros(len(names), n, RANK).requires_grad_(True)
    return Stack(tuple(names), up, down)


def first_factor(name: str, width: int, start: Start, seed: int, module: int) -> Tensor:
    """A of one adapter and module before training: rank x width."""
    own = zlib.crc32(name.encode()) if start == "own" else 0
    generator = torch.Generator().manual_seed(seed + 1000 * own + module)
    factor = torch.empty(RANK, width)
    nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)
    return factor


def train(
    model: Any, rows: Mapping[str, Sequence[Tokens]], size: Size, start: Start, seed: int
) -> tuple[Stack, float]:
    """All tasks' LoRAs in one run: AdamW, warm-up and cosine decay, as ``sharespace.learn`` has it.

    Returns:
        The factors, with the scaling in ``up``; and the mean of the last step's losses.
    """
    stack = fresh(model, list(rows), start, seed)
    parameters = [*stack.up.values(), *stack.down.values()]
    optimizer = torch.optim.AdamW(parameters, lr=LORA_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, size.steps))
    batches = [_batches(examples, size.batch_size, name, seed) for name, examples in rows.items()]
    last = 0.0
    for _ in range(size.steps):
        some = [row for batch in batches for row in next(batch)]
        by_adapter = losses(model, scaled(stack), some)
        optimizer.zero_grad()
        by_adapter.sum().backward()  # type: ignore[no-untyped-call]
        clip(parameters)
        optimizer.step()
        schedule.step()
        last = float(by_adapter.detach().mean())
    done = {module: factor.detach() for module, factor in scaled(stack).up.items()}
    return Stack(stack.names, done, {m: f.detach() for m, f in stack.down.items()}), last


def scaled(stack: Stack) -> Stack:
    """With LoRA's scaling, alpha / r, in ``up``."""
    up = {module: ALPHA / RANK * factor for module, factor in stack.up.items()}
    return Stack(stack.names, up, stack.down)


def losses(model: Any, stack: Stack, rows: Sequence[Tokens]) -> Tensor:
    """Mean loss of each adapter over the answers in its rows: float32 [adapters]."""
    ids, labels = padded(rows)
    counted = labels[:, 1:] != IGNORED
    with adapted(model, stack):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][counted])
    by_token = functional.cross_entropy(logits.float(), labels[:, 1:][counted], reduction="none")
    per = len(rows) // len(stack.names)
    owner = (torch.arange(len(rows)) // per)[:, None].expand_as(counted)[counted]
    sums = torch.zeros(len(stack.names)).index_add(0, owner, by_token)
    return sums / owner.bincount(minlength=len(stack.names))


@torch.no_grad()
def clip(parameters: Sequence[Tensor]) -> None:
    """Each adapter's gradient to a norm of at most 1."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
    factors = (_CLIPPED / (norms + 1e-6)).clamp_max(1.0)
    for grad in grads:
        grad.mul_(factors[:, None, None])


def _rate(step: int, steps: int) -> float:
    warm = round(_WARMUP * steps)
    if step < warm:
        return step / max(warm, 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _batches(rows: Sequence[Tokens], size: int, name: str, seed: int) -> Iterator[list[Tokens]]:
    """Endless batches, epoch after epoch; the order depends on the task's name and the seed."""
    draw = random.Random(f"{name} {seed}")
    waiting: list[Tokens] = []
    while True:
        while len(waiting) < size:
            waiting += draw.sample(rows, len(rows))
        yield [waiting.pop() for _ in range(size)]
