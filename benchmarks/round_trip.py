"""Real adapters in, one Share model on disk, plain LoRA out: what is lost, tensor by tensor.

Each set is built with room for everything (k as large as the ranks together), saved, loaded, and
every task exported. The error compares the *exported file* with the original in float64; every
tensor of the original that is not a LoRA factor must be in the export, bit for bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from sharespace import Adapter, Share, read_adapter
from sharespace.linalg.dimension import Dimension
from sharespace.subspace.build import initialise
from sharespace.subspace.fidelity import measure

FULL_K = 4096
HEADER = ["set", "task", "layers", "error, exported", "other tensors", "lost or changed"]


def main(arguments: Sequence[str] | None = None) -> None:
    options = common.parser(__doc__, "round_trip")
    options.add_argument("--adapters", nargs="+", required=True, metavar="FOLDER")
    chosen = options.parse_args(arguments)
    found = {Path(f).name: round_trip(Path(f)) for f in chosen.adapters}
    results = {"environment": common.environment(chosen.seed), "sets": found}
    common.write_results(chosen.out, results)
    print(report(results))


def round_trip(folder: Path) -> dict[str, Any]:
    """Every adapter of one base model, by name."""
    originals = [read_adapter(path) for path in sorted(folder.iterdir()) if path.is_dir()]
    with tempfile.TemporaryDirectory() as place:
        Share.from_adapters(originals, k=FULL_K).save(Path(place, "share"))
        share = Share.load(Path(place, "share"))
        return {a.name: _compare(a, _exported(share, a, Path(place, a.name))) for a in originals}


def _exported(share: Share, original: Adapter, out: Path) -> Adapter:
    share.export(
        original.name, out, to="diffusers" if original.provenance.format == "diffusers" else "peft"
    )
    return read_adapter(out, original.name)


def _compare(original: Adapter, back: Adapter) -> dict[str, Any]:
    """The export, taken as a model of its own, against the original."""
    exact = initialise([back], Dimension(variance=1.0))
    lost = measure(exact, [original])[original.name]
    total = exact.tasks[original.name].ledger.total_norm
    kept = {k: t for k, t in original.kept.items() if k in back.kept and back.kept[k].equal(t)}
    return {
        "layers": len(original.shapes),
        "error": sum(e * e for e in lost.values()) ** 0.5 / total,
        "other": len(original.kept),
        "lost": len(original.kept) - len(kept) + len(set(original.shapes) - set(back.shapes)),
    }


def report(results: dict[str, Any]) -> str:
    """A row an adapter."""
    rows = [
        [group, task, str(r["layers"]), f"{r['error']:.1e}", str(r["other"]), str(r["lost"])]
        for group, tasks in results["sets"].items()
        for task, r in tasks.items()
    ]
    return common.table(HEADER, rows)


if __name__ == "__main__":
    main()
