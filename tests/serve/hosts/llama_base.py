"""A tiny language model as a GGUF file, for llama.cpp; its vocabulary means nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from sharespace.formats.gguf import ARCHITECTURES

SHIFTED = ("gemma", "gemma2", "gemma3_text")
"""Their norms multiply by 1 + weight."""


def write_base(path: Path, model: Any) -> None:
    """Every weight in float32, rows of q and k as llama.cpp wants them."""
    config = model.config
    known = ARCHITECTURES[config.model_type]
    arch = gguf.MODEL_ARCH[known.name]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _sizes(writer, config)
    _vocabulary(writer, config.vocab_size)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for key, tensor in model.state_dict().items():
        if tied and key.startswith("lm_head"):
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ValueError(f"{key} has no name")
        data = _data(key, tensor.float(), config, known.rotary_pairs)
        writer.add_tensor(name, data.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _data(key: str, tensor: Tensor, config: Any, pairs: bool) -> Tensor:
    if config.model_type == "gpt2" and ".c_" in key and tensor.dim() == 2:
        return tensor.mT
    if config.model_type in SHIFTED and key.endswith("norm.weight"):
        return tensor + 1
    if pairs and ("q_proj" in key or "k_proj" in key):
        heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
        # Rotation of pairs: within a head, row 2 i + j was row j * half + i.
        found = []
        for head in tensor.chunk(heads):
            first, second = head.chunk(2)
            found.append(torch.stack([first, second], 1).flatten(0, 1))
        return torch.cat(found)
    return tensor


def _sizes(writer: Any, config: Any) -> None:
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    size = config.hidden_size // config.num_attention_heads
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(_theta(config))
    _own(writer, config)


def _theta(config: Any) -> float:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    return float(rope.get("rope_theta", 10000.0))


def _own(writer: Any, config: Any) -> None:
    """What one family has beside the common sizes."""
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type in ("gemma2", "gemma3_text"):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "phi3":
        writer.add_sliding_window(0)


def _vocabulary(writer: Any, size: int) -> None:
    """One character each, in the form of SentencePiece."""
    control = {0: "<unk>", 1: "<s>", 2: "</s>"}
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([control.get(i, chr(0x4E00 + i)) for i in range(size)])
    writer.add_token_scores([-float(i) for i in range(size)])
    kinds = gguf.TokenType
    unknown = {0: kinds.UNKNOWN, 1: kinds.CONTROL, 2: kinds.CONTROL}
    writer.add_token_types([unknown.get(i, kinds.NORMAL) for i in range(size)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
