"""One thread, here and in every process that a test starts.

Matrices this small gain nothing from a second one, and on a busy machine threads that wait for each
other lose minutes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
