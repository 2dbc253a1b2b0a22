"""What every comparison is measured by: the head alone, and a LoRA of each task's own."""

from __future__ import annotations

from dataclasses import replace

from sharespace.compare.bench import Workbench
from sharespace.compare.compared import compared_method
from sharespace.compare.job import Outcome, StoredBytes
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.layer import tensor_bytes


@compared_method("head_only", short="head", trains="head")
def head_only(bench: Workbench) -> Outcome:
    """Every task's head on the frozen base model."""
    scores, fits = {}, []
    for name, job in bench.jobs.items():
        model = bench.fresh(name)
        for head in job.heads:
            model.get_submodule(head).requires_grad_(True)
        if job.heads:
            fits.append(bench.train(name, model, bench.settings.head))
        scores[name] = bench.score(name, model)
    trainable = dict.fromkeys(scores, 0)
    return bench.outcome(ScoreMatrix.of_one_step(scores), trainable, fits, StoredBytes())


@compared_method(
    "per_task_lora", paper="https://arxiv.org/abs/2106.09685", short="lora", trains="lora"
)
def per_task_lora(bench: Workbench) -> Outcome:
    """Every task's own LoRA and head, by PEFT. The adapters are kept for other methods."""
    own = bench.own_loras()
    adapters = {name: lora.adapter for name, lora in own.items()}
    updates = [adapter.layer(m) for adapter in adapters.values() for m in adapter.shapes]
    outcome = bench.outcome(
        ScoreMatrix.of_one_step({name: lora.score for name, lora in own.items()}),
        {name: lora.trainable for name, lora in own.items()},
        [lora.fit for lora in own.values()],
        StoredBytes(adapters=sum(tensor_bytes(u.up, u.down) for u in updates)),
    )
    return replace(outcome, adapters=adapters)
