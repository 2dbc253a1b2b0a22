"""A new text task with few examples, beside known tasks that are related to it or not."""

STAGES = ("few", "steps", "summarise")
