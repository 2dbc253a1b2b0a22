"""Module paths from kohya's flattened names.

kohya writes a module's path with every "." as "_". Going back needs to know which words have an
underscore of their own: the vocabulary below (diffusers' and the original names of UNets,
transformers and text encoders). From left to right, the longest vocabulary word that fits is one
part of the path; every other underscore becomes a dot. So a name that the vocabulary does not
cover is split at all its underscores: its module is still told from all others, and flattening
gives the file's key again whatever the vocabulary holds.
"""

from __future__ import annotations

VOCABULARY = """
down_blocks mid_block up_blocks transformer_blocks single_transformer_blocks input_blocks
middle_block output_blocks double_blocks single_blocks joint_blocks context_block x_block
time_embedding time_embed time_emb_proj add_embedding label_emb class_embedding emb_layers
time_proj linear_1 linear_2 time_text_embed timestep_embedder guidance_embedder text_embedder
context_embedder x_embedder y_embedder t_embedder pos_embed
conv_in conv_out conv_shortcut conv_norm_out in_layers out_layers skip_connection
proj_in proj_out proj_mlp to_q to_k to_v to_out to_qkv to_add_out to_added_qkv
add_q_proj add_k_proj add_v_proj ff_context norm1_context norm_out norm_q norm_k
norm_added_q norm_added_k adaLN_modulation adaln_single
img_attn txt_attn img_mlp txt_mlp img_mod txt_mod img_in txt_in time_in vector_in guidance_in
in_layer out_layer final_layer
text_model text_projection self_attn cross_attn encoder_attn encoder_decoder_attn
q_proj k_proj v_proj o_proj out_proj in_proj qkv_proj gate_proj up_proj down_proj
layer_norm layer_norm1 layer_norm2 final_layer_norm input_layernorm post_attention_layernorm
token_embedding position_embedding embed_tokens embed_positions c_fc c_proj c_attn
wi_0 wi_1 encoder_hid_proj visual_projection lm_head
"""

_PARTS = {tuple(word.split("_")) for word in VOCABULARY.split()}
_LONGEST = max(len(parts) for parts in _PARTS)


def unflatten(flat: str) -> str:
    """The path of a flattened name; ``flatten(unflatten(x)) == x`` for every x without a dot."""
    parts = flat.split("_")
    path = []
    at = 0
    while at < len(parts):
        size = _word_at(parts, at)
        path.append("_".join(parts[at : at + size]))
        at += size
    return ".".join(path)


def flatten(path: str) -> str:
    """kohya's name of a module's path."""
    return path.replace(".", "_")


def _word_at(parts: list[str], at: int) -> int:
    """How many parts the longest vocabulary word at this place has; 1 where none fits."""
    for size in range(_LONGEST, 1, -1):
        if tuple(parts[at : at + size]) in _PARTS:
            return size
    return 1
