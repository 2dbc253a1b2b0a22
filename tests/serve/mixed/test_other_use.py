"""Settings of an adapter that change what its factors do: refused by name wherever they would run.

PEFT applies aLoRA from its invocation tokens on only; added to every token, the same factors give
other answers. A field that is not known may mean anything.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from serve.mixed.test_batch import llama
from sharespace import Share
from sharespace.errors import UnsupportedAdapterError
from sharespace.formats.lora_config import COMPONENTS, METADATA
from sharespace.serve.mixed import MixedTasks
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.tuner import ShareConfig, publish
from tuner.spaces import ALIVE, space

FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"alora_invocation_tokens": [7, 8]}, "alora_invocation_tokens.*aLoRA"),
    ({"of_the_future": 3}, "of_the_future.*not known"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora.*block-diagonal"),
    (
        {
            COMPONENTS: ["unet"],
            METADATA: {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.what": 1})},
        },
        "unet: what is set",
    ),
]


def of(config: dict[str, Any]) -> Share:
    """Tasks a, with this config, and b, a plain one."""
    model = space(llama(), tasks=("a", "b"))
    a = replace(model.tasks["a"], config={"peft_type": "LORA", **config})
    return Share(model.with_tasks([a, model.tasks["b"]]))


@pytest.mark.parametrize(("config", "said"), FIELDS)
def test_refused_by_name_where_it_would_run(config: dict[str, Any], said: str) -> None:
    share = of(config)
    mixed = MixedTasks(llama(), share)
    with pytest.raises(UnsupportedAdapterError, match=f"task 'a'.*{said}"), mixed.tasks(["a"]):
        pass
    with mixed.tasks(["b"]):  # The other tasks are served.
        mixed.model(torch.ones(1, 3, dtype=torch.long))
    ALIVE.append(share.model)
    name = publish(share.model)
    with pytest.raises(UnsupportedAdapterError, match=said):
        get_peft_model(llama(), ShareConfig(share=name, task="a"))
    get_peft_model(llama(), ShareConfig(share=name, task="b"))
    with pytest.raises(UnsupportedAdapterError, match=said):
        share.merge_into_base(llama(), "a")


def test_fields_without_a_meaning_of_their_own_pass() -> None:
    share = of({"alora_invocation_tokens": None, "of_the_future": False, "lora_dropout": 0.1})
    with MixedTasks(llama(), share).tasks(["a"]):
        pass


@pytest.mark.parametrize("config", [{"alora_invocation_tokens": [7, 8]}, {"of_the_future": 3}])
def test_it_is_stored_and_exported_as_it_came(config: dict[str, Any], tmp_path: Path) -> None:
    share = of(config)
    share.save(tmp_path / "s.share")
    Share.load(tmp_path / "s.share").export("a", tmp_path / "a")
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert written.items() >= config.items()
    with pytest.raises(UnsupportedAdapterError, match=next(iter(config))):
        share.export("a", tmp_path / "v", to="vllm")


@pytest.mark.parametrize(
    "path", ["language_model.model.layers", "model.layers", "layers", "model.language_model.layers"]
)
def test_paths_of_another_class_or_release_are_found(path: str) -> None:
    """transformers 5 has moved the language model within its multimodal classes."""
    pytest.importorskip("transformers", minversion="5")
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 32, "image_size": 16, "patch_size": 4}
    config = Gemma3Config(
        text_config={
            **text, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2
        },
        vision_config={**vision, "num_hidden_layers": 1, "num_attention_heads": 2},
        mm_tokens_per_image=4,
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config).eval()
    update = LayerUpdate(torch.randn(32, 2), torch.randn(2, 32))
    share = Share.from_adapters(
        [Adapter.from_updates("a", {f"{path}.0.self_attn.q_proj": update})], variance=1.0
    )
    tokens = torch.arange(3, 12)[None]
    mixed = MixedTasks(model, share)
    with torch.no_grad():
        with mixed.tasks(["a"]):
            answer = model(input_ids=tokens).logits
        layer = model.model.language_model.layers[0].self_attn.q_proj
        layer.weight += update.up @ update.down
        torch.testing.assert_close(answer, model(input_ids=tokens).logits, rtol=1e-4, atol=1e-5)
