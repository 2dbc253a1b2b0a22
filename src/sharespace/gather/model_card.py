"""The model card of a Share model on the Hub: metadata for its search, and a page for people."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from sharespace.store import checkout
from sharespace.subspace.fidelity import TaskFidelity, fidelity
from sharespace.subspace.plan import judge_stored
from sharespace.words import count, human, percent, visible

CARD = "README.md"

MARK = "<!-- This card is written by `sharespace push`; take this line out to keep your own. -->"
"""A card with it is renewed by each push, and no other card ever is."""

_MOST_TASKS = 200
"""Tasks in the table, those that lost most."""


def model_card(store: Path, repository: str, license_id: str | None = None) -> str:
    """The card of a store's current version.

    Args:
        store: folder of the Share model.
        repository: ``user/repo``, for the lines that load it.
        license_id: identifier of the licence, as the Hub has it; None: none is stated.

    Returns:
        Markdown under YAML metadata: library, base model and relation, tags, licence; then tasks,
        sizes, errors and how to load it.
    """
    opened = checkout(store)
    content = opened.manifest.content
    measured = fidelity(opened.model)
    base = content.base.id
    data = ModelCardData(
        library_name="sharespace",
        base_model=base if base and _is_hub_id(base) else None,
        license=license_id,
        tags=["sharespace", "share", "lora", "peft", "continual-learning"],
    )
    if data.get("base_model") is not None:
        data["base_model_relation"] = "adapter"
    sizes = measured.bytes
    judged = judge_stored(sizes.total, sizes.adapters, measured.tasks)
    worst = sorted(measured.tasks, key=lambda name: -measured.tasks[name].bound)
    rows = [_row(name, measured.tasks[name]) for name in worst[:_MOST_TASKS]]
    left_out = len(worst) - len(rows)
    first = worst[-1] if worst else "TASK"
    parts = [
        f"# {repository.rpartition('/')[2]}",
        MARK,
        f"{count(len(worst), 'task')} of {_code(base) if base else 'one base model'} in one "
        "low-rank subspace a layer ([Share, arXiv 2602.06043](https://arxiv.org/abs/2602.06043)). "
        f"{judged}",
        "## Load it",
        "```python\nfrom sharespace import Share\n\n"
        f'share = Share.from_pretrained("{repository}")\n'
        f'share.export({first!r}, "adapter")  # a plain LoRA adapter for PEFT\n```',
        "## Tasks",
        "Relative errors of the weights, the largest first. The bound is certain; ~ marks an "
        "estimate. What an error means for a score depends on the task.",
        "| task | error | bound |\n|---|---:|---:|\n" + "\n".join(rows),
        *([f"{count(left_out, 'further task')} lost less."] if left_out > 0 else []),
        "## Sizes",
        f"The Share model takes {human(sizes.total)} (bases {human(sizes.basis)}, coefficients "
        f"{human(sizes.coefficients)}, heads and ledgers {human(sizes.other)}); the adapters took "
        f"{human(sizes.adapters)}. Version {opened.version.number}, method "
        f"{content.settings.method}, stored as {str(content.dtype).removeprefix('torch.')}.",
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    # The Hub's own reader: what it does not take is an error here and not there.
    return str(ModelCard(text))


def _row(name: str, task: TaskFidelity) -> str:
    error = percent(task.relative_error)
    return f"| {_code(name)} | {'' if task.measured else '~'}{error} | {percent(task.bound)} |"


def _code(name: str) -> str:
    """A name as Markdown that shows it and does nothing, in a cell of a table too."""
    safe = (c if c.isalnum() or c in " -./:" else f"&#{ord(c)};" for c in visible(name))
    return f"<code>{''.join(safe)}</code>"


def _is_hub_id(base: str) -> bool:
    """A folder on a machine is no model of the Hub, which would refuse the card."""
    try:
        validate_repo_id(base)
    except HFValidationError:
        return False
    return not base.startswith(".")
