"""The stream of finished LoRAs alone: merged one after the other, nothing is trained.

    python -m experiments adapters text_to_image --data DATA/images --seeds 0

After ``run``, whose own LoRAs it takes. Each style is scored when it comes and at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import environment

from experiments.harness.experiment import opened, parser
from experiments.harness.results import write
from experiments.text_to_image import lora, painting
from experiments.text_to_image.experiment import TextToImage
from experiments.text_to_image.studio import Studio
from sharespace import Adapter, Share


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(TextToImage, __doc__, seeds=[0])
    choices.add_argument("--k", type=int, nargs="+", default=[16, 32], dest="caps")
    options = choices.parse_args(arguments)
    experiment: TextToImage = opened(TextToImage, options)
    for seed in options.seeds:
        own = experiment.own_loras(experiment.styles, seed)
        adapters = [lora.adapter for lora in own.values()]
        folder = experiment.images_folder(seed)
        by_k = {str(k): merged(experiment.studio, adapters, k, folder) for k in options.caps}
        record = {"by_k": by_k, "environment": environment(seed)}
        write(experiment.results("adapters") / f"{seed}.json", record)


def merged(studio: Studio, adapters: list[Adapter], k: int, folder: Path) -> dict[str, Any]:
    """One stream."""
    images = folder.with_name(f"{folder.name}-merged-{k}")
    share = Share.from_adapters(adapters[:1], k=k)
    first = adapters[0].name
    learned = {first: score(studio, share, first, images / first / "0.npy")}
    for adapter in adapters[1:]:
        share = share.merge([adapter])
        style = adapter.name
        learned[style] = score(studio, share, style, images / style / "0.npy")
    end = {s: score(studio, share, s, images / s / "1.npy") for s in share.tasks}
    fidelity = share.fidelity(adapters)
    return {
        "when_it_came": learned,
        "at_the_end": end,
        "relative_error": {s: fidelity.tasks[s].relative_error for s in share.tasks},
        "bytes": fidelity.bytes.basis + fidelity.bytes.coefficients,
        "bytes_of_adapters": sum(_bytes(adapter) for adapter in adapters),
    }


def score(studio: Studio, share: Share, style: str, file: Path) -> float:
    """Of a style as the Share model holds it, by way of a LoRA file that the pipeline loads."""
    with TemporaryDirectory() as folder:
        share.export(style, Path(folder) / "lora", to="diffusers")
        images = studio.painter.paint(lora.loaded(studio, Path(folder) / "lora"))
    painting.save(file, images)
    return studio.score(style, images)


def _bytes(adapter: Adapter) -> int:
    updates = (adapter.layer(module) for module in adapter.shapes)
    return sum(u.up.nbytes + u.down.nbytes for u in updates)
