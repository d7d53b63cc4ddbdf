"""Converters between original checkpoints and Hugging Face folders; run as `python -m conversion` or
`glm-ernie-convert`.
"""
