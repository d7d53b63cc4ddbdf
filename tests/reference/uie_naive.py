"""Information extraction the slow way: one question, one window, one forward at a time, spans by two pointers.

Written from what PaddleNLP's `Taskflow("information_extraction")` does, with the differences that
`hf_glm_ernie/ernie_tasks/uie.py` names. Independent of the package.
"""

from typing import Any

import torch


def pairs(starts: list[int], ends: list[int]) -> list[tuple[int, int]]:
    """Two sorted lists of positions, walked with a pointer each; a start that comes later takes the end over."""
    taken: dict[int, int] = {}
    i = j = 0
    while i < len(starts) and j < len(ends):
        if starts[i] <= ends[j]:
            taken[ends[j]] = starts[i]
            j += starts[i] == ends[j]
            i += 1
        else:
            j += 1
    return sorted((start, end) for end, start in taken.items())


def ask(model: Any, tokenizer: Any, prompt: str, text: str, max_length: int, threshold: float) -> list[dict[str, Any]]:
    """The answers to one prompt: spans of the text, or the elected option where the prompt ends in brackets."""
    width = max_length - len(prompt) - 3
    found: list[dict[str, Any]] = []
    votes: list[tuple[str, float]] = []
    for offset in range(0, len(text), width) if text else [0]:
        encoding = tokenizer(
            [prompt], [text[offset : offset + width]], return_tensors="pt", return_token_type_ids=True
        )
        row = encoding.encodings[0]
        with torch.no_grad():
            output = model(input_ids=encoding["input_ids"], token_type_ids=encoding["token_type_ids"])
        start, end = output.start_prob[0].tolist(), output.end_prob[0].tolist()
        in_prompt = []
        for i, j in pairs(
            [t for t, p in enumerate(start) if p > threshold], [t for t, p in enumerate(end) if p > threshold]
        ):
            segments = (row.sequence_ids[i], row.sequence_ids[j])
            first, last, probability = row.offsets[i][0], row.offsets[j][1], start[i] * end[j]
            if segments == (0, 0):
                in_prompt.append((probability, prompt[first:last]))
            elif segments == (1, 1):
                first, last = first + offset, last + offset
                found.append({"text": text[first:last], "start": first, "end": last, "probability": probability})
        if in_prompt:
            probability, option = max(in_prompt)
            votes.append((option, probability))
    if votes and prompt.endswith("]"):
        scores = {option: [p for o, p in votes if o == option] for option, _ in votes}
        winner = max(scores, key=lambda option: (len(scores[option]), sum(scores[option])))
        return [{"text": winner, "probability": sum(scores[winner]) / len(scores[winner])}]
    return found


def extract(
    model: Any, tokenizer: Any, tree: dict[str, Any], text: str, max_length: int, threshold: float, subject: str = ""
) -> dict[str, list[dict[str, Any]]]:
    """Asks a schema, given as nested dicts, of one text; depth first, in Chinese."""
    results: dict[str, list[dict[str, Any]]] = {}
    for name, below in tree.items():
        answers = ask(model, tokenizer, f"{subject}的{name}" if subject else name, text, max_length, threshold)
        for answer in answers:
            relations = extract(model, tokenizer, below, text, max_length, threshold, answer["text"])
            if relations:
                answer["relations"] = relations
        if answers:
            results[name] = answers
    return results
