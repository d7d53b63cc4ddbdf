"""What the commands of `python -m hf_glm_ernie` have in common."""
