"""Adapters for every model here, and what GLM-130B learns from."""
