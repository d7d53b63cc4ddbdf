"""Trains the sample in `examples/sample-ernie`: a small ERNIE encoder and a UIE head, in minutes on one CPU core.

    python examples/train_sample_ernie.py --output demo-output/retrained-ernie

Everything but the size is the real thing: a WordPiece vocabulary with [UNK] last, task and token types, masked
language modelling with the host's `Trainer` and data collator, UIE fine-tuning on top of the result, and at the end
PaddleNLP's files, written by the converter's `--reverse`. The output folder holds what the sample folder holds.

What is measured is held out. Facts stand in several wordings (`facts.json`), and of every third fact one wording is
never read in training: its blanks are in `blanks.jsonl`. Events are made up of names (`events.json`), and the people
and companies of `extractions.jsonl` occur in no training text.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForLanguageModeling,
    ErnieConfig,
    ErnieForMaskedLM,
    ErnieModel,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_glm_ernie import ErnieForUIE, ErnieTokenizer, ErnieUIEConfig, uie
from hf_glm_ernie.ernie_tasks.uie_schema import read_schema
from hf_glm_ernie.tokenization_ernie_unicode import build_normalizer, build_pre_tokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "examples" / "sample-ernie"
SENTENCES = (
    REPOSITORY / "examples" / "sample-glm130b" / "corpus.en.txt",
    REPOSITORY / "examples" / "sample-glm130b" / "corpus.zh.txt",
)
HELD_OUT_FACTS = 3  # of so many facts of a kind, one has a wording that is not read in training
HELD_OUT_NAMES = 5  # of so many names, one occurs in no training text
YEARS = range(1980, 2024)
VOCABULARY_TEXTS = 400  # made-up texts per language that the vocabulary is built from
UIE_LENGTHS = (1, 2, 2, 2)  # sentences of a text to learn extraction from; two are what is hard
SLOT = re.compile(r"\{(\w+)\}")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line (`None`: that of the process)."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--sample", type=Path, default=SAMPLE, help="folder with facts.json and events.json")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the trained sample")
    parser.add_argument("--masked-lm-steps", type=int, default=5000, help="optimizer steps of the encoder")
    parser.add_argument("--uie-steps", type=int, default=5000, help="optimizer steps of the UIE model")
    parser.add_argument("--batch-size", type=int, default=32, help="rows per step")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="peak of the encoder's training")
    parser.add_argument("--uie-learning-rate", type=float, default=1e-3, help="peak of the UIE training")
    parser.add_argument("--warmup", type=int, default=100, help="steps up to the peak; a cosine to 0 follows")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--mask-share", type=float, default=0.2, help="share of tokens to be found (usual: 0.15)")
    parser.add_argument("--answer-share", type=float, default=0.8, help="share of facts with their answer masked")
    parser.add_argument("--hidden-size", type=int, default=96)
    parser.add_argument("--intermediate-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--positions", type=int, default=128, help="longest input, in tokens")
    parser.add_argument("--event-texts", type=int, default=15000, help="made-up texts per language for UIE")
    parser.add_argument("--held-out-texts", type=int, default=20, help="the same, to measure with")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=30)
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Sentence:
    """A sentence to train on.

    Attributes:
        text: The sentence.
        answer: Start and end, in characters, of what a fact says; `None` in other sentences.
    """

    text: str
    answer: tuple[int, int] | None = None


def read_facts(sample: Path) -> tuple[list[Sentence], list[dict[str, Any]]]:
    """Writes every fact in every wording.

    Args:
        sample: Folder with `facts.json`: groups of templates and of rows that fill them, the answer last.

    Returns:
        The sentences to train on, and the held-out blanks: `language`, `about`, `text` with one `[MASK]` for each
        token of the answer, and `answer`, these tokens in lower case.
    """
    sentences, blanks = [], []
    for group in json.loads((sample / "facts.json").read_text("utf-8")):
        for number, row in enumerate(group["rows"]):
            kept_back = number // HELD_OUT_FACTS % len(group["templates"]) if number % HELD_OUT_FACTS == 0 else None
            for index, template in enumerate(group["templates"]):
                if index != kept_back:
                    before = len(template[: template.index("{1}")].format(row[0]))
                    sentences.append(Sentence(template.format(*row), (before, before + len(row[1]))))
                    continue
                answer = [row[1].lower()] if group["language"] == "en" else list(row[1])
                text = template.format(row[0], "[MASK]" * len(answer))
                blanks.append({"language": group["language"], "about": group["about"], "text": text, "answer": answer})
    return sentences, blanks


class EventWriter:
    """Makes up texts about people and companies, and what is to be extracted from them."""

    def __init__(self, language: str, events: dict[str, Any], held_out: bool, rng: random.Random):
        """Takes one language of `events.json`; `held_out`: whether to use the held-out names, and only these."""
        self.language, self.held_out, self.rng = language, held_out, rng
        self.templates, self.slots = events["templates"], events["slots"]
        self.schema = read_schema(events["schema"])
        self.names: dict[str, list[str]] = events["names"]

    def write(self, lengths: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
        """Writes a text of as many sentences as one of `lengths`, drawn at random.

        Returns:
            `language`, `text`, and `answers` as `uie` gives them, without probabilities.
        """
        text, answers = "", dict[str, list[dict[str, Any]]]()
        taken: set[str] = set()
        for template in self._draw_templates(lengths):
            text += " " if text and self.language == "en" else ""
            spans: dict[str, dict[str, Any]] = {}
            end = 0
            for match in SLOT.finditer(template["text"]):
                text += template["text"][end : match.start()]
                end = match.end()
                name = self._draw(match.group(1), taken)
                spans[match.group(1)] = {"text": name, "start": len(text), "end": len(text) + len(name)}
                text += name
            text += template["text"][end:]
            for slot, span in spans.items():
                answers.setdefault(self.slots[slot], []).append(span)
            related = {name: [dict(spans[slot])] for name, slot in template["relations"].items()}
            if related:
                spans["c"]["relations"] = related
        for found in answers.values():
            found.sort(key=lambda answer: answer["start"])
        return {"language": self.language, "text": text, "answers": answers}

    def questions(self, event: dict[str, Any]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """Every prompt that `uie` puts to a text, with start and end of the answers; many have none."""
        for node in self.schema:
            found = event["answers"].get(node.name, [])
            yield node.prompt(), [(answer["start"], answer["end"]) for answer in found]
            for child in node.children:
                for answer in found:
                    related = answer.get("relations", {}).get(child.name, [])
                    spans = [(one["start"], one["end"]) for one in related]
                    yield child.prompt(answer["text"], self.language), spans

    def _draw_templates(self, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
        """Draws templates of which one at most names a company.

        Whose founder is whose, where there are two companies, is more than this model learns in minutes.
        """
        while True:
            chosen = self.rng.sample(self.templates, self.rng.choice(lengths))
            if sum("{c}" in template["text"] for template in chosen) <= 1:
                return chosen

    def _draw(self, slot: str, taken: set[str]) -> str:
        """Draws a name that the text does not have yet."""
        kind = {"q": "p", "m": "l"}.get(slot, slot)
        parts = self.names[kind]
        while True:
            indices = [self.rng.randrange(len(part)) for part in parts]
            is_held_out = (indices[0] + 2 * indices[1]) % HELD_OUT_NAMES == 0 if kind in "pc" else self.held_out
            chosen = [part[index] for part, index in zip(parts, indices, strict=True)]
            name = (" " if self.language == "en" else "").join(chosen)
            if kind == "t":
                name = name.format(
                    year=self.rng.choice(YEARS), month=self.rng.randint(1, 12), day=self.rng.randint(1, 28)
                )
            if is_held_out == self.held_out and name not in taken:
                taken.add(name)
                return name


def build_tokenizer(texts: list[str], folder: Path) -> ErnieTokenizer:
    """Makes a vocabulary in ERNIE's order: [PAD] [CLS] [SEP] [MASK], characters, words, [UNK].

    Every word of the texts is a token, and every printable ASCII character, alone and within a word, so that other
    words can be spelled. (The library's trainer breaks ties in the order of a hash, which differs between runs.)

    Args:
        texts: What is to be read.
        folder: Where `vocab.txt` is written.
    """
    normalizer, pre_tokenizer = build_normalizer(do_lower_case=True), build_pre_tokenizer()
    words = {word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))}
    characters = {chr(code) for code in range(33, 127) if not chr(code).isupper()}
    pieces = {f"##{character}" for character in characters if character.isalnum()}
    tokens = [*sorted(characters), *sorted(pieces), *sorted(words - characters)]
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[CLS]", "[SEP]", "[MASK]", *tokens, "[UNK]"]) + "\n", "utf-8")
    return ErnieTokenizer(str(path))


def build_masked_lm(vocabulary: int, arguments: argparse.Namespace) -> ErnieForMaskedLM:
    """Builds the untrained encoder with its head."""
    config = ErnieConfig(
        vocab_size=vocabulary,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        intermediate_size=arguments.intermediate_size,
        max_position_embeddings=arguments.positions,
        type_vocab_size=4,
        task_type_vocab_size=3,
        use_task_id=True,
        layer_norm_eps=1e-12,
        initializer_range=0.05,  # 0.02 is for wider models
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = ErnieForMaskedLM(config)
    # PaddleNLP's files have the pooler in every class; nothing trains it here, as in masked language modelling there.
    model.ernie = ErnieModel(config)
    model.tie_weights()
    return model


def build_uie(encoder: ErnieModel) -> ErnieForUIE:
    """Puts an untrained UIE head on a copy of an encoder."""
    config = ErnieUIEConfig(**{key: value for key, value in encoder.config.to_dict().items() if key != "model_type"})
    model = ErnieForUIE(config)
    model.ernie.load_state_dict(encoder.state_dict())
    return model


class AnswerMasking:
    """Masks what a fact says as a whole, as ERNIE masks entities; in other rows, tokens at random."""

    def __init__(self, tokenizer: ErnieTokenizer, answer_share: float, mask_share: float, rng: random.Random):
        """Takes the share of facts whose answer is masked, and the share of tokens masked in all other rows."""
        self.mask_id, self.answer_share, self.rng = tokenizer.mask_token_id, answer_share, rng
        self.collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=mask_share)

    def rows(self, tokenizer: ErnieTokenizer, sentences: list[Sentence]) -> list[dict[str, list[int]]]:
        """Encodes sentences; `answer` holds the places of the answer's tokens, none in other sentences."""
        rows = []
        for sentence, encoding in zip(sentences, tokenizer([s.text for s in sentences]).encodings, strict=True):
            start, end = sentence.answer or (0, 0)
            answer = sorted({encoding.char_to_token(place) for place in range(start, end)})
            mask = encoding.special_tokens_mask
            rows.append({"input_ids": encoding.ids, "special_tokens_mask": mask, "answer": answer})
        return rows

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Makes a batch: `input_ids`, `attention_mask` and `labels`, each (batch, longest) int64."""
        answers = [row["answer"] for row in rows]
        batch = self.collate([{key: row[key] for key in ("input_ids", "special_tokens_mask")} for row in rows])
        for index, answer in enumerate(answers):
            if not answer or self.rng.random() >= self.answer_share:
                continue
            ids = torch.tensor(rows[index]["input_ids"])
            batch["input_ids"][index, : len(ids)] = ids.index_fill(0, torch.tensor(answer), self.mask_id)
            batch["labels"][index] = -100
            batch["labels"][index, answer] = ids[answer]
        return batch


def uie_rows(tokenizer: ErnieTokenizer, writer: EventWriter, texts: int) -> list[dict[str, list[int]]]:
    """Writes texts and asks everything the schema asks.

    Returns:
        For every prompt and text `input_ids`, `token_type_ids`, and `start_positions` and `end_positions`, which are
        1 where an answer starts and where one ends.
    """
    asked = [
        (prompt, event["text"], spans)
        for event in (writer.write(UIE_LENGTHS) for _ in range(texts))
        for prompt, spans in writer.questions(event)
    ]
    encoded = tokenizer([prompt for prompt, _, _ in asked], [text for _, text, _ in asked], verbose=False)
    rows = []
    for (_, _, spans), encoding in zip(asked, encoded.encodings, strict=True):
        row = {"input_ids": encoding.ids, "token_type_ids": encoding.type_ids}
        starts = {encoding.char_to_token(start, 1) for start, _ in spans}
        ends = {encoding.char_to_token(end - 1, 1) for _, end in spans}
        for name, places in (("start_positions", starts), ("end_positions", ends)):
            row[name] = [int(index in places) for index in range(len(encoding.ids))]
        rows.append(row)
    return rows


def collate_uie(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pads rows on the right with 0, which is [PAD], the first token type and no answer. All are (batch, longest)."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {name: torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in rows]) for name in rows[0]}
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return batch | {"attention_mask": (torch.arange(longest) < lengths[:, None]).long()}


def train(
    model: PreTrainedModel,
    rows: list[Any],
    collate: Any,
    steps: int,
    learning_rate: float,
    arguments: argparse.Namespace,
    show_progress: bool = True,
) -> list[tuple[int, float]]:
    """Trains a model with the host's `Trainer`.

    Returns:
        Step and mean loss since the step before, some fifty times.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=arguments.batch_size,
                learning_rate=learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=min(arguments.warmup, steps // 10),
                weight_decay=arguments.weight_decay,
                logging_steps=max(steps // 50, 1),
                seed=arguments.seed,
                label_names=["start_positions", "end_positions"] if isinstance(model, ErnieForUIE) else ["labels"],
                train_sampling_strategy="group_by_length",  # saves a third of the padding
                remove_unused_columns=False,  # the collator reads more than the model
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=not show_progress,
            ),
            data_collator=collate,
            train_dataset=rows,
        )
        trainer.train()
    model.eval()
    return [(int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def count_right_blanks(model: ErnieForMaskedLM, tokenizer: ErnieTokenizer, blanks: list[dict[str, Any]]) -> int:
    """Counts the texts whose every [MASK] is filled right, through the host's pipeline."""
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=1)
    right = 0
    for blank, answers in zip(blanks, fill([blank["text"] for blank in blanks]), strict=True):
        several = answers if isinstance(answers[0], list) else [answers]
        right += [best[0]["token_str"] for best in several] == blank["answer"]
    return right


def without_probabilities(answers: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """What `uie` found, in the form of `extractions.jsonl`."""
    plain: dict[str, list[dict[str, Any]]] = {}
    for name, found in answers.items():
        plain[name] = [{key: answer[key] for key in ("text", "start", "end")} for answer in found]
        for answer, copy in zip(found, plain[name], strict=True):
            if "relations" in answer:
                copy["relations"] = without_probabilities(answer["relations"])
    return plain


def count_right_extractions(
    model: ErnieForUIE, tokenizer: ErnieTokenizer, events: dict[str, Any], extractions: list[dict[str, Any]]
) -> int:
    """Counts the texts from which exactly the expected answers are extracted."""
    right = 0
    for language, spec in events.items():
        asked = [one for one in extractions if one["language"] == language]
        found = uie(model, tokenizer, spec["schema"], [one["text"] for one in asked], language=language)
        right += sum(without_probabilities(f) == one["answers"] for f, one in zip(found, asked, strict=True))
    return right


def write_released(model: PreTrainedModel, tokenizer: ErnieTokenizer, output: Path) -> None:
    """Writes a model as PaddleNLP keeps it, in fp16.

    Raises:
        subprocess.CalledProcessError: the converter refused; its reason is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tokenizer.save_vocabulary(folder)
        command = [sys.executable, "-m", "conversion", "ernie", "--reverse", "--dtype", "float16"]
        subprocess.run([*command, "--source", folder, "--output", str(output)], cwd=REPOSITORY, check=True)


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes one JSON object a line."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


def train_encoder(
    sentences: list[Sentence],
    tokenizer: ErnieTokenizer,
    blanks: list[dict[str, Any]],
    rng: random.Random,
    arguments: argparse.Namespace,
) -> tuple[ErnieForMaskedLM, dict[str, Any]]:
    """Trains the encoder and its head.

    Returns:
        The model, with the weights that the checkpoint will hold, and the record of its training.
    """
    torch.manual_seed(arguments.seed)
    model = build_masked_lm(len(tokenizer), arguments)
    masking = AnswerMasking(tokenizer, arguments.answer_share, arguments.mask_share, rng)
    rows = masking.rows(tokenizer, sentences)
    started = time.perf_counter()
    losses = train(model, rows, masking, arguments.masked_lm_steps, arguments.learning_rate, arguments)
    seconds = time.perf_counter() - started
    model.half().float()
    right = count_right_blanks(model, tokenizer, blanks)
    print(f"masked LM: {right} of {len(blanks)} held-out blanks right; {seconds:.0f} s", flush=True)
    return model, {"seconds": round(seconds), "right": [right, len(blanks)], "loss": losses}


def train_uie(
    encoder: ErnieModel,
    tokenizer: ErnieTokenizer,
    events: dict[str, Any],
    extractions: list[dict[str, Any]],
    arguments: argparse.Namespace,
) -> tuple[ErnieForUIE, dict[str, Any]]:
    """Trains the UIE model on texts it sees about once: of fewer, it learns the texts and not the task.

    Returns:
        The model, with the weights that the checkpoint will hold, and the record of its training.
    """
    torch.manual_seed(arguments.seed)
    rng = random.Random(f"uie {arguments.seed}")
    model = build_uie(encoder)
    rows = []
    for language, spec in events.items():
        writer = EventWriter(language, spec, held_out=False, rng=rng)
        rows += uie_rows(tokenizer, writer, arguments.event_texts)
    started = time.perf_counter()
    losses = train(model, rows, collate_uie, arguments.uie_steps, arguments.uie_learning_rate, arguments)
    seconds = time.perf_counter() - started
    model.half().float()
    right = count_right_extractions(model, tokenizer, events, extractions)
    print(f"UIE: {right} of {len(extractions)} held-out texts exactly right; {seconds:.0f} s", flush=True)
    return model, {"seconds": round(seconds), "right": [right, len(extractions)], "loss": losses}


def main(arguments: argparse.Namespace) -> None:
    """Trains, measures and writes the sample."""
    output: Path = arguments.output.resolve()
    if output.exists():
        raise SystemExit(f"--output {arguments.output} exists already. Name a new folder, or remove that one.")
    torch.set_num_threads(arguments.threads)
    output.mkdir(parents=True)
    for name in ("facts.json", "events.json"):
        shutil.copyfile(arguments.sample / name, output / name)

    sentences, blanks = read_facts(output)
    sentences += [Sentence(line) for path in SENTENCES for line in path.read_text("utf-8").splitlines()]
    events = json.loads((output / "events.json").read_text("utf-8"))
    rng = random.Random(arguments.seed)
    writers = [EventWriter(language, spec, held_out=False, rng=rng) for language, spec in events.items()]
    texts = [writer.write()["text"] for writer in writers for _ in range(VOCABULARY_TEXTS)]
    extractions = [
        EventWriter(language, spec, held_out=True, rng=rng).write()
        for language, spec in events.items()
        for _ in range(arguments.held_out_texts)
    ]
    write_lines(output / "blanks.jsonl", blanks)
    write_lines(output / "extractions.jsonl", extractions)

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build_tokenizer([*(sentence.text for sentence in sentences), *texts], Path(folder))
        sentences += [Sentence(text) for text in texts[::4]]
        print(f"{len(sentences)} sentences, {len(tokenizer)} tokens", flush=True)
        masked_lm, masked_lm_record = train_encoder(sentences, tokenizer, blanks, rng, arguments)
        write_released(masked_lm, tokenizer, output / "masked-lm")
        extractor, uie_record = train_uie(masked_lm.ernie, tokenizer, events, extractions, arguments)
        write_released(extractor, tokenizer, output / "uie")
    record = {"masked-lm": masked_lm_record, "uie": uie_record}
    (output / "training.json").write_text(json.dumps(record) + "\n", "utf-8")


if __name__ == "__main__":
    main(parse_arguments())
