"""Serve every task of a Share model from one base model: ``mixed``, an HTTP server, and vLLM.

This package imports nothing by itself: ``mixed`` needs the extra ``train``, ``process`` the extra
``serve``, and ``vllm`` neither.
"""
