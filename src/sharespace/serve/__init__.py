"""Serve every task of a Share model from one base model: engine, and OpenAI-compatible HTTP.

This package imports nothing by itself: ``mixed`` needs the extra ``train``,
``http`` the extra ``serve``, and ``vllm`` neither.
"""
