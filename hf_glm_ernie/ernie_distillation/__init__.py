"""Closed-domain distillation: a UIE teacher labels texts, and a student for one schema learns from them."""
