"""An adapter's folder through the code of SGLang's own loader: what it keeps, stacked.

``sglang_load.py FILES FOLDER BASE OUT``: FILES has ``sglang/srt/lora`` of the published wheel. Of
it run, unchanged, ``lora_config.py``, ``lora.py`` and ``utils.py``; what they import beside torch
(the server, its kernels) is replaced by stand-ins, so nothing needs a GPU.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

from safetensors.torch import load_file, save_file
from transformers import AutoConfig

STAND_INS = (
    "sglang.srt.configs.load_config",
    "sglang.srt.lora.backend.base_backend",
    "sglang.srt.model_loader.loader",
    "sglang.srt.model_executor.forward_batch_info",
    "sglang.srt.utils.hf_transformers_utils",
)


def main() -> None:
    files, folder, base, out = sys.argv[1:]
    code = Path(files) / "sglang" / "srt"
    for name in STAND_INS:
        _stand_in(name)
    sys.modules["sglang.srt.layers.utils"] = _run("layers_utils", code / "layers/utils/common.py")
    utils = sys.modules["sglang.srt.lora.utils"] = _run("utils", code / "lora/utils.py")
    config_file = _run("sglang.srt.lora.lora_config", code / "lora/lora_config.py")
    sys.modules["sglang.srt.lora.lora_config"] = config_file
    loader = _run("lora", code / "lora/lora.py")
    config = config_file.LoRAConfig(folder)
    adapter = loader.LoRAAdapter(
        "x", config, AutoConfig.from_pretrained(base), load_config=None, lora_backend=None
    )
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    adapter.initialize_weights_from_tensors(tensors)
    targets = utils.get_normalized_target_modules(config.target_modules)
    assert targets <= utils._KNOWN_LORA_TARGET_MODULES, targets
    assert not config.use_dora
    assert adapter.scaling == 1
    save_file(_kept(adapter, targets, utils), out)


def _kept(adapter: Any, targets: set[str], utils: Any) -> dict[str, Any]:
    """As ``mem_pool.py`` puts them into buffers: by layer and target, A or B."""
    found = {}
    for number, layer in enumerate(adapter.layers):
        for name, tensor in layer.weights.items():
            target = utils.get_target_module_name(name, targets)
            key = f"{number}.{target}.{'A' if 'lora_A' in name else 'B'}"
            assert key not in found, name
            found[key] = tensor.contiguous()
    for name, tensor in adapter.embedding_layers.items():
        assert utils.get_target_module_name(name, targets) == "lm_head"
        found[f"head.{'A' if 'lora_A' in name else 'B'}"] = tensor
    return found


def _stand_in(name: str) -> None:
    parts = name.split(".")
    for i in range(1, len(parts)):
        sys.modules.setdefault(".".join(parts[:i]), ModuleType(".".join(parts[:i])))
    sys.modules[name] = MagicMock(name=name)


def _run(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
