"""Pre-trains a tiny ERNIE 3.0 Titan with every task of the papers, in two minutes on two cores, then uses it.

    python examples/pretrain_ernie3.py --output demo-output/ernie3

Everything but the size is the real thing: a universal stack with an understanding and a generation branch, the seven
pre-training tasks in one forward, and memories that go from segment to segment. The data are this project's own
(`ernie3_texts.py`): made-up stories in Chinese and English, and a small knowledge graph.

What is printed at the end is about texts that training never saw: stories of people, places and things in other
combinations, and known facts in sentences that were kept back. `distil_ernie3.py` goes on from here.
"""

import argparse
import csv
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ernie3_negatives import Generator, open_generator, show_credible, train_generator
from ernie3_prompts import described, show_control, show_marks
from ernie3_texts import Story, Texts
from loss_plot import figure_for
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_glm_ernie import (
    AdversarialTexts,
    ControllableLM,
    CredibleRows,
    Ernie3Config,
    Ernie3ForPreTraining,
    Ernie3PretrainingMixture,
    Ernie3PretrainingTrainer,
    Ernie3Tokenizer,
    KnowledgeMasking,
    KnowledgeTextPrediction,
    Lexicon,
    ProgressiveSchedule,
    SentenceDistance,
    SentenceReordering,
)

LENGTHS = (128, 160)  # tokens of a row, and of a document's segment, at the start and later
# Rows of each task in a batch; short rows cost little.
RATIOS = {
    "knowledge_masked_lm": 6,
    "knowledge_text_prediction": 48,
    "sentence_reordering": 5,
    "sentence_distance": 6,
    "credible": 6,
    "controllable_lm": 4,
    "document_lm": 4,
}
# Weights of the losses that are not 1: facts, and what a language model wrote, take longest to learn.
WEIGHTS = {"knowledge_text_prediction": 5.0, "credible": 3.0}
SHOWN = 4  # answers printed of each kind
ASKED = 80  # texts written to order


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line (`None`: that of the process)."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder for the models, losses and the plot")
    parser.add_argument(
        "--generator",
        help="folder or Hub name of any causal language model that writes the imitations of stories; default: a small "
        "one is trained first",
    )
    parser.add_argument("--generator-steps", type=int, default=30, help="steps of training the small one")
    parser.add_argument("--imitations", type=int, default=900, help="stories it continues for training")
    parser.add_argument("--steps", type=int, default=850, help="steps of pre-training")
    parser.add_argument("--classification-steps", type=int, default=150, help="steps of fine-tuning")
    parser.add_argument("--documents", type=int, default=400, help="made-up documents per language")
    parser.add_argument("--batch-size", type=int, default=79, help="rows per step, of all seven tasks together")
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="peak")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--overwrite_output_dir", action="store_true", help="write over what is in the folder")
    return parser.parse_args(arguments)


# The model and its training


def build_model(tokenizer: Ernie3Tokenizer) -> Ernie3ForPreTraining:
    """An untrained model with Titan's parts: both branches, soft prompts, all heads."""
    config = Ernie3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        branch_hidden_size=64,
        branch_num_hidden_layers=2,
        branch_num_attention_heads=4,
        branch_intermediate_size=128,
        max_position_embeddings=512,
        memory_length=64,
        num_credible_labels=2,
        num_soft_prompt_genres=11,
        initializer_range=0.03,  # 0.02 is for wider models
        soft_prompt_token_id=tokenizer.soft_prompt_token_id,
        sentence_token_id=tokenizer.sentence_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Ernie3ForPreTraining(config)


