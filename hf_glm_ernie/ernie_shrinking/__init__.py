"""ERNIE encoders made smaller for one task, as PaddleNLP's `compress` does it and further.

`importance.py` says which heads and neurons the task needs, `pruning.py` takes the others out, `distillation.py`
trains what is left on the teacher's answers. `vocabulary.py` leaves the tokens of a corpus and the positions of a
length. `static_int8.py` quantizes the exported graph with ranges measured on the task's rows. `shrink.py` does all of
it in order and measures each stage (`measuring.py`), `command.py` is `python -m hf_glm_ernie shrink`.
"""
