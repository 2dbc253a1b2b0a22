"""Relative errors of dW at equal k: ``joint`` beside ``share`` and HOSVD, and own SVDs.

On adapters whose norms differ (trained here with learning rates from 1e-4 to 1e-1), and on sets of
real adapters (--adapters FOLDER, one folder a set). No pseudo-rank limit: p = min(k, r).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common, training
from sharespace.formats import read_adapter
from sharespace.linalg.frames import errors
from sharespace.linalg.joint import hosvd, joint
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.updates import canonicalise, cores, seen_by, weights
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.basis_methods.share_method import factor_bases
from sharespace.subspace.build_layer import read_pairs
from sharespace.subspace.plan import own_errors

Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Module:
    """One module of a set: its tasks, their factors, and the weighed problem."""

    names: list[str]
    pairs: Pairs
    problem: UpdateProblem

    @classmethod
    def read(cls, name: str, adapters: Sequence[Adapter]) -> Module:
        members = [a for a in adapters if name in a.shapes]
        pairs = list(read_pairs(members, name, torch.device("cpu")))
        updates = canonicalise(pairs)
        return cls([a.name for a in members], pairs, UpdateProblem(updates, weights(updates.norms)))

    @property
    def unweighed(self) -> UpdateProblem:
        return replace(self.problem, weights=torch.ones_like(self.problem.weights))

    def lost(self, bases: BasisPair) -> Tensor:
        """|dW - projection| of every task."""
        updates = self.problem.updates
        left, right = seen_by(updates, bases.left), seen_by(updates.flipped, bases.right)
        inner = cores(left, self.problem.sigma, right)
        return errors(updates, bases.left, bases.right, inner)

    def own_lost(self, columns: int) -> Tensor:
        """The same by own SVDs with so many columns in all, each task as many (+- 1)."""
        energies = self.problem.sigma.double().square()
        each, rest = divmod(columns, len(self.names))
        return own_errors(energies, [each + (i < rest) for i in range(len(self.names))])


Method = Callable[[Module, int], Tensor]
METHODS: Mapping[str, Method] = {
    "share, centred": lambda m, k: m.lost(factor_bases(m.pairs, (k, k), centred=True)),
    "share, uncentred": lambda m, k: m.lost(factor_bases(m.pairs, (k, k))),
    "HOSVD": lambda m, k: m.lost(hosvd(m.unweighed, (k, k))),
    "HOSVD, weighed": lambda m, k: m.lost(hosvd(m.problem, (k, k))),
    "joint": lambda m, k: m.lost(joint(m.problem, (k, k))),
    "own SVD, equal columns": lambda m, k: m.own_lost(k),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    sets = {
        "digits, learning rates 1e-4 to 1e-1": training.train(
            "norms", training.norm_spread(options.count, options.steps), options.seed, options.cache
        )
    }
    sets.update(real_sets(options.adapters))
    results = {
        "environment": common.environment(options.seed),
        "sets": {label: compare(list(open_all(paths)), options.k) for label, paths in sets.items()},
    }
    common.write_results(options.out, results)
    print(report(results))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "errors")
    add_set_options(parser)
    parser.add_argument("--k", type=int, nargs="+", default=[4, 8, 16, 32])
    return parser.parse_args(arguments)


def add_set_options(parser: argparse.ArgumentParser) -> None:
    """Options of the adapters that are trained here, and of real ones."""
    parser.add_argument("--count", type=int, default=8, help="adapters to train")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--cache", type=Path, default=training.CACHE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--adapters",
        nargs="*",
        default=[],
        metavar="FOLDER",
        help="folders of PEFT directories, or patterns such as 'FOLDER/run-*'; each is one set",
    )


def real_sets(patterns: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Sets of real adapters; says so where there are none."""
    if not patterns:
        print("no --adapters: the real sets are left out")
    return {_label(pattern): _members(pattern) for pattern in patterns}


def _label(pattern: str) -> str:
    path = Path(pattern)
    return path.name if path.is_dir() else f"{path.parent.name}/{path.name}"


def _members(pattern: str) -> dict[str, Path]:
    path = Path(pattern)
    found = path.iterdir() if path.is_dir() else path.parent.glob(path.name)
    members = {p.name: p for p in sorted(found) if p.is_dir()}
    if not members:
        raise SystemExit(f"no adapter directories at {pattern}")
    return members


def open_all(paths: Mapping[str, Path]) -> list[Adapter]:
    return [read_adapter(path, name) for name, path in paths.items()]


def compare(adapters: Sequence[Adapter], ks: Sequence[int]) -> dict[str, Any]:
    """All methods at each k."""
    names = dict.fromkeys(m for a in adapters for m in a.shapes)
    modules = [Module.read(name, adapters) for name in names]
    norms = _by_task(modules, [m.problem.updates.norms for m in modules])
    total = {name: math.sqrt(sum(x * x for x in values)) for name, values in norms.items()}
    largest = max(sum(m.problem.updates.ranks) for m in modules)
    return {
        "adapters": len(adapters),
        "modules": len(modules),
        "norms": {"smallest": min(total.values()), "largest": max(total.values())},
        "errors": {
            str(k): {label: _summary(modules, method, k) for label, method in METHODS.items()}
            for k in ks
            if k < largest
        },
    }


def _summary(modules: Sequence[Module], method: Method, k: int) -> dict[str, float]:
    """Mean over tasks and modules (as docs/method.md counts), and by task over all its modules."""
    lost = _by_task(modules, [method(m, k) for m in modules])
    norms = _by_task(modules, [m.problem.updates.norms for m in modules])
    single = [x / y for n in lost for x, y in zip(lost[n], norms[n], strict=True) if y]
    tasks = [math.hypot(*lost[n]) / math.hypot(*norms[n]) for n in lost]
    return {
        "mean_over_modules": sum(single) / len(single),
        "mean_task": sum(tasks) / len(tasks),
        "worst_task": max(tasks),
    }


def _by_task(modules: Sequence[Module], values: Sequence[Tensor]) -> dict[str, list[float]]:
    result: dict[str, list[float]] = {}
    for module, found in zip(modules, values, strict=True):
        for name, value in zip(module.names, found.tolist(), strict=True):
            result.setdefault(name, []).append(value)
    return result


def report(results: dict[str, Any]) -> str:
    """One table a set: mean over tasks and modules / worst task."""
    parts = []
    for label, found in results["sets"].items():
        norms = found["norms"]
        spread = norms["largest"] / norms["smallest"]
        parts.append(
            f"**{label}**: {found['adapters']} adapters, {found['modules']} modules, "
            f"norms differ by a factor of {spread:.3g}; mean over tasks and modules / worst task\n"
        )
        rows = [
            [k, *[f"{e['mean_over_modules']:.3f} / {e['worst_task']:.3f}" for e in by.values()]]
            for k, by in found["errors"].items()
        ]
        parts.append(common.table(["k", *METHODS], rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
