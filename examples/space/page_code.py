"""The call behind an answer, as a person would write it: shown below the answer, and run by the tests."""

from typing import Any

_OPEN = """\
tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = {auto}.from_pretrained({folder!r}, device_map="auto")
"""


def fill_code(folder: str, text: str, arguments: dict[str, Any], seed: int) -> str:
    """How a text is filled.

    Args:
        folder: Folder or repository of the model.
        text: With its masks.
        arguments: For `fill_blanks`.
        seed: Of sampling.
    """
    samples = arguments.get("do_sample")
    names = "AutoModelForCausalLM, AutoTokenizer" + (", set_seed" if samples else "")
    settings = "".join(f", {name}={value!r}" for name, value in arguments.items() if name != "do_sample" or value)
    return (
        f"from transformers import {names}\n\nfrom hf_glm_ernie import fill_blanks\n\n"
        + _OPEN.format(folder=folder, auto="AutoModelForCausalLM")
        + (f"set_seed({seed})\n" if samples else "")
        + f"filled = fill_blanks(model, tokenizer, {text!r}{settings})\nprint(filled.text, filled.blanks)\n"
    )


def extract_code(folder: str, text: str, schema: Any, language: str, threshold: float) -> str:
    """How a text is extracted from."""
    return (
        "from transformers import AutoModel, AutoTokenizer\n\nfrom hf_glm_ernie import uie\n\n"
        + _OPEN.format(folder=folder, auto="AutoModel")
        + f"schema = {schema!r}\n"
        + f"print(uie(model, tokenizer, schema, {text!r}, language={language!r}, threshold={threshold!r}))\n"
    )


def classify_code(
    folder: str, model_type: str, text: str, choices: list[str], threshold: float, single_label: bool
) -> str:
    """How a text is classified, by UTC or by GLM-130B."""
    if model_type == "ernie_utc":
        settings = "single_label=True" if single_label else f"threshold={threshold!r}"
        return (
            "from transformers import AutoModel, AutoTokenizer\n\nfrom hf_glm_ernie import utc\n\n"
            + _OPEN.format(folder=folder, auto="AutoModel")
            + f"print(utc(model, tokenizer, {choices!r}, {text!r}, {settings}))\n"
        )
    return (
        "import torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "from hf_glm_ernie import cond_log_probs\n\n"
        + _OPEN.format(folder=folder, auto="AutoModelForCausalLM")
        + f"ids = tokenizer({text!r})['input_ids'][:-1]  # without <sop>\n"
        + "counts_on = tokenizer.gmask_token_id in ids\n"
        + f"choices = tokenizer({choices!r}, add_special_tokens=False)['input_ids']\n"
        + "ended = [[*choice, tokenizer.eop_token_id] for choice in choices]\n"
        + "scores = cond_log_probs(model, tokenizer, [ids], [ended], use_task_mask=counts_on)[0]\n"
        + "print(torch.tensor(scores).softmax(-1).tolist())\n"
    )


__all__ = ["classify_code", "extract_code", "fill_code"]
