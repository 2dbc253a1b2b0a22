"""The tables and claims of a real language model."""

from __future__ import annotations

from experiments.harness.claims import Claim, Said, as_joint, near_lora, no_forgetting
from experiments.harness.summarise import Report
from experiments.harness.tables import Goals

NEAR = Said(
    "New tasks of a language model are learned in the subspace alone, near own LoRA",
    "SmolLM2-135M-Instruct, all linear maps of the upper ten layers, LoRA of rank 8",
    paper="up to 100x fewer numbers",
)
NO_FORGETTING = Said("Hardly any forgetting", "SmolLM2-135M-Instruct", paper="minimal")
AS_JOINT = Said("As good as joint training", "SmolLM2-135M-Instruct, one LoRA of rank 8 for all")


class LanguageModel(Report):
    """See the package."""

    name = "language_model"
    initial = 4
    goals = Goals(score=0.98, gain=0.95, forgetting=0.3)

    def claims(self) -> list[Claim | None]:
        runs = self.all_runs
        return [
            near_lora(runs, NEAR),
            no_forgetting(runs, NO_FORGETTING, self.goals.forgetting),
            as_joint(runs, AS_JOINT),
        ]
