"""An adapter's folder through vLLM's own loader, without a model: dense updates by module.

Run by the Python of an environment with vLLM: ``vllm_load.py FOLDER OUT``.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from safetensors.torch import save_file

from sharespace.formats.vllm_target import max_lora_rank


def main() -> None:
    LoRAConfig = import_module("vllm.config.lora").LoRAConfig
    LoRAModel = import_module("vllm.lora.lora_model").LoRAModel
    PEFTHelper = import_module("vllm.lora.peft_helper").PEFTHelper
    folder, out = sys.argv[1:]
    rank = json.loads((Path(folder) / "adapter_config.json").read_text())["r"]
    helper = PEFTHelper.from_local_dir(folder, None)
    helper.validate_legal(LoRAConfig(max_lora_rank=max_lora_rank(rank)))
    words = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    model = LoRAModel.from_local_checkpoint(folder, words, helper, device="cpu")
    found = {}
    for name, weights in model.loras.items():
        whole = weights.optimize()
        found[name] = (whole.lora_b @ whole.lora_a).contiguous()
    save_file(found, out)


if __name__ == "__main__":
    main()
