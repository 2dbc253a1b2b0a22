"""Images of different tasks in one batch of a real StableDiffusionPipeline, against one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers", reason="extra 'diffusers' is not installed")

import diffusers
from transformers import CLIPTextConfig, CLIPTextModel

from serve.mixed.test_batch import check_rows
from sharespace import Share
from sharespace.errors import MismatchError, OptionError
from sharespace.serve.mixed import MixedTasks
from sharespace.subspace.state import ShareModel, reconstruct
from sharespace.tuner import applied
from tuner.spaces import seeded, space

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*")

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "time_emb_proj", "proj_in", "ff.net.2")
TEXT = ("q_proj", "v_proj", "fc1")
PROMPTS = ["one", "two", "three", "four"]
NAMES = ["b", None, "a", "b"]


class Words:
    """A tokenizer of bytes: CLIP's wants files of a vocabulary."""

    model_max_length = 6
    added_tokens_encoder: ClassVar[dict[str, int]] = {}

    def tokenize(self, text: str) -> list[str]:
        return list(text)

    def __call__(self, text: str | Sequence[str], **_: Any) -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        ids = [[1, *(3 + ord(c) % 20 for c in t[:4]), 2] for t in texts]
        padded = torch.tensor([row + [2] * (6 - len(row)) for row in ids])
        return type("Encoded", (), {"input_ids": padded, "attention_mask": None})()


def unet() -> Any:
    return seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=2, out_channels=2, layers_per_block=1,
            block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=8,
            attention_head_dim=4, norm_num_groups=4,
        )
    )  # fmt: skip


def pipeline() -> Any:
    """All of Stable Diffusion, tiny."""
    text = CLIPTextConfig(
        vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=6, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    vae = seeded(
        lambda: diffusers.AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=2, block_out_channels=(4,),
            norm_num_groups=2, sample_size=8, down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
        )
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=20)
    found = diffusers.StableDiffusionPipeline(
        vae, seeded(lambda: CLIPTextModel(text)), Words(), unet(), scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    found.set_progress_bar_config(disable=True)
    return found


def only(model: ShareModel, *ends: str) -> ShareModel:
    """With these modules, and updates that show after two steps of a tiny model."""
    layers = {n: layer for n, layer in model.layers.items() if n.endswith(ends)}
    tasks = [
        replace(t, coefficients={n: c for n, c in t.coefficients.items() if n in layers})
        for t in model.tasks.values()
    ]
    return model.with_layers(layers).with_tasks(tasks)


def share_of(pipe: Any) -> Share:
    """Tasks that adapt the denoiser and the text encoder."""
    both = nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    return Share(only(space(both, tasks=("a", "b", "c")), *ADAPTED, *TEXT))


def images(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    said = {"num_inference_steps": 2, "output_type": "pt", **options}
    return torch.as_tensor(pipe(list(prompts), generator=generators, **said).images)


def alone(pipe: Any, share: Share, row: int, **options: Any) -> Tensor:
    """One prompt with its task's changed weights."""
    both = nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    name = NAMES[row]
    per_prompt = options.get("num_images_per_prompt", 1)
    seeds = range(row * per_prompt, (row + 1) * per_prompt)
    with applied(both, {} if name is None else reconstruct(share.model, name)):
        return images(pipe, [PROMPTS[row]], seeds, **options)


def of_one(options: dict[str, Any], row: int) -> dict[str, Any]:
    """The same options for one prompt of the four."""
    return {n: [v[row]] if isinstance(v, list) else v for n, v in options.items()}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [
    {"guidance_scale": 1.0},
    {"guidance_scale": 5.0},
    {"guidance_scale": 5.0, "negative_prompt": ["x", "y", "z", "w"]},
    {"guidance_scale": 5.0, "num_images_per_prompt": 2},
    {"guidance_scale": 1.0, "num_images_per_prompt": 2},
])  # fmt: skip
def test_every_prompt_gives_the_image_of_its_task(options: dict[str, Any]) -> None:
    pipe = pipeline()
    share = share_of(pipe)
    expected = torch.cat([alone(pipe, share, i, **of_one(options, i)) for i in range(4)])
    per_prompt = options.get("num_images_per_prompt", 1)
    mixed = MixedTasks(pipe, share)
    with mixed.tasks(NAMES, beams=per_prompt):
        found = images(pipe, PROMPTS, range(4 * per_prompt), **options)
    close(found, expected)
    mixed.remove()
    plain = images(pipe, PROMPTS, range(4 * per_prompt), **options)
    differs = (found - plain).flatten(1).abs().amax(1) > 1e-3
    assert differs.tolist() == [n is not None for n in NAMES for _ in range(per_prompt)]


def test_a_denoiser_alone_wants_to_know_of_guidance() -> None:
    pipe = pipeline()
    share = Share(only(space(pipe.unet, tasks=("a", "b", "c")), *ADAPTED))
    by_pipeline = MixedTasks(pipe, share)
    assert by_pipeline.model is pipe.unet, "names without a component are the denoiser's"
    with by_pipeline.tasks(NAMES):
        expected = images(pipe, PROMPTS, range(4), guidance_scale=5.0)
    by_pipeline.remove()
    mixed = MixedTasks(pipe.unet, share)
    with mixed.tasks(NAMES), pytest.raises(OptionError, match=r"8 rows.*copies=2"):
        images(pipe, PROMPTS, range(4), guidance_scale=5.0)
    with mixed.tasks(NAMES, copies=2):
        assert torch.equal(images(pipe, PROMPTS, range(4), guidance_scale=5.0), expected)


def test_images_that_were_not_named_are_refused() -> None:
    """Their rows could be told from copies of the batch by nothing."""
    pipe = pipeline()
    mixed = MixedTasks(pipe, share_of(pipe))
    for scale in (1.0, 5.0):
        with mixed.tasks(NAMES), pytest.raises(OptionError, match="num_images_per_prompt"):
            images(pipe, PROMPTS, range(8), guidance_scale=scale, num_images_per_prompt=2)


def test_what_is_no_model() -> None:
    pipe = pipeline()
    with pytest.raises(MismatchError, match="neither a torch module nor a pipeline"):
        MixedTasks(object(), share_of(pipe))


def test_rows_of_a_unet_with_all_its_modules() -> None:
    """Every linear layer and convolution that sees rows; time embeddings see all rows, too."""
    model = unet()
    context = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(3))

    def run(x: Tensor) -> Tensor:
        return torch.as_tensor(model(x, 5, context.expand(len(x), -1, -1)).sample)

    x = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    check_rows(model, Share(space(model, tasks=("a", "b", "c"))), partial(run), x)
