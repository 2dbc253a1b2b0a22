"""One LoRA for all tasks, trained on all their data at once: the upper bound of one adapter."""

from __future__ import annotations

from sharespace.compare.bench import Workbench
from sharespace.compare.job import Outcome, StoredBytes
from sharespace.compare.methods.own import one_step
from sharespace.compare.methods.sequential import lora_bytes, release_all, tied_models
from sharespace.compare.trainers import MixedPart, count, fit_together


def joint_lora(bench: Workbench) -> Outcome:
    """One LoRA and all heads, on batches of one task each in random order.

    Every task has as many batches as its own LoRA has steps, so the steps are those of all own
    LoRAs together. It needs all data at once: no continual learning.
    """
    models, training = tied_models(bench), bench.settings.lora
    parts = [
        MixedPart(job, bench.settings.training(training, job).max_steps)
        for job in bench.jobs.values()
    ]
    numbers = {n: count(m, bench.job(n).heads) for n, m in models.items()}
    try:
        seeded = bench.settings.training(training, parts[0].job)
        result = fit_together(models, parts, seeded)
        for name, model in models.items():
            bench.restore_buffers(name, model)
        scores = {name: bench.score(name, model) for name, model in models.items()}
        stored = lora_bytes(models[bench.tasks[0]])
    finally:
        release_all(models)
    return Outcome(
        method="joint_lora",
        matrix=one_step(scores),
        trainable=numbers,
        heads=bench.head_numbers,
        stored=StoredBytes(adapters=stored, heads=bench.head_bytes),
        seconds=result.seconds,
        steps=result.steps,
        uses_old_data=True,
    )
