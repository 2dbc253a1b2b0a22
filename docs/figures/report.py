"""Make the store of report.png and its report: ``python docs/figures/report.py FOLDER``.

The picture is two parts of the page in Chromium, 1000 pixels wide, side by side.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from sharespace import Adapter, LayerUpdate, Share
from sharespace.report import write_report
from sharespace.subspace.adapter import BaseModel, Provenance

SIDE, RANK, COMMON = 160, 4, 3
DESKS = ("legal", "medical", "news", "code")
JOBS = ("summary", "entities", "topics", "answers", "style", "titles")
KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def updates(desk: int, job: int) -> dict[str, LayerUpdate]:
    """Updates in the directions of the desk, the later desks with more of each job's own."""
    own, found = 0.35 + 0.25 * desk, {}
    for at, module in enumerate(f"model.layers.{i}.{kind}" for i in range(8) for kind in KINDS):
        common, single = 1000 * desk + 10 * at, 100_000 * (10 * desk + job + 1) + 10 * at
        left, right = (torch.linalg.qr(draw(common + s, SIDE, COMMON))[0] for s in (0, 1))
        up = draw(common + 2, COMMON, RANK) + own * draw(single, COMMON, RANK)
        down = draw(common + 3, RANK, COMMON) + own * draw(single + 1, RANK, COMMON)
        rest = 0.015 * own
        found[module] = LayerUpdate(
            left @ up + rest * draw(single + 2, SIDE, RANK),
            down @ right.mT + rest * draw(single + 3, RANK, SIDE),
        )
    return found


def adapters() -> list[Adapter]:
    return [
        Adapter.from_updates(
            f"{desk}-{job}",
            updates(i, j),
            base=BaseModel("acme/base-350m"),
            provenance=Provenance("peft", f"{desk}-{job}/adapter_model.safetensors"),
        )
        for i, desk in enumerate(DESKS)
        for j, job in enumerate(JOBS[: 6 - i % 2])
    ]


def main(folder: Path) -> None:
    made = adapters()
    share = Share.from_adapters(made[:9], k=16)
    share.save(folder / "desks.share")
    for at in range(9, len(made), 5):
        share = share.merge(made[at : at + 5])
        share.save()
    write_report(folder / "desks.share", folder / "report.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
