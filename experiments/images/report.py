"""What the paper claims of images and of the kinds of stream, beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

from experiments.harness.claims import (
    Claim,
    Said,
    as_joint,
    count,
    fewer_numbers,
    near_lora,
    no_forgetting,
)
from experiments.harness.summarise import Report
from experiments.harness.transfer import draw_transfer
from sharespace.stream.measures import ScoreMatrix, acc

_SETTING = "small models and sets; the paper: ViT-B/16 on CIFAR-100, Food-101, Caltech, Flowers"


NO_FORGETTING = Said("Images: hardly any forgetting", "k has room for all tasks", paper="minimal")
AS_JOINT = Said(
    "Images: as good as joint training",
    "one LoRA of rank 8 for all tasks together; far below the head alone means that it collapsed "
    "at the rate of own LoRAs",
)
FEWER = Said(
    "Images: up to 100 times fewer trained parameters a task",
    "layers of 128 to 256 channels; what smaller cores keep: table How much a task trains",
    paper="up to 100x",
)


class Images(Report):
    """See the package."""

    name = "images"
    titles: ClassVar[Mapping[str, str]] = {
        "mobilenet": "MobileNet, 1x1 convolutions",
        "vit": "Small ViT, query and value",
    }

    def claims(self) -> list[Claim | None]:
        runs = self.all_runs
        streams = dict.fromkeys((record["base"], record["order"]) for record in self.kinds)
        near = "Images, learned one after the other: Share stays near per-task LoRA"
        return [
            *(
                near_lora(self.runs[base], Said(f"{near} ({self.titles[base]})", _SETTING))
                for base in self.runs
            ),
            no_forgetting(runs, NO_FORGETTING),
            as_joint(runs, AS_JOINT),
            fewer_numbers(runs, FEWER),
            *(
                kind_claim([r for r in self.kinds if (r["base"], r["order"]) == stream])
                for stream in streams
            ),
        ]

    def draw(self) -> None:
        super().draw()
        if self.transfer:
            draw_transfer(self.transfer, self.figure("transfer"), "percent of the test images")


def kind_claim(records: Sequence[Mapping[str, Any]]) -> Claim:
    """Adapters only and hybrid, against own LoRAs; all seeds of one stream."""
    own = fmean(fmean(record["own"].values()) for record in records)
    means = {
        kind: fmean(acc(ScoreMatrix.from_record(r["kinds"][kind]["matrix"])) for r in records)
        for kind in records[0]["kinds"]
    }
    said = ", ".join(f"{kind} {mean:.1f}" for kind, mean in means.items())
    base, order = records[0]["base"], records[0]["order"]
    return Claim(
        f"Adapters and data may come in any mix ({base}, {order})",
        "adapters, data or both",
        f"{said}; own LoRAs {own:.1f} ({count(records)})",
        "yes" if min(means.values()) >= 0.98 * own else "partly",
        "with k as for data alone",
    )
