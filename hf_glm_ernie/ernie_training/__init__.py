"""Training and measuring ERNIE's tasks: rows into the model's inputs and labels, and the scores PaddleNLP counts."""
