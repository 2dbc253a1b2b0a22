"""Adapters saved by the real PEFT: read, written back, and loaded by PEFT again."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from torch import nn

from sharespace.formats import read_adapter, write_peft


def test_linear_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0", "1"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "a")
    adapter = read_adapter(tmp_path / "a")
    updates = {m: adapter.layer(m) for m in adapter.shapes}
    write_peft(tmp_path / "b", updates, config=dict(adapter.config), base=adapter.base)
    x = torch.randn(3, 6)
    expected = model(x)
    loaded = peft.PeftModel.from_pretrained(model.unload(), tmp_path / "b")
    assert torch.allclose(loaded(x), expected, atol=1e-5)
    assert adapter.layer("0").scaling == 3.0
