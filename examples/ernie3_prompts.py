"""Controllable prompts of `pretrain_ernie3.py`: the labels they are made of, and whether the model does what they ask.

The stories know their genre, topic and sentiment. Their keywords are found by jieba (package `jieba`) in the Chinese
ones; without it, and in English, they are the names in the story of the person, the place and the thing.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ernie3_texts import Story
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_glm_ernie import (
    ClassifierLabels,
    ControlLabels,
    Ernie3Tokenizer,
    JiebaKeywords,
    build_control_prompt,
    split_sentences,
)

MOST_WRITTEN = 80  # tokens; stories have up to 71


def described(stories: Sequence[Story]) -> list[dict[str, Any]]:
    """Stories with what a prompt may say of them: rows of `ControllableLM`."""
    rows = [
        {
            "text": story.text,
            "genre": story.genre,
            "topic": story.topic,
            "keywords": [name for name in story.names.values() if name in story.text],
            "sentiment": story.sentiment,
        }
        for story in stories
    ]
    chinese = [row for row, story in zip(rows, stories, strict=True) if story.language == "zh"]
    if chinese and importlib.util.find_spec("jieba"):
        labels = ControlLabels(keywords=JiebaKeywords())({"text": [row["text"] for row in chinese]})
        for row, keywords in zip(chinese, labels["keywords"], strict=True):
            row["keywords"] = keywords or row["keywords"]
    return rows


def prompt_of(tokenizer: Any, row: dict[str, Any], **more: Any) -> Any:
    """The prompt that asks for everything a row says."""
    return build_control_prompt(tokenizer, **{name: row[name] for name in row if name != "text"}, **more)


def show_marks(tokenizer: Any, vocabulary: Path, row: dict[str, Any]) -> None:
    """Prints a prompt as the tokenizer writes it, whose marks are one token each, and as one without them would."""
    pieces = Ernie3Tokenizer.from_released_vocabulary(vocabulary, num_pieces=None)
    before, after = (prompt_of(one, row, num_soft_prompts=0, length=60).input_ids for one in (pieces, tokenizer))
    print(f"A prompt of {len(before)} tokens has {len(after)}, now that its marks are one token each:")
    print(" ", " ".join(tokenizer.convert_ids_to_tokens(after)))


@torch.no_grad()
def write(model: Any, tokenizer: Any, prompts: Sequence[Any], **settings: Any) -> list[str]:
    """A text for each prompt, all of them in one batch; `settings` of `generate` over sampling with top-p 0.9."""
    inputs = tokenizer.pad(
        {"input_ids": [prompt.input_ids for prompt in prompts]}, padding_side="left", return_tensors="pt"
    )
    written = model.generate(
        **inputs,
        genre_ids=torch.tensor([prompt.genre_id for prompt in prompts]),
        **{"max_new_tokens": MOST_WRITTEN, "do_sample": True, "top_p": 0.9} | settings,
    )
    texts = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text if text.isascii() else text.replace(" ", "") for text in texts]


def show_control(folder: Path, classifier: Path, stories: Sequence[Story], topics: dict[str, int]) -> dict[str, float]:
    """Prints whether texts are about what was asked for, of unseen stories, with the prompt and without one.

    Args:
        folder: The pre-trained model with its tokenizer.
        classifier: A fine-tuned one that tells sentences apart by topic; it judges.
        stories: What is asked for.
        topics: Topic -> class of the classifier.

    Returns:
        The shares that are printed.
    """
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    judge = ControlLabels(
        topic=ClassifierLabels(
            pipeline("text-classification", model=str(classifier), tokenizer=tokenizer, device="cpu"), threshold=0
        )
    )
    rows = described(stories)

    def shares(texts: list[str]) -> tuple[float, float]:
        """How many sentences are about what was asked for, and how many of the keywords there are."""
        words = [word in text for row, text in zip(rows, texts, strict=True) for word in row["keywords"]]
        sentences = [
            (f"LABEL_{topics[row['topic']]}", sentence)
            for row, text in zip(rows, texts, strict=True)
            for sentence in split_sentences(text)
        ]
        if not sentences:
            return 0.0, float(np.mean(words))
        found = judge({"text": [sentence for _, sentence in sentences]})["topic"]
        right = [asked == label for (asked, _), label in zip(sentences, found, strict=True)]
        return float(np.mean(right)), float(np.mean(words))

    written = write(model, tokenizer, [prompt_of(tokenizer, row) for row in rows])
    plain = write(model, tokenizer, [build_control_prompt(tokenizer)] * len(rows))
    results = dict(zip(("topic", "keywords"), shares(written), strict=True))
    results |= dict(zip(("plain topic", "plain keywords"), shares(plain), strict=True))
    print(
        f"\n{len(rows)} texts written to order: {results['topic']:.1%} of the sentences about the topic, "
        f"{results['plain topic']:.1%} without the prompt; {results['keywords']:.1%} of the keywords, "
        f"{results['plain keywords']:.1%} without"
    )
    for row, text in list(zip(rows, written, strict=True))[:: max(len(rows) // 2, 1)]:
        print(f"  {row['genre']}, {row['topic']}, {', '.join(row['keywords'])}, {row['sentiment']} -> {text}")
    return results


__all__ = ["described", "show_control", "show_marks"]