def build_mixture(
    texts: Texts, pairs: Sequence[dict[str, Any]], schedule: ProgressiveSchedule, seed: int
) -> Ernie3PretrainingMixture:
    """All seven tasks on the texts; `pairs` are the rows of the credible one."""
    tokenizer, documents, triples = texts.tokenizer, texts.documents, texts.triples
    stories = [story for document in documents for story in document]
    sentences = [{"text": story.text} for story in stories] + [{"text": row["sentence"]} for row in triples]
    paragraphs = [{"sentences": list(story.sentences)} for story in stories]
    whole = [" ".join(story.text for story in document) for document in documents]
    entities = {name: "entity" for story in stories for name in story.names.values()}
    entities |= {row[part]: "entity" for row in triples for part in ("head", "tail")}
    settings: dict[str, Any] = {"max_length": LENGTHS[1], "truncation": True, "seed": seed}
    others = [paragraph["sentences"] for paragraph in paragraphs]
    tasks: list[tuple[Sequence[dict[str, Any]], Any]] = [
        (sentences, KnowledgeMasking(tokenizer, lexicon=Lexicon(entities), **settings)),
        (triples, KnowledgeTextPrediction(tokenizer, rate=0.4, relation_share=0.3, **settings)),
        (paragraphs, SentenceReordering(tokenizer, **settings)),
        (paragraphs, SentenceDistance(tokenizer, documents=others, **settings)),
        (pairs, CredibleRows(tokenizer, **settings)),
        (described(stories), ControllableLM(tokenizer, **settings)),
    ]
    return Ernie3PretrainingMixture(
        tokenizer, tasks, [{"text": text} for text in whole], ratios=RATIOS, schedule=schedule, seed=seed
    )


def write_pairs(texts: Texts, generate: Generator, count: int, seed: int) -> list[dict[str, Any]]:
    """Lets a language model continue the beginnings of stories.

    Args:
        texts: Whose stories.
        generate: A list of beginnings to a list of continuations.
        count: How many stories.
        seed: Decides which, and how much of each is given.

    Returns:
        Rows of the credible task: each story, and what was made of its beginning.
    """
    stories = [story.text for document in texts.documents for story in document]
    chosen = random.Random(seed).sample(stories, min(count, len(stories)))
    pairs = AdversarialTexts(generate, texts.tokenizer, max_length=LENGTHS[0], seed=seed)(
        {"text": chosen}, range(len(chosen))
    )
    return [dict(zip(pairs, row, strict=True)) for row in zip(*pairs.values(), strict=True)]


class Progress(ProgressCallback):
    """The progress bar alone: the losses are printed once, at the end."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Prints nothing."""


def pretrain(
    model: Ernie3ForPreTraining,
    mixture: Ernie3PretrainingMixture,
    schedule: ProgressiveSchedule,
    output: Path,
    steps: int,
) -> list[dict[str, float]]:
    """Trains all tasks together.

    Returns:
        The log: some fifty times `step` and `<task>_loss`, the mean since the time before.
    """
    settings = TrainingArguments(
        str(output / "pretraining"),
        max_steps=steps,
        learning_rate=schedule.learning_rate[1],
        weight_decay=0.01,
        adam_beta2=0.95,
        logging_steps=max(steps // 50, 1),
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=mixture.seed,
    )
    trainer = Ernie3PretrainingTrainer(model, settings, train_dataset=mixture, schedule=schedule, task_weights=WEIGHTS)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress)
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


