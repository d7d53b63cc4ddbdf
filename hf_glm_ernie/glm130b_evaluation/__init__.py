"""GLM-130B's own evaluation, and its model for lm-eval."""
