"""The stream of finished LoRAs alone: merged one after the other, nothing is trained.

    python -m experiments.text_to_image.adapters_stream --data DATA/images --seeds 0

After ``run``, whose own LoRAs it takes. Each style is scored when it comes and at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import environment
from experiments.common.runs import write
from experiments.text_to_image import lora, painting, script
from experiments.text_to_image.jobs import Studio, open_studio
from experiments.text_to_image.settings import TASKS

from sharespace import Adapter, Share
from sharespace.formats import read_adapter


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--k", type=int, nargs="+", default=[16, 32])
    chosen = parser.parse_args()
    script.begin(chosen)
    size = script.size(chosen)
    studio = open_studio(chosen.data, size, chosen.cache)
    for seed in chosen.seeds:
        folder = script.seed_folder(chosen.cache, size, seed)
        adapters = [read_adapter(folder / "own" / style, style) for style in TASKS]
        found = {str(k): merged(studio, adapters, k, folder) for k in chosen.k}
        record = {"by_k": found, "environment": environment(seed)}
        write(chosen.out / "adapters" / f"{seed}.json", record)


def merged(studio: Studio, adapters: list[Adapter], k: int, folder: Path) -> dict[str, Any]:
    """One stream."""
    images = folder / "images" / f"merged-{k}"
    share = Share.from_adapters(adapters[:1], k=k)
    learned = {TASKS[0]: score(studio, share, TASKS[0], folder, images / TASKS[0] / "0.npy")}
    for adapter in adapters[1:]:
        share = share.merge([adapter])
        style = adapter.name
        learned[style] = score(studio, share, style, folder, images / style / "0.npy")
    end = {s: score(studio, share, s, folder, images / s / "1.npy") for s in TASKS}
    found = share.fidelity(adapters)
    return {
        "when_it_came": learned,
        "at_the_end": end,
        "relative_error": {s: found.tasks[s].relative_error for s in TASKS},
        "bytes": found.bytes.basis + found.bytes.coefficients,
        "bytes_of_adapters": sum(_bytes(adapter) for adapter in adapters),
    }


def score(studio: Studio, share: Share, style: str, folder: Path, file: Path) -> float:
    """Of a style as the Share model holds it, by way of a LoRA file that the pipeline loads."""
    share.export(style, folder / "export", to="diffusers", overwrite=True)
    images = studio.painter.paint(lora.loaded(studio, folder / "export"))
    painting.save(file, images)
    return studio.score(style, images)


def _bytes(adapter: Adapter) -> int:
    updates = (adapter.layer(module) for module in adapter.shapes)
    return sum(u.up.nbytes + u.down.nbytes for u in updates)


if __name__ == "__main__":
    main()
