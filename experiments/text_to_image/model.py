"""A Stable Diffusion pipeline small enough to be trained here, of diffusers' own classes.

Tokenizer, CLIP text model, UNet, scheduler and pipeline are those of Stable Diffusion, only
smaller. The autoencoder is replaced by a lossless one: blocks of 2 x 2 pixels become 4 channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ConfigMixin,
    DDIMScheduler,
    ModelMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.configuration_utils import register_to_config
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from experiments.text_to_image.digits import CAPTIONS, NAMES
from experiments.text_to_image.settings import SIDE, Size

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 8
"""Tokens of a caption."""
_VOCABULARY = Path(__file__).with_name("vocabulary.json")
_WIDTH = 64
"""Of the text model."""


class BlockCodec(ModelMixin, ConfigMixin):
    """What the pipeline needs of an autoencoder, without a loss and without weights.

    Latents are [count, 4, side / 2, side / 2] for images [count, 1, side, side].
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (4, 4),  # noqa: ARG002 (read from ``config``)
        latent_channels: int = 4,  # noqa: ARG002
        scaling_factor: float = 1.0,  # noqa: ARG002
    ) -> None:
        super().__init__()
        # Pipelines ask their models for a dtype.
        self.register_buffer("nothing", torch.zeros(1))

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1]."""
        return functional.pixel_unshuffle(images, 2)

    def decode(self, latents: Tensor, **_: Any) -> tuple[Tensor]:
        """Images of latents, as ``AutoencoderKL.decode(return_dict=False)`` gives them."""
        return (functional.pixel_shuffle(latents, 2),)


def tokenizer() -> Any:
    """CLIP's tokenizer with the merges of ``vocabulary.json``.

    They were learned from the captions once by ``learn_vocabulary``; the learner breaks ties at
    random, so they are kept.
    """
    vocabulary = json.loads(_VOCABULARY.read_text())
    merges = [tuple(pair.split(" ")) for pair in vocabulary["merges"]]
    return CLIPTokenizer(vocab=vocabulary["vocab"], merges=merges, model_max_length=LENGTH)


def learn_vocabulary() -> dict[str, Any]:
    """What ``vocabulary.json`` holds: byte-pair merges of the captions' words."""
    captions = [caption.format(name) for caption in CAPTIONS for name in NAMES]
    learner = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BEGIN, END],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    state = json.loads(learner.to_str())["model"]
    return {"vocab": state["vocab"], "merges": [" ".join(pair) for pair in state["merges"]]}


def text_model(words: Any) -> Any:
    """A CLIP text model for that tokenizer, untrained."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        )
    )


def unet(channels: Sequence[int]) -> Any:
    """Two resolutions with one block each, cross attention at the lower one, untrained."""
    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=_WIDTH,
        attention_head_dim=max(channels[-1] // 4, 4),
        norm_num_groups=8,
    )


def scheduler() -> Any:
    """Noise down to no signal at all, or no image could be white as a whole (arXiv 2305.08891)."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def pipeline(text_encoder: Any, words: Any, denoiser: Any) -> Any:
    """Stable Diffusion's pipeline over these parts."""
    pipe = StableDiffusionPipeline(
        vae=BlockCodec(),
        text_encoder=text_encoder,
        tokenizer=words,
        unet=denoiser,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build(size: Size) -> Any:
    """An untrained pipeline, the same at every call."""
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return pipeline(text_model(words), words, unet(size.channels))


def embed(pipe: Any, captions: Sequence[str]) -> Tensor:
    """Hidden states of captions, [count, tokens, width], as the pipeline makes them."""
    tokens = pipe.tokenizer(
        list(captions), padding="max_length", max_length=LENGTH, return_tensors="pt"
    )
    hidden: Tensor = pipe.text_encoder(tokens.input_ids)[0]
    return hidden


def v_loss(denoiser: Any, noising: Any, latents: Tensor, prompts: Tensor) -> Tensor:
    """Mean squared error of the predicted velocity at random times (arXiv 2202.00512).

    Args:
        denoiser: the UNet.
        noising: the scheduler.
        latents: [count, 4, side / 2, side / 2].
        prompts: hidden states of the captions, [count, tokens, width].
    """
    noise = torch.randn_like(latents)
    times = torch.randint(0, noising.config.num_train_timesteps, (len(latents),))
    noisy = noising.add_noise(latents, noise, times)
    wanted = noising.get_velocity(latents, noise, times)
    velocity = denoiser(noisy, times, encoder_hidden_states=prompts).sample
    return functional.mse_loss(velocity.float(), wanted.float())
