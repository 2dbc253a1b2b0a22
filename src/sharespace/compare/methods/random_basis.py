"""The control of Share's subspace: a random one of the same dimensions."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from sharespace.compare.bench import Workbench
from sharespace.compare.job import Outcome, StoredBytes
from sharespace.compare.methods.own import one_step
from sharespace.compare.methods.shared import learn
from sharespace.compare.trainers import target_shapes
from sharespace.extras import require
from sharespace.learn import Adapted
from sharespace.share import Share
from sharespace.subspace.adapter import BaseModel
from sharespace.subspace.fidelity import sizes
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import BuildSettings, ShareModel


def random_basis(bench: Workbench) -> Outcome:
    """Coefficients trained in random orthonormal bases of the same k and p; no stream, no merge.

    Temporary directions that are trained are left out: they would put what the tasks learn into the
    basis. Those of the form "core" are chosen and frozen, as for Share; they are never merged, so
    each task stores its own. The basis is counted as stored, though its seed would do.
    """
    share = Share(random_model(bench))
    scores, learned, coefficients, temporary = {}, {}, 0, 0
    for name in bench.tasks:
        phi = bench.settings.phi if bench.settings.form == "core" else 0
        learned[name] = learn(bench, share, name, phi=phi, start="zero")
        coefficients += _held(learned[name].model, "_coefficients.")
        temporary += _held(learned[name].model, "_temporary.")
        scores[name] = _score_learned(bench, name, learned[name])
    stored = StoredBytes(
        adapters=temporary,
        basis=sizes(share.model).basis,
        coefficients=coefficients,
        heads=bench.head_bytes,
    )
    return Outcome(
        method="random_basis",
        matrix=one_step(scores),
        trainable={name: a.trainable.coefficients for name, a in learned.items()},
        heads=bench.head_numbers,
        stored=stored,
        seconds=sum(a.fit.seconds for a in learned.values()),
        steps=sum(a.fit.steps for a in learned.values()),
        paper_count=fmean(a.trainable.coefficients for a in learned.values()),
    )


def random_model(bench: Workbench) -> ShareModel:
    """A Share model without tasks: random orthonormal bases (Haar) of dimension min(k, side)."""
    shapes = target_shapes(bench)
    generator = torch.Generator().manual_seed(bench.settings.seed)
    k = bench.settings.k
    layers = {
        module: LayerSubspace(
            shape,
            _orthonormal(shape.out_features, k, generator),
            _orthonormal(shape.in_features, k, generator),
            cap=(min(k, shape.out_features), min(k, shape.in_features)),
        )
        for module, shape in shapes.items()
    }
    return ShareModel(BaseModel(), BuildSettings(cap=k), torch.float32, layers, {})


def _orthonormal(side: int, k: int, generator: torch.Generator) -> Tensor:
    draw = torch.randn(side, min(k, side), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(draw)
    # QR alone is not uniform: R's signs decide.
    return torch.mul(q, torch.diagonal(r).sign()).float()


def _held(model: Any, kind: str) -> int:
    """Bytes of a task's coefficients or temporary directions, trained or not (the p x p core of the
    form "core" is multiplied into the coefficients)."""
    return sum(p.numel() * p.element_size() for n, p in model.named_parameters() if kind in n)


def _score_learned(bench: Workbench, name: str, found: Adapted) -> float:
    score = bench.score(name, found.model)
    require("sharespace.tuner", "train").release(found.model)
    return score
