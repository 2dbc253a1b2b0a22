"""Styles of a small Stable Diffusion. What the numbers were chosen by is in README.md."""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean

import diffusers
import torch
from torch import Tensor, nn

from experiments.harness.experiment import Experiment
from experiments.harness.numbers import is_varied
from experiments.harness.trials import by_rate
from experiments.text_to_image import judges, lora, painting
from experiments.text_to_image.digits import prompt, read
from experiments.text_to_image.model import embed, v_loss
from experiments.text_to_image.settings import FULL, QUICK, TASKS, numbers, steps
from experiments.text_to_image.studio import Studio, open_studio, plain_unet
from experiments.text_to_image.styles import styled
from sharespace.compare import OwnLora, TaskJob
from sharespace.compare.own_folder import load_own

NOISES = (2, 3)
"""Seeds of the noise that ``tune`` makes images from; the reported images have 0 and 1."""
EXAMPLES = 256
"""Test digits that its loss is taken on."""


class TextToImage(Experiment):
    """See the package. The base model and the classifiers are made where the cache lacks them."""

    name = "text_to_image"
    data = "folder with mnist/compact.npz"
    methods = (
        *("head_only", "per_task_lora", "share_strict", "mean_adapter", "own_svd", "joint_lora"),
        *("sequential_lora", "random_basis"),
    )
    base = "diffusers UNet2DConditionModel, pretrained here"
    tuned = ("framed", "rotated")
    new_tasks = ("framed",)

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        size = self.size = QUICK if self.quick else FULL
        self.orders = self.streams({"styles": TASKS})
        self.numbers = numbers(size)
        self.key = self._key()
        self.trials = by_rate(size.slow_steps, (8, (4e-3,)), (24, 12, (1e-2,)))
        self._images = self.cache / "images" / "scored"

    def _key(self) -> str:
        """Says by what the own LoRAs are made, so that another size of the core finds them."""
        settings = self.numbers.settings(0, len(TASKS))
        lengths = tuple(steps(style, self.size) for style in TASKS)
        parts = (self.size, lengths, settings.lora, settings.rank, settings.alpha, settings.targets)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]

    @cached_property
    def studio(self) -> Studio:
        """Opened at the first use: where nothing is missing, nothing is made."""
        return open_studio(self.options.data, self.size, self.cache)

    @property
    def styles(self) -> tuple[str, ...]:
        """The one stream's."""
        return self.orders["styles"]

    def images_folder(self, seed: int) -> Path:
        """Where the images of a seed are kept: method, style, call."""
        folder = self.cache / "images" / f"{self.key}-{seed}"
        if not is_varied(self.options):
            return folder
        return folder.with_name(f"{folder.name}-{self.options.into.replace('/', '-')}")

    def begin(self, order: str, seed: int) -> None:
        self.own_loras(self.orders[order], seed)

    def begin_method(self, order: str, seed: int, method: str) -> None:
        del order  # There is one.
        self._images = self.images_folder(seed) / method
        shutil.rmtree(self._images, ignore_errors=True)

    def own_loras(self, tasks: Sequence[str], seed: int) -> dict[str, OwnLora]:
        settings = self.settings(seed, len(self.styles))
        for style in tasks:
            place = self.own_folder(seed) / style
            if not (place / "own.json").is_file():
                lora.make(self.studio, style, settings, place, self.images_folder(seed) / "own")
                print(f"seed {seed}: own LoRA of {style}", flush=True)
        known = load_own(self.own_folder(seed))
        return {style: known[style] for style in tasks}

    def job(self, task: str, seed: int, held_out: int = 0) -> TaskJob:
        del seed, held_out  # No head; ``measure`` has images and digits of its own.
        return TaskJob(
            name=task,
            data=self.studio.images(task),
            model=self.studio.denoiser,
            score=lambda model: self._score(task, model),
            heads=(),
            steps=steps(task, self.size),
        )

    def _score(self, style: str, model: nn.Module) -> float:
        """Makes images with a model, keeps them, and says how many are right."""
        images = self.studio.painter.paint(plain_unet(model))
        calls = len(list((self._images / style).glob("*.npy")))
        painting.save(self._images / style / f"{calls}.npy", images)
        return self.studio.score(style, images)

    def measure(self, job: TaskJob, model: nn.Module) -> dict[str, float]:
        """Percent of the images that are right, and the loss on test digits, which tells settings
        apart where 80 images do not."""
        unet, painter = plain_unet(model), self.studio.painter
        verdicts = [
            judges.verdict(self.studio.judge, painter.paint(unet, n), painter.labels, job.name)
            for n in NOISES
        ]
        return {
            "prompt": fmean(v.prompt for v in verdicts),
            "style": fmean(v.style for v in verdicts),
            "both": fmean(v.both for v in verdicts),
            "loss": self._loss(job.name, unet),
        }

    @torch.no_grad()
    def _loss(self, style: str, unet: nn.Module) -> float:
        """On test digits in the style, at the same times and noise for every setting."""
        digits, pipe = read(self.options.data, "test").first(EXAMPLES), self.studio.pipe
        latents: Tensor = pipe.vae.encode(styled(style, digits.images))
        prompts = embed(pipe, [prompt(int(label)) for label in digits.labels])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return float(v_loss(unet, pipe.scheduler, latents, prompts))
