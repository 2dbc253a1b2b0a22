"""A real language model, SmolLM2-135M-Instruct: text tasks as instructions, in a strict stream."""

STAGES = ()
