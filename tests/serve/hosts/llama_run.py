"""Log probabilities of the next token by llama.cpp: ``llama_run.py BASE IDS OUT [ADAPTER]``.

Run by the Python of an environment with ``xllamacpp``.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    base, ids, out, *adapters = sys.argv[1:]
    server = _server(base, adapters)
    request = {
        "prompt": json.loads(ids),
        "max_tokens": 1,
        "n_probs": 64,
        "temperature": 1.0,
        "cache_prompt": False,
        "post_sampling_probs": False,
    }
    answer = server.handle_completions(request)
    answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
    first = answer["choices"][0]["logprobs"]["content"][0]
    found = {str(entry["id"]): entry["logprob"] for entry in first["top_logprobs"]}
    Path(out).write_text(json.dumps(found))


def _server(base: str, adapters: list[str]) -> Any:
    llama = import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = base
    params.n_ctx = 128
    params.n_parallel = 1
    params.warmup = False
    params.cpuparams.n_threads = 1
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    if adapters:
        infos = []
        for path in adapters:
            info = llama.CommonAdapterLoraInfo()
            info.path, info.scale = path, 1.0
            infos.append(info)
        params.lora_adapters = infos
    return llama.Server(params)


if __name__ == "__main__":
    main()
