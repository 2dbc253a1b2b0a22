"""One LoRA for all tasks, trained on all their data at once: the upper bound of one adapter."""

from __future__ import annotations

from sharespace.compare.bench import Workbench
from sharespace.compare.compared import compared_method
from sharespace.compare.job import Outcome, StoredBytes
from sharespace.compare.lora import count_trained, lora_bytes
from sharespace.compare.methods.sequential import release_all, tied_models
from sharespace.compare.trainers import MixedPart, fit_together
from sharespace.stream.measures import ScoreMatrix


@compared_method("joint_lora", uses_old_data=True, short="joint", trains="lora")
def joint_lora(bench: Workbench) -> Outcome:
    """One LoRA and all heads, on batches of one task each in random order.

    Every task has as many batches as its own LoRA has steps, so the steps are those of all own
    LoRAs together. It needs all data at once: no continual learning.
    """
    settings, jobs = bench.settings, list(bench.jobs.values())
    models = tied_models(bench)
    parts = [MixedPart(job, settings.training(settings.lora, job).max_steps) for job in jobs]
    trainable = {name: count_trained(m, bench.job(name).heads) for name, m in models.items()}
    try:
        fitted = fit_together(models, parts, settings.training(settings.lora, jobs[0]))
        for name, model in models.items():
            bench.restore_buffers(name, model)
        scores = {name: bench.score(name, model) for name, model in models.items()}
        stored = StoredBytes(adapters=lora_bytes(models[bench.tasks[0]]))
    finally:
        release_all(models)
    return bench.outcome(ScoreMatrix.of_one_step(scores), trainable, [fitted], stored)
