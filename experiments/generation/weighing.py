"""Why the paper's method may keep more of the scores than `joint`, which explains more variance.

    python -m experiments weighing generation --data DATA/text

After ``merge``, whose adapters it takes; nothing is trained. What is changed, one thing at a time:

- how much a task counts (1 / |dW|, as in the library, or 1), and whether the adapters come in
  ten batches or all at once. No option of the library changes the weights, so this script alone
  replaces one of its functions;
- how much a weak direction counts. The paper's method looks at factors, whose singular values are
  about the roots of those of dW, so that a task's weaker directions count for more than in
  ``joint``. Here ``joint`` chooses its bases for updates with the roots of their singular values,
  and the updates themselves are projected onto them. At each batch this starts anew from what is
  left of the known tasks, so that they count as much as the newcomers again; the same without
  roots is the control.

One file, ``weighing.json``; what is in it already is not run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import fmean
from typing import Any
from unittest.mock import patch

from benchmarks.common import environment
from torch import Tensor

from experiments.generation.experiment import Generation
from experiments.generation.many import Updates
from experiments.generation.merge import opened_stream
from experiments.generation.merging import (
    Method,
    Stream,
    in_order,
    kept,
    originals,
    projected,
    split,
    updates_of,
)
from experiments.harness.experiment import opened, parser
from experiments.harness.results import read_if_there, write
from sharespace import Share
from sharespace.linalg.updates import weights
from sharespace.subspace.adapter import Adapter, LayerUpdate

_USED_IN = ("sharespace.subspace.build_layer.weights", "sharespace.subspace.merge_layer.weights")


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(Generation, __doc__)
    choices.add_argument("--k", type=int, nargs="+", dest="caps", help="default: the experiment's")
    choices.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = choices.parse_args(arguments)
    experiment: Generation = opened(Generation, options)
    stream = opened_stream(experiment, "own", 0)
    file = experiment.results("weighing.json")
    results = read_if_there(file) or begin(stream, experiment.tasks)
    for k in options.caps or experiment.size.dimensions:
        scores = results["scores"].setdefault(str(k), {})
        for way in (way for way in options.ways if way not in scores):
            scores[way] = WAYS[way](stream, k)
            write(file, results)
            mean = fmean(s["percent"] for s in scores[way]["final"].values())
            print(f"k = {k}, {way}: {mean:.1f}", flush=True)


def begin(stream: Stream, tasks: Any) -> dict[str, Any]:
    """The adapters' own scores and norms."""
    return {
        "environment": environment(0),
        "kinds": {name: tasks[name].kind for name in stream.adapters},
        "norms": {name: norm(adapter) for name, adapter in stream.adapters.items()},
        "original": originals(stream),
        "scores": {},
    }


def norm(adapter: Adapter) -> float:
    """|dW| over all modules."""
    squares = [whole(update).square().sum() for update in updates_of(adapter).values()]
    return math.sqrt(float(sum(squares)))


def whole(update: LayerUpdate) -> Tensor:
    """dW, float64."""
    return (update.scaling * update.up.double()) @ update.down.double()


def weighed(method: Method, power: float, batches: bool, stream: Stream, k: int) -> dict[str, Any]:
    """Scores and errors at the end of a Share model in which tasks count |dW|^-power."""
    first, *later = in_order(stream, batches)
    with counted(power):
        share = Share.from_adapters([stream.adapters[n] for n in first], k=k, method=method)
        for names in later:
            share = share.merge([stream.adapters[name] for name in names])
    fidelity = share.fidelity([stream.adapters[name] for name in share.tasks])
    return {
        "final": stream.score({name: share.updates(name) for name in share.tasks}),
        "relative_error": {name: t.relative_error for name, t in fidelity.tasks.items()},
        "explained_variance": kept(stream, share)["explained_variance"],
    }


@contextmanager
def counted(power: float) -> Iterator[None]:
    """Tasks count |dW|^-power for the time of the block."""

    def changed(norms: Tensor) -> Tensor:
        return weights(norms).pow(power)

    with ExitStack() as stack:
        for place in _USED_IN:
            stack.enter_context(patch(place, changed))
        yield


def chosen_anew(roots: bool, batches: bool, stream: Stream, k: int) -> dict[str, Any]:
    """Scores and errors at the end where each batch's bases are chosen for what is left so far."""
    left: dict[str, Updates] = {}
    for names in in_order(stream, batches):
        left |= {name: updates_of(stream.adapters[name]) for name in names}
        bases = bases_for(left, roots, k)
        left = {name: projected(updates, bases) for name, updates in left.items()}
    squares = {
        name: [_error(stream.adapters[name].layer(m), update) for m, update in updates.items()]
        for name, updates in left.items()
    }
    return {
        "final": stream.score(left),
        "relative_error": {name: fmean(s) ** 0.5 for name, s in squares.items()},
        "explained_variance": 1 - fmean(fmean(s) for s in squares.values()),
    }


def bases_for(left: Mapping[str, Updates], roots: bool, k: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> left and right basis of the joint Share model of these updates, or their roots."""
    adapters = [
        Adapter.from_updates(name, {m: with_roots(u) if roots else u for m, u in updates.items()})
        for name, updates in left.items()
    ]
    layers = Share.from_adapters(adapters, k=k).model.layers
    return {m: (layer.left_basis, layer.right_basis) for m, layer in layers.items()}


def with_roots(update: LayerUpdate) -> LayerUpdate:
    """The update with the roots of its singular values."""
    u, s, v = split(update)
    return LayerUpdate((u * s.sqrt()).float(), v.mT.float())


def _error(original: LayerUpdate, approximation: LayerUpdate) -> float:
    """Squared, relative."""
    wanted = whole(original)
    return float((wanted - whole(approximation)).square().sum() / wanted.square().sum())


WAYS: Mapping[str, Callable[[Stream, int], dict[str, Any]]] = {
    "joint, weight 1/|dW|, batches": partial(weighed, "joint", 1.0, True),
    "joint, weight 1, batches": partial(weighed, "joint", 0.0, True),
    "joint, weight 1/|dW|, at once": partial(weighed, "joint", 1.0, False),
    "joint, weight 1, at once": partial(weighed, "joint", 0.0, False),
    "share, batches": partial(weighed, "share", 1.0, True),
    "share, at once": partial(weighed, "share", 1.0, False),
    "joint of the roots, batches": partial(chosen_anew, True, True),
    "joint of the roots, at once": partial(chosen_anew, True, False),
    "joint, what is left counts anew, batches": partial(chosen_anew, False, True),
}
"""Its key in the file -> what makes it."""
