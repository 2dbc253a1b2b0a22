"""Seeds, silence and one thread for a block; all as it was afterwards."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from sharespace.extras import require


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything random in the block depends on the seed alone, not on what ran before."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextmanager
def quiet() -> Iterator[None]:
    """Without log lines, warnings and bars of the libraries below."""
    bars = require("transformers.utils.logging", "train")
    disabled, shown = logging.root.manager.disable, bars.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    bars.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if shown:
            bars.enable_progress_bar()


@contextmanager
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from a second thread, and sums come in one order then: figures
    do not depend on the number of cores, and a busy machine does not slow them down tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
