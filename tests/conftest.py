"""One thread, here and in every process that a test starts, and no width of a terminal.

Matrices this small gain nothing from a second one, and on a busy machine threads that wait for each
other lose minutes.
"""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The processes of pytest-xdist have COLUMNS=80, which rich reads once, where a console is made: the
# width that a test asks for later would not count.
os.environ.pop("COLUMNS", None)
os.environ.pop("LINES", None)

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def nothing_to_collect() -> None:
    """What was imported is kept out of garbage collections.

    transformers' Trainer starts one after each training, and looking through all modules takes
    longer than a tiny model trains.
    """
    gc.collect()
    gc.freeze()
