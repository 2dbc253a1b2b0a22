"""Error under a byte budget: Share beside own SVDs, lorashare and vlora-dev.

Bytes are those of the tensors that each one's save writes (float32; heads apart, nobody compresses
them). The peers get the largest k whose bytes are within the budget. Sets: relatives (checkpoints
of one run; tasks from one start), strangers (tasks and starts differ), and real sets (--adapters).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common, training
from benchmarks.contenders import Built, Factors, Paths, build, installed, of_share
from benchmarks.errors import add_set_options, open_all, real_sets
from benchmarks.measure import errors, tensor_bytes
from sharespace import Share
from sharespace.linalg.allocate import own_svd_options, split_budget
from sharespace.linalg.updates import CanonicalUpdates, weights
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.build_layer import read_updates

ITEM = 4
"""Bytes of a float32."""
PEERS = ("lorashare", "vlora-dev")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    sets = {**_trained_sets(options), **real_sets(options.adapters)}
    found = {}
    for label, paths in sets.items():
        print(f"{label} ...", flush=True)
        found[label] = _compare(paths, options.fractions)
    results = {"environment": common.environment(options.seed), "sets": found}
    common.write_results(options.out, results)
    print(report(results))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "equal_bytes")
    add_set_options(parser)
    parser.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=[0.125, 0.25, 0.5],
        help="budgets, as fractions of the adapters' own bytes (heads apart)",
    )
    return parser.parse_args(arguments)


def _trained_sets(options: argparse.Namespace) -> dict[str, dict[str, Path]]:
    recipes = {
        "relatives: checkpoints of one run": ("run", training.one_run),
        "relatives: tasks from one start": ("start", training.one_start),
        "strangers: tasks and starts differ": ("strangers", training.strangers),
    }
    return {
        label: training.train(
            name, recipe(options.count, options.steps), options.seed, options.cache
        )
        for label, (name, recipe) in recipes.items()
    }


def _compare(paths: Paths, fractions: Sequence[float]) -> dict[str, Any]:
    adapters = open_all(paths)
    full = ITEM * sum(r * a.shapes[m].sides for a in adapters for m, r in a.ranks.items())
    budgets = {}
    for fraction in fractions:
        budget = int(fraction * full)
        rows = {
            "sharespace": _saved(of_share(Share.from_adapters(adapters, budget=budget)), paths),
            "own SVD": _own_svd(adapters, paths, budget),
            **{peer: _peer(peer, paths, budget, adapters) for peer in PEERS if installed(peer)},
        }
        budgets[f"{fraction:g}"] = {"budget_bytes": budget, "rows": rows}
    return {"adapters": len(paths), "lora_bytes": full, "budgets": budgets}


def _saved(built: Built, paths: Paths) -> dict[str, Any]:
    """Errors, and bytes as saved."""
    with tempfile.TemporaryDirectory() as folder:
        built.save(Path(folder) / "saved")
        return {**_errors(built, paths), "bytes": _stored(built, Path(folder) / "saved")}


def _stored(built: Built, folder: Path) -> int:
    """A Share store holds heads and ledgers in the same files; its own count leaves them out."""
    if built.scaled:
        sizes = Share.load(folder).fidelity().bytes
        return sizes.basis + sizes.coefficients
    return tensor_bytes(folder)


def _errors(built: Built, paths: Paths) -> dict[str, Any]:
    found = errors(built, paths)
    return {"mean": found.mean, "worst": found.worst}


def _own_svd(adapters: Sequence[Adapter], paths: Paths, budget: int) -> dict[str, Any]:
    """Every task by its own truncated SVDs, the budget split as well as can be."""
    modules = list(dict.fromkeys(m for a in adapters for m in a.shapes))
    members = {m: [a for a in adapters if m in a.shapes] for m in modules}
    updates = {m: read_updates(members[m], m, torch.device("cpu")) for m in modules}
    totals: dict[str, float] = {}
    for m, update in updates.items():
        for a, norm in zip(members[m], update.norms.tolist(), strict=True):
            totals[a.name] = totals.get(a.name, 0.0) + norm**2
    weight = {
        m: weights(torch.tensor([totals[a.name] for a in members[m]]).double().sqrt())
        for m in modules
    }
    profiles = {m: own_svd_options(updates[m], ITEM) for m in modules}
    points = split_budget([profiles[m].affordable(weight[m], budget) for m in modules], budget)
    kept: dict[str, dict[str, tuple[CanonicalUpdates, int]]] = {a.name: {} for a in adapters}
    for m, point in zip(modules, points, strict=True):
        ranks = profiles[m].own_ranks(weight[m], point.columns)
        for i, (a, rank) in enumerate(zip(members[m], ranks, strict=True)):
            kept[a.name][m] = (updates[m].select([i]), rank)
    built = Built(lambda task: _truncated(kept[task]), True, lambda _: None)
    return {**_errors(built, paths), "bytes": sum(p.nbytes for p in points)}


def _truncated(modules: Mapping[str, tuple[CanonicalUpdates, int]]) -> Factors:
    return {
        m: (u.left[:, :rank] * u.sigma[:rank], u.right[:, :rank].mT)
        for m, (u, rank) in modules.items()
    }


def _peer(peer: str, paths: Paths, budget: int, adapters: Sequence[Adapter]) -> dict[str, Any]:
    """A peer at the largest k that fits, or why it has none."""
    k = _largest_k(peer, budget, adapters)
    if k < 1:
        return {"refused": "one component is larger than the budget"}
    try:
        return {**_saved(build(peer, paths, k), paths), "k": k}
    except (ValueError, KeyError, RuntimeError) as error:
        return {"refused": str(error).splitlines()[0][:100]}


def _largest_k(peer: str, budget: int, adapters: Sequence[Adapter]) -> int:
    """From what its save writes: components and loadings grow with k, vlora-dev's means do not."""
    first = adapters[0]
    columns = {m: (first.shapes[m].sides, first.ranks[m]) for m in first.shapes}
    if peer == "lorashare":
        each = sum(sides + 2 * r * len(adapters) for sides, r in columns.values())
        return int(budget // (ITEM * each))
    flat = sum(sides * r for sides, r in columns.values())
    each = flat + 2 * len(columns) * (1 + len(adapters))
    return min(int((budget // ITEM - flat) // each), len(adapters))


def report(results: dict[str, Any]) -> str:
    """One table a set: mean / worst task, and bytes by budget."""
    parts = []
    for label, found in results["sets"].items():
        parts.append(
            f"**{label}**: {found['adapters']} adapters, {found['lora_bytes'] / 1e3:.0f} kB of "
            "LoRA; mean / worst task (bytes by budget)\n"
        )
        names = list(next(iter(found["budgets"].values()))["rows"])
        rows = []
        for fraction, budget in found["budgets"].items():
            cells = [_cell(budget["rows"][n], budget["budget_bytes"]) for n in names]
            gain = _gain(budget["rows"])
            rows.append([f"{float(fraction):.1%}", *cells, gain])
        parts.append(common.table(["budget", *names, "own by Share, mean"], rows) + "\n")
    return "\n".join(parts)


def _cell(row: Mapping[str, Any], budget: int) -> str:
    if "refused" in row:
        return str(row["refused"]).split(". ")[0]
    return f"{row['mean']:.3f} / {row['worst']:.3f} ({row['bytes'] / budget:.0%})"


def _gain(rows: Mapping[str, Mapping[str, Any]]) -> str:
    ours, own = rows["sharespace"]["mean"], rows["own SVD"]["mean"]
    return f"{own / ours:.2f}x" if ours else "exact"


if __name__ == "__main__":
    main()
