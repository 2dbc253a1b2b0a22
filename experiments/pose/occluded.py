"""Scores of all test sets, clean and occluded, after ``run``.

    python -m experiments.pose.occluded --data DATA --seeds 0 1 2

It takes the own LoRAs and the Share model at the end of the stream that ``run`` left in the cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from experiments.pose import script
from experiments.pose.evaluation import evaluate
from experiments.pose.jobs import make_tasks
from experiments.pose.settings import ORDERS


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = script.parser(__doc__, "occluded")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    base, size = script.begin(chosen), script.size_of(chosen)
    for seed in chosen.seeds:
        for order in chosen.orders:
            evaluate(
                make_tasks(base, script.tasks_of(order, chosen), size, seed),
                script.own_folder(chosen.cache, size, seed),
                script.share_folder(chosen.cache, size, order, seed),
                chosen.out / f"{order}-{seed}.json",
            )
            print(f"{order} seed {seed}: scored", flush=True)


if __name__ == "__main__":
    main()
