"""Write recipe.md from the dataclasses: ``python docs/reference/generate_recipe.py``. A test keeps
it in sync."""

from __future__ import annotations

from pathlib import Path

from sharespace.learn import TrainingSettings
from sharespace.stream.recipe import DataSettings, Recipe, SubspaceSettings, TaskSpec
from sharespace.stream.recipe.values import Key, RecipeSource, keys_of, texts_of

HEAD = """# Recipe

<!-- Written by docs/reference/generate_recipe.py; change the docstrings in the code instead. -->

A recipe is a YAML file that says what a stream is: a base model, and tasks that come one after the
other, each as data, as an adapter, or as both. `sharespace run recipe.yaml` runs it.

```yaml
base: roberta-base          # a path or a Hub id
share: glue.share           # the Share model that is written
k: 32
learning_rate: 4e-3         # for all tasks ...
num_train_epochs: 25
initial: 2                  # the first subspace is made of the first two tasks

tasks:
  - name: sst2              # learned from data: first as a LoRA, since it is one of the first two
    data: nyu-mll/glue
    data_config: sst2
    text: sentence
  - name: legal             # merged as it is
    adapter: adapters/legal
  - name: rte               # learned in the subspace
    data: data/rte          # train.jsonl.gz, validation.jsonl.gz
    num_train_epochs: 60    # ... and otherwise for this one
    metric: accuracy
  - name: stsb
    task_type: regression
    data: nyu-mll/glue
    data_config: stsb
    text: sentence1
    text2: sentence2
```

The whole file is validated before any work. An unknown key, a key that is written twice and a value
of the wrong type are errors; all of them are reported at once, with their lines and the nearest
known name. Then the base model's config, the adapters' headers and the rows of all data are read,
and only then is anything trained.

- Relative paths count from the recipe's folder. What is no path that exists is looked for on the
  Hub.
- Texts need no quotes: labels `yes` and `no` stay texts, and `1e-3` is a number.
- A key that is left out has its default. `null` is a value only where the type has "or null".
- A stream goes on under the same recipe only. Tasks may be appended at the end; keys with a † in
  the tables change no result and may change at any time.
"""
GROUPS: tuple[tuple[str, str, type], ...] = (
    ("The recipe", "These keys stand at the top only.", Recipe),
    ("A task", "These keys stand in an entry of `tasks` only.", TaskSpec),
    ("Data", "At the top for all tasks, or in a task for that one.", DataSettings),
    ("Subspace", "At the top for all tasks, or in a task for that one.", SubspaceSettings),
    (
        "Training",
        "At the top for all tasks, or in a task for that one. Keys of transformers'\n"
        "`TrainingArguments` have its own names; `early_stopping_patience` and\n"
        "`early_stopping_threshold` are those of its `EarlyStoppingCallback`.",
        TrainingSettings,
    ),
)
TYPES = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    tuple: "texts",
    Path: "path",
    RecipeSource: "path or Hub id",
}


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_group(*group) for group in GROUPS)])


def _group(title: str, about: str, group: type) -> str:
    texts = texts_of(group)
    rows = [_row(key, texts[name]) for name, key in keys_of(group).items()]
    if group is Recipe:
        rows.append("| `tasks` | list of tasks | needed | The stream, in order. |")
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {title}", "", about, "", *head, *rows, ""])


def _row(key: Key, text: str) -> str:
    mark = " †" if key.neutral else ""
    return f"| `{key.name}`{mark} | {_type(key)} | {_default(key)} | {text} |"


def _type(key: Key) -> str:
    named = ", ".join(f"`{c}`" for c in key.choices) or TYPES[key.type]
    limits = f" {key.limits}" if str(key.limits) else ""
    words = "".join(f" or `{word}`" for word in key.words)
    return named + limits + words + (" or null" if key.optional else "")


def _default(key: Key) -> str:
    if key.needed:
        return "needed"
    if key.default is None:
        return "null"
    if key.default == ():
        return "none"
    if isinstance(key.default, bool):
        return f"`{str(key.default).lower()}`"
    return f"`{key.default}`"


if __name__ == "__main__":
    Path(__file__).with_name("recipe.md").write_text(reference(), encoding="utf-8")
