"""Texts that a language model wrote, against which the credible head of `pretrain_ernie3.py` learns.

In the papers the 10B model writes them for Titan: it continues the first one to three sentences of natural paragraphs.
Here a smaller model of the same kind does, after a short training of its own on the same stories. Any causal language
model that transformers can open takes its place: `open_generator`.

    texts = AdversarialTexts(open_generator("Qwen/Qwen3-0.6B-Base", 128), tokenizer, max_length=128)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ernie3_texts import Story
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)

from hf_glm_ernie import AdversarialTexts, Ernie3Config, Ernie3ForCausalLM, ModelContinuations, rerank

Generator = Callable[[list[str]], list[str]]
ROWS = 32  # per step
# Published are top 4, temperature 0.9, repetition penalty 1.1; stories repeat their names, so nothing is penalized.
SAMPLING = {"top_k": 0, "top_p": 0.95, "temperature": 0.9, "repetition_penalty": 1.0}
WRITTEN_AT_ONCE = 256


def train_generator(
    stories: Sequence[Story], tokenizer: Any, config: Ernie3Config, max_length: int, steps: int, output: Path
) -> Generator:
    """Trains a small language model on stories.

    Args:
        stories: What it reads, in a random order.
        tokenizer: That of the model to be pre-trained.
        config: Settings of the model to be pre-trained; the generator is smaller.
        max_length: Tokens of the texts it writes at most.
        steps: Steps of training.
        output: Folder that the Trainer wants; nothing is saved.
    """
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 128, "branch_num_hidden_layers": 1}
    model = Ernie3ForCausalLM(Ernie3Config(**config.to_dict() | sizes | {"branches": ["nlg"]}))
    ids = tokenizer([story.text for story in stories])["input_ids"]
    rows = [{"input_ids": [*one, tokenizer.eos_token_id], "labels": [*one, tokenizer.eos_token_id]} for one in ids]
    settings = TrainingArguments(
        str(output),
        max_steps=steps,
        per_device_train_batch_size=ROWS,
        learning_rate=1e-2,
        warmup_steps=steps // 10,
        logging_steps=max(steps // 3, 1),
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    collate = DataCollatorForTokenClassification(tokenizer)
    Trainer(model, settings, train_dataset=rows, data_collator=collate).train()
    return ModelContinuations(model, tokenizer, max_length=max_length, batch_size=WRITTEN_AT_ONCE, **SAMPLING)


def open_generator(name: str, max_length: int) -> Generator:
    """Any causal language model, by its folder or its name on the Hub."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    return ModelContinuations(model, tokenizer, max_length=max_length, batch_size=WRITTEN_AT_ONCE, **SAMPLING)


def show_credible(model: Any, tokenizer: Any, stories: Sequence[Story], generate: Generator, length: int) -> float:
    """Prints how well the credible head tells unseen stories from continuations of their beginnings.

    Returns:
        The share of texts that are told right, half of which are originals.
    """
    pairs = AdversarialTexts(generate, tokenizer, max_length=length)(
        {"text": [story.text for story in stories]}, range(len(stories))
    )
    credible = torch.zeros(len(pairs["text"]))
    for ranked in rerank(model, tokenizer, pairs["text"], batch_size=64):
        credible[ranked.index] = ranked.probability
    labels = torch.tensor(pairs["credible_labels"]).bool()
    originals, generated = credible[labels], credible[~labels]
    right = ((credible > 0.5) == labels).float().mean().item()
    preferred = (originals > generated).float().mean().item()
    print(
        f"\nUnseen stories told from what the generator made of their beginnings: {right:.1%} of {len(labels)} texts; "
        f"of a story and its imitation `rerank` puts the story first in {preferred:.1%} of {len(originals)} pairs"
    )
    for place in (int(generated.argmin()), int(generated.argmax())):
        print(f"  credible {generated[place]:.3f}: {pairs['text'][2 * place + 1]}")
    return right


__all__ = ["Generator", "open_generator", "show_credible", "train_generator"]