def falls(log: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Every task's mean loss over the first and over the last tenth of the log."""
    tenth = max(len(log) // 10, 1)
    tasks = sorted({name for row in log for name in row if name.endswith("_loss")})
    return {
        task.removesuffix("_loss"): (
            float(np.mean([row[task] for row in log[:tenth]])),
            float(np.mean([row[task] for row in log[-tenth:]])),
        )
        for task in tasks
    }


def plot_losses(log: list[dict[str, float]], path: Path) -> None:
    """Draws every task's loss over the steps, as a share of its first value, where matplotlib is installed."""
    figure = figure_for(path, "losses.csv", (8, 4.5))
    if figure is None:
        return
    axes = figure.subplots()
    for task in falls(log):
        losses = [row[f"{task}_loss"] for row in log]
        axes.plot([row["step"] for row in log], [loss / losses[0] for loss in losses], label=task.replace("_", " "))
    axes.set(xlabel="step", ylabel="loss / first loss", ylim=(0, 1.1))
    axes.axhline(0.8, color="grey", linewidth=0.8, linestyle="dotted")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


# What it has learned


@torch.no_grad()
def fill_entities(model: Any, tokenizer: Any, triples: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Fills the tail of each triple into its sentence, from the triple: `[CLS] h r t [SEP] sentence [SEP]`.

    Returns:
        For each triple `text` (the sentence with its blank), `answer` and `expected`.
    """
    filled = []
    for row in triples:
        tail = tokenizer.tokenize(row["tail"])
        blank = row["sentence"].replace(row["tail"], tokenizer.mask_token * len(tail), 1)
        parts = [row[name] for name in ("head", "relation", "tail")]
        ids = [tokenizer.cls_token_id]
        for text in parts:
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.append(tokenizer.sep_token_id)
        ids += [*tokenizer(blank, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
        inputs = torch.tensor([ids])
        places = inputs[0] == tokenizer.mask_token_id
        best = model(inputs).logits[0, places].argmax(-1)
        answer = tokenizer.convert_ids_to_tokens(best.tolist())
        filled.append({"text": f"{' '.join(parts)} | {blank}", "answer": "".join(answer), "expected": "".join(tail)})
    return filled


@torch.no_grad()
def continue_documents(model: Any, tokenizer: Any, documents: list[list[Story]]) -> tuple[dict[str, float], str, str]:
    """Reads the first segment of each document and goes on with the second, with and without the first one's memory.

    Returns:
        The mean loss per token of the second segments "with" and "without" memory; of the last document the end of
        the first segment and what the model writes behind it.
    """
    losses: dict[str, list[float]] = {"with": [], "without": []}
    for document in documents:
        ids = tokenizer(" ".join(story.text for story in document), return_tensors="pt")["input_ids"]
        first, second = ids[:, : LENGTHS[1]], ids[:, LENGTHS[1] : 2 * LENGTHS[1]]
        memories = model(first[:, :-1], return_memories=True).memories
        for label, given in (("with", memories), ("without", None)):
            context = torch.cat((first[:, -1:], second), dim=1)
            losses[label].append(model(context, labels=context, memories=given).loss.item())
    written = model.generate(first[:, -1:], memories=memories, max_new_tokens=40, do_sample=False)
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in (first[0, -30:], written[0, 1:])]
    return {label: float(np.mean(found)) for label, found in losses.items()}, texts[0], texts[1]


class StoryRows(torch.utils.data.Dataset):
    """Sentences of stories and which plot each is from, for classification.

    Args:
        documents: The stories.
        tokenizer: Makes ids.
        topics: Topic -> class; the same plot has the same class in both languages.
    """

    def __init__(self, documents: list[list[Story]], tokenizer: Any, topics: dict[str, int]) -> None:
        pairs = [
            (text, topics[story.topic]) for document in documents for story in document for text in story.sentences
        ]
        self.rows = [
            {"input_ids": ids, "labels": label}
            for ids, (_, label) in zip(tokenizer([text for text, _ in pairs])["input_ids"], pairs, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def classify(folder: Path, train: StoryRows, held_out: StoryRows, tokenizer: Any, steps: int, output: Path) -> float:
    """Fine-tunes the understanding branch to tell the plots apart, the universal stack frozen.

    Returns:
        The share of held-out sentences that are classified right.
    """
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1 + max(row["labels"] for row in train.rows)
    )
    model.freeze_universal()
    settings = TrainingArguments(
        str(output),
        max_steps=steps,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=2e-3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )

    def accuracy(found: Any) -> dict[str, float]:
        return {"accuracy": float((np.argmax(found.predictions, -1) == found.label_ids).mean())}

    trainer = Trainer(
        model,
        settings,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()
    return trainer.evaluate()["eval_accuracy"]


def show_falls(log: list[dict[str, float]]) -> None:
    """Prints every task's loss over the first and the last tenth."""
    print(f"\n{'loss':28}{'first tenth':>12}{'last tenth':>12}{'ratio':>8}")
    for task, (first, last) in falls(log).items():
        print(f"{task:28}{first:12.3f}{last:12.3f}{last / first:8.2f}")


def show_answers(folder: Path, tokenizer: Any, triples: list[dict[str, str]], documents: list[list[Story]]) -> None:
    """Prints what the model makes of triples and documents it was not trained on."""
    understanding = AutoModelForMaskedLM.from_pretrained(folder).eval()
    filled = fill_entities(understanding, tokenizer, triples)
    right = sum(row["answer"] == row["expected"] for row in filled)
    print(f"\nEntities filled in from triples, in sentences that were kept back: {right} of {len(filled)} right")
    for row in filled[:: max(len(filled) // SHOWN, 1)][:SHOWN]:
        print(f"  {row['text']} -> {row['answer']}")
    writing = AutoModelForCausalLM.from_pretrained(folder).eval()
    losses, read, written = continue_documents(writing, tokenizer, documents)
    print(
        f"\nSecond segments of {len(documents)} unseen documents: loss {losses['with']:.3f} with the first segment's "
        f"memory, {losses['without']:.3f} without"
    )
    print(f"  {read} -> {written}")


def choose_generator(arguments: argparse.Namespace, texts: Texts, config: Ernie3Config) -> Generator:
    """The language model that was asked for, or a small one, trained now."""
    if arguments.generator is not None:
        return open_generator(arguments.generator, LENGTHS[0])
    stories = [story for document in texts.documents for story in document]
    folder = arguments.output / "generator"
    return train_generator(stories, texts.tokenizer, config, LENGTHS[0], arguments.generator_steps, folder)


def main() -> None:
    """Trains, prints, plots."""
    arguments = parse_arguments()
    if arguments.output.exists() and not arguments.overwrite_output_dir:
        raise SystemExit(
            f"{arguments.output} exists already. Name a folder that does not, or pass --overwrite_output_dir to write "
            "over what is there."
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    set_seed(arguments.seed)
    texts = Texts(arguments.documents, arguments.seed, arguments.output)
    model = build_model(texts.tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(texts.tokenizer):,} tokens, {len(texts.documents)} documents")
    show_marks(texts.tokenizer, arguments.output / "vocab.txt", described(texts.documents[0][:1])[0])
    start = time.perf_counter()
    generate = choose_generator(arguments, texts, model.config)
    pairs = write_pairs(texts, generate, arguments.imitations, arguments.seed)
    print(f"{len(pairs) // 2} stories and their imitations, such as: {pairs[1]['text']}")
    schedule = ProgressiveSchedule(
        arguments.steps // 5,
        LENGTHS,
        (arguments.batch_size // 2, arguments.batch_size),
        (arguments.learning_rate / 10, arguments.learning_rate),
        total_steps=arguments.steps + 1,
    )
    mixture = build_mixture(texts, pairs, schedule, arguments.seed)
    log = pretrain(model, mixture, schedule, arguments.output, arguments.steps)
    print(f"Generator and pre-training: {time.perf_counter() - start:.0f} s")
    folder = arguments.output / "model"
    model.save_pretrained(folder)
    texts.tokenizer.save_pretrained(folder)
    show_falls(log)
    with open(arguments.output / "losses.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(log[0]), extrasaction="ignore")
        table.writeheader()
        table.writerows(log)
    plot_losses(log, arguments.output / "losses.png")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    show_answers(folder, tokenizer, texts.kept_back, texts.unseen)
    unseen = [story for document in texts.unseen for story in document]
    show_credible(model.eval(), tokenizer, unseen, generate, LENGTHS[0])
    accuracy = classify(
        folder,
        StoryRows(texts.documents, tokenizer, texts.topics),
        StoryRows(texts.unseen, tokenizer, texts.topics),
        tokenizer,
        arguments.classification_steps,
        arguments.output / "classification",
    )
    print(f"\nSentences of unseen documents told apart by plot: {accuracy:.1%}")
    show_control(folder, arguments.output / "classification", unseen[:: max(len(unseen) // ASKED, 1)], texts.topics)


if __name__ == "__main__":
    main()
