"""ERNIE 3.0's pre-training and distillation: rows, tasks, schedules, trainers."""
