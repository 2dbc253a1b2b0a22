"""A public Stable Diffusion 1.5 LoRA through Share and back into diffusers.

    python -m experiments real_adapter text_to_image --adapter ADAPTERS/stable-diffusion-v1-5/NAME

The file is of the old diffusers form (attention processors, no configuration). It is compressed
together with adapters that are made here for the same modules, as one file is no collection: some
are noisy copies (the real one with noise on its factors), the others random (factors of the same
norms). They say nothing about how much real adapters share; what is tested is the way: read,
compress, export, load in diffusers' own UNet with Stable Diffusion 1.5's configuration, and compare
what acts on each weight there with what the Share model holds.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.common import environment
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from experiments.harness.results import write
from sharespace import Adapter, Share
from sharespace.formats import read_adapter
from sharespace.subspace.adapter import LayerUpdate

RESULTS = Path(__file__).parent / "results"
CONFIG: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""Of Stable Diffusion 1.5's UNet; the rest are diffusers' defaults."""
NOISE = 0.3
"""Of noisy copies: norm of the noise on each factor, relative to the factor."""


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", type=Path, required=True, help="folder or file")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of all results")
    parser.add_argument("--copies", type=int, default=3, help="noisy ones")
    parser.add_argument("--random", type=int, default=2)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16, 24])
    parser.add_argument("--modules", default="", help="only modules whose name contains this")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    write(options.out / "real_adapter.json", measured(options))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """What the results file holds."""
    real = of_modules(read_adapter(options.adapter, "real"), options.modules)
    made_here = made(real, options.copies, options.random)
    rows = [row([real, *made_here], k) for k in options.k]
    return {
        "adapter": options.adapter.name,
        "made_here": {"copies": options.copies, "random": options.random, "noise": NOISE},
        "modules": len(real.shapes),
        "ranks": sorted(set(real.ranks.values())),
        "parameters": sum(u.up.numel() + u.down.numel() for u in updates_of(real).values()),
        "original_in_diffusers": differences(updates_of(real), options.adapter),
        "by_k": rows,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "environment": environment(0),
    }


def of_modules(adapter: Adapter, part: str) -> Adapter:
    """The adapter on some of its modules."""
    updates = {m: adapter.layer(m) for m in adapter.shapes if part in m}
    shapes = {m: adapter.shapes[m] for m in updates}
    return Adapter.from_updates(
        adapter.name, updates, base=adapter.base, shapes=shapes, config=adapter.config
    )


def updates_of(adapter: Adapter) -> dict[str, LayerUpdate]:
    return {module: adapter.layer(module) for module in adapter.shapes}


def made(real: Adapter, copies: int, random: int) -> list[Adapter]:
    """Adapters for the same modules."""
    generator = torch.Generator().manual_seed(0)
    close = [(f"copy-{i}", 1.0) for i in range(copies)]
    far = [(f"random-{i}", 0.0) for i in range(random)]
    return [_made(real, name, part, generator) for name, part in close + far]


def _made(real: Adapter, name: str, part: float, generator: torch.Generator) -> Adapter:
    def factor(given: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(given.shape, generator=generator)
        noise *= given.norm() / noise.norm()
        return part * given + (NOISE if part else 1.0) * noise

    updates = {
        module: LayerUpdate(factor(u.up), factor(u.down), u.scaling)
        for module, u in updates_of(real).items()
    }
    return Adapter.from_updates(
        name, updates, base=real.base, shapes=real.shapes, config=real.config
    )


def row(adapters: list[Adapter], k: int) -> dict[str, Any]:
    """Compressed with k, exported and loaded."""
    began = time.process_time()
    share = Share.from_adapters(adapters, k=k)
    seconds = time.process_time() - began
    fidelity = share.fidelity(adapters)
    with TemporaryDirectory() as folder:
        share.export("real", Path(folder) / "real", to="diffusers")
        loaded = differences(share.updates("real"), Path(folder) / "real")
    return {
        "k": k,
        "seconds": seconds,
        "relative_error": {name: task.relative_error for name, task in fidelity.tasks.items()},
        "bytes": {"basis": fidelity.bytes.basis, "coefficients": fidelity.bytes.coefficients},
        "bytes_of_adapters": sum(
            u.up.nbytes + u.down.nbytes for a in adapters for u in updates_of(a).values()
        ),
        "exported_in_diffusers": loaded,
    }


def empty_unet() -> Any:
    """Stable Diffusion 1.5's UNet; its 860 million weights are not filled, and take no memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**CONFIG)
    return unet.to_empty(device="cpu")


def differences(expected: Mapping[str, LayerUpdate], file: Path) -> dict[str, Any]:
    """What diffusers makes of a LoRA file against the updates that it should be.

    Returns:
        Number of modules that were compared, the largest |dW there - dW| / |dW|, and whether a
        pipeline's ``load_lora_weights`` would find the keys (else the UNet's own loader does).
    """
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        file, weight_name="pytorch_lora_weights.safetensors", return_lora_metadata=True
    )
    # ``load_lora_weights`` takes keys that begin with the component, and leaves out all others.
    named = any(key.startswith("unet.") for key in state)
    unet = empty_unet()
    unet.load_lora_adapter(
        state, prefix="unet" if named else None, network_alphas=alphas, metadata=metadata
    )
    (adapter,) = unet.peft_config
    worst = 0.0
    for module, update in expected.items():
        layer = unet.get_submodule(module.removeprefix("unet."))
        wanted = update.scaling * update.up.float() @ update.down.float()
        there = layer.get_delta_weight(adapter).detach().float()
        worst = max(worst, float((there - wanted).norm() / wanted.norm()))
    return {
        "modules": len(expected),
        "largest_relative_difference": worst,
        "load_lora_weights_finds_it": named,
    }
