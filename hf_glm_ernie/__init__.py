"""GLM-130B and ERNIE 3.0 for Hugging Face transformers."""

__version__ = "0.1.0"
