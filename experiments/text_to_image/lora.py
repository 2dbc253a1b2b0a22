"""Own LoRAs, as diffusers' training scripts make them: ``add_adapter``, ``save_lora_weights``."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from experiments.text_to_image import painting
from experiments.text_to_image.settings import steps
from experiments.text_to_image.studio import Denoiser, Studio
from sharespace.compare import ComparisonSettings
from sharespace.learn import Fit, fit

NOISES = 2
"""Sets of images of each own LoRA, which differ in the noise alone."""


def make(
    studio: Studio, style: str, numbers: ComparisonSettings, folder: Path, images: Path
) -> None:
    """Train a style's LoRA, write it as a pipeline's LoRA file, load it again and score it.

    Beside the file stands ``own.json``, as ``load_own`` reads it.

    Args:
        studio: base model and classifiers.
        style: the task.
        numbers: rank, modules, training.
        folder: of this LoRA; what is there already stays.
        images: folder for its images, ``<style>/<noise>.npy``.
    """
    if (folder / "own.json").is_file():
        return
    unet = with_lora(studio.unet(), numbers)
    trained = [p for p in unet.parameters() if p.requires_grad]
    length = steps(style, studio.painter.size)
    training = replace(numbers.lora, seed=numbers.seed, max_steps=length)
    done = fit(Denoiser(unet, studio.pipe.scheduler), studio.images(style), training)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    score = _score(studio, style, folder, images)
    _record(folder, score, sum(p.numel() for p in trained), done)


def with_lora(unet: Any, numbers: ComparisonSettings) -> Any:
    config = LoraConfig(
        r=numbers.rank,
        lora_alpha=numbers.alpha,
        target_modules=list(numbers.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(numbers.seed)
        unet.add_adapter(config)
    return unet


def loaded(studio: Studio, folder: Path) -> Any:
    """The UNet with a LoRA file in its weights, by the pipeline's own loader."""
    pipe, before = studio.pipe, studio.pipe.unet
    pipe.unet = studio.unet()
    try:
        pipe.load_lora_weights(folder)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        return pipe.unet
    finally:
        pipe.unet = before


def _score(studio: Studio, style: str, folder: Path, images: Path) -> float:
    unet, scores = loaded(studio, folder), []
    for noise in range(NOISES):
        painted = studio.painter.paint(unet, noise)
        painting.save(images / style / f"{noise}.npy", painted)
        scores.append(studio.score(style, painted))
    return scores[0]


def _record(folder: Path, score: float, trainable: int, done: Fit) -> None:
    record = {"score": score, "trainable": trainable, "fit": {**asdict(done), "history": []}}
    (folder / "own.json").write_text(json.dumps(record))
