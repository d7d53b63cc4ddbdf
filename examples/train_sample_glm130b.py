"""Trains the sample in `examples/sample-glm130b`: a GLM-130B that one CPU core trains in a quarter of an hour.

    python examples/train_sample_glm130b.py --output demo-output/retrained

Everything but the size is the real thing: an icetk-style tokenizer trained on the corpus, DeepNorm initialisation,
autoregressive blank infilling, AdamW, and at the end the released tensor-parallel files, written by the converter's
`--reverse`. The output folder holds what the sample folder holds.

The blanks of `blanks.jsonl` are held out: training reads every sentence of the corpus, but never asks for one of those
blanks in it. The accuracy printed at the end is about blanks the model has not been trained to fill.
"""

import argparse
import functools
import io
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from tqdm import tqdm
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM, Glm130bTokenizer, fill_blanks

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "examples" / "sample-glm130b"
CORPUS_FILES = ("corpus.en.txt", "corpus.zh.txt")
MASKS = re.compile(r"\[g?MASK\]")
# What a blank may begin and end at: a word, or any other single character (Chinese, or a punctuation mark).
UNITS = re.compile(r"[A-Za-z0-9'-]+|\S")
# The embedding is padded to a multiple of this, as the released one is (150344 ids, 150528 rows).
VOCABULARY_MULTIPLE = 128

Span = tuple[int, int]


@dataclass(frozen=True)
class Sentence:
    """A sentence of the corpus.

    Attributes:
        text: The sentence.
        units: Start and end, in characters, of each unit a blank may begin or end at.
        held_out: Start and end of the blanks that training must not ask for.
    """

    text: str
    units: tuple[Span, ...]
    held_out: frozenset[Span]


@dataclass(frozen=True)
class Example:
    """One blank to learn.

    Attributes:
        prompt: Ids of the context and `<sop>`, exactly as `tokenizer(text)` or `fill_blanks` makes them.
        answer: Ids of what stands in the blank, and `<eop>`.
    """

    prompt: list[int]
    answer: list[int]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line (`None`: that of the process)."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--sample", type=Path, default=SAMPLE, help="folder with corpus.en.txt, corpus.zh.txt and blanks.jsonl"
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder for the trained sample")
    parser.add_argument("--steps", type=int, default=10000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=32, help="blanks per step")
    parser.add_argument(
        "--learning-rate", type=float, default=3e-3, help="peak, reached after --warmup steps; falls to a tenth"
    )
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="on matrices; biases and LayerNorms have none")
    parser.add_argument(
        "--dropout", type=float, default=0.0, help="in hidden states and attention weights (released: 0.1)"
    )
    parser.add_argument(
        "--mask-share", type=float, default=0.6, help="share of [MASK] blanks; the rest is [gMASK] (released: 0.3)"
    )
    parser.add_argument("--pieces", type=int, default=1400, help="sentencepiece vocabulary")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--intermediate-size", type=int, default=384)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=256, help="longest input, in tokens")
    parser.add_argument("--tensor-parallel", type=int, default=2, help="ranks of the written checkpoint")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (torch decides)")
    parser.add_argument("--seed", type=int, default=130)
    return parser.parse_args(arguments)


def read_sentences(sample: Path) -> list[Sentence]:
    """Reads the corpus and marks the blanks to hold out.

    Args:
        sample: Folder with the corpus files and `blanks.jsonl`.

    Raises:
        ValueError: a text of `blanks.jsonl` that is no sentence of the corpus once filled in, or an answer that cuts
            a word.
    """
    held_out: dict[str, set[Span]] = {}
    for line in (sample / "blanks.jsonl").read_text("utf-8").splitlines():
        blank = json.loads(line)
        text, spans = fill_in(blank["text"], blank["blanks"])
        held_out.setdefault(text, set()).update(spans)
    texts = [line for name in CORPUS_FILES for line in (sample / name).read_text("utf-8").splitlines() if line]
    if unknown := sorted(set(held_out) - set(texts)):
        raise ValueError(
            f"{sample / 'blanks.jsonl'}: not a sentence of {', '.join(CORPUS_FILES)} once filled in: {unknown}"
        )
    sentences = []
    for text in texts:
        units = tuple(match.span() for match in UNITS.finditer(text))
        starts, ends = {start for start, _ in units}, {end for _, end in units}
        blanks = held_out.get(text, set())
        if cut := [text[start:end] for start, end in blanks if start not in starts or end not in ends]:
            raise ValueError(f"{sample / 'blanks.jsonl'}: the answer {cut[0]!r} cuts a word of {text!r}.")
        sentences.append(Sentence(text, units, frozenset(blanks)))
    return sentences


def fill_in(text: str, answers: list[str]) -> tuple[str, list[Span]]:
    """Puts the answers into a text with blanks; a text without one is continued.

    Returns:
        The filled text, and start and end of each answer in it.
    """
    if not MASKS.search(text):
        text += " [gMASK]" if text.isascii() else "[gMASK]"
    first, *rest = MASKS.split(text)
    filled, spans = first, []
    for answer, part in zip(answers, rest, strict=True):
        spans.append((len(filled), len(filled) + len(answer)))
        filled += answer + part
    return filled, spans


def train_tokenizer(sentences: list[Sentence], pieces: int, path: Path) -> Glm130bTokenizer:
    """Trains `ice_text.model`, laid out as icetk's: <unk> <s> </s> <pad> <n>, then the pieces, the space first.

    Args:
        sentences: The corpus.
        pieces: Size of the vocabulary; fewer where the corpus does not yield as many.
        path: Where the model is written.

    Returns:
        The tokenizer built from it, without image tokens.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # Four times: only what occurs more than once becomes a piece, and most words of so small a corpus do not.
        sentence_iterator=iter([sentence.text for sentence in sentences] * 4),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars="".join(map(chr, range(33, 127))),
        normalization_rule_name="nmt_nfkc",
        user_defined_symbols=["<n>"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return Glm130bTokenizer.from_ice_text_model(str(path), num_image_tokens=0)


def build_model(tokenizer: Glm130bTokenizer, arguments: argparse.Namespace) -> Glm130bForCausalLM:
    """Builds the untrained model with the ids of the tokenizer."""
    config = Glm130bConfig(
        vocab_size=-(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.intermediate_size,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        max_position_embeddings=arguments.context,
        hidden_dropout=arguments.dropout,
        attention_dropout=arguments.dropout,
        embedding_gradient_shrink=1.0,  # the released 0.1 keeps 130B steady; here it would only slow training down
        mask_token_id=tokenizer.mask_token_id,
        gmask_token_id=tokenizer.gmask_token_id,
        smask_token_id=tokenizer.smask_token_id,
        sop_token_id=tokenizer.sop_token_id,
        eop_token_id=tokenizer.eop_token_id,
        eos_token_id=[tokenizer.eop_token_id, tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return Glm130bForCausalLM(config)


class BlankSampler:
    """Draws blanks from sentences and writes them as the model will see them."""

    def __init__(self, tokenizer: Glm130bTokenizer, mask_share: float, rng: random.Random):
        self.tokenizer = tokenizer
        # Most blanks are drawn many times; tokenizing anew each time would take a sixth of the training time.
        self.tokenize = functools.cache(lambda text, **options: tuple(tokenizer(text, **options)["input_ids"]))
        self.mask_share = mask_share
        self.rng = rng

    def draw(self, sentence: Sentence) -> Example:
        """Draws a blank that is not held out."""
        while True:
            if self.rng.random() >= self.mask_share:
                spans, mask = [self._draw_end(sentence)], "[gMASK]"
            else:
                spans, mask = sorted(self._draw_inside(sentence) for _ in range(self.rng.choice((1, 1, 2)))), "[MASK]"
            apart = all(left[1] < right[0] for left, right in itertools.pairwise(spans))
            if apart and spans[0] != (0, len(sentence.text)) and sentence.held_out.isdisjoint(spans):
                return self.write(sentence.text, spans, mask, asked=self.rng.randrange(len(spans)))

    def _draw_end(self, sentence: Sentence) -> Span:
        """A cut anywhere; what follows is the blank."""
        return self.rng.choice(sentence.units)[0], len(sentence.text)

    def _draw_inside(self, sentence: Sentence) -> Span:
        """A blank of one to six units, short ones more often."""
        first = self.rng.randrange(len(sentence.units))
        last = min(first + min(int(self.rng.expovariate(0.5)), 5), len(sentence.units) - 1)
        return sentence.units[first][0], sentence.units[last][1]

    def write(self, text: str, spans: list[Span], mask: str, asked: int) -> Example:
        """Writes a blank as ids.

        Args:
            text: A sentence.
            spans: Start and end of its blanks, from left to right.
            mask: "[MASK]" or "[gMASK]".
            asked: Index of the blank to fill; those before it are filled already, as `fill_blanks` does it.
        """
        masked, end = "", 0
        for start, stop in spans:
            masked += text[end:start] + mask
            end = stop
        prompt = list(self.tokenize(masked + text[end:]))
        answers = [self.encode_answer(text, span) for span in spans]
        mask_id = self.tokenizer.convert_tokens_to_ids(mask)
        for answer in answers[:asked]:
            position = prompt.index(mask_id)
            prompt[position : position + 1] = answer
        return Example(prompt, [*answers[asked], self.tokenizer.eop_token_id])

    def encode_answer(self, text: str, span: Span) -> list[int]:
        """Ids of `text[start:end]` that decode to the sentence when they stand in the blank.

        A word after a space has that space in its first piece; anything else (all Chinese) must not begin with one.
        """
        start, end = span
        if start == 0 or text[start - 1] == " ":
            return list(self.tokenize(text[start:end], add_special_tokens=False))
        # The tokenizer puts a space before whatever it is given; here, before a line break. Both are cut off.
        return list(self.tokenize("\n" + text[start:end], add_special_tokens=False))[2:]


def batches(sentences: list[Sentence], sampler: BlankSampler, batch_size: int) -> Iterator[list[Example]]:
    """Yields batches without end; every sentence is seen once before any is seen again.

    Blanks are drawn for sixteen batches at a time and batched by length, which saves a third of the padding and time.
    """
    queue: list[Sentence] = []
    while True:
        while len(queue) < 16 * batch_size:
            queue += sampler.rng.sample(sentences, len(sentences))
        drawn = [sampler.draw(sentence) for sentence in queue[: 16 * batch_size]]
        del queue[: 16 * batch_size]
        drawn.sort(key=lambda example: len(example.prompt) + len(example.answer))
        starts = range(0, len(drawn), batch_size)
        for start in sampler.rng.sample(starts, len(starts)):
            yield drawn[start : start + batch_size]


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
    """Pads examples on the left, with id 0: padding is masked, so any id serves.

    Returns:
        `input_ids`, `attention_mask` and `labels` (-100 on padding, context and `<sop>`), each (batch, longest) int64.
    """
    longest = max(len(example.prompt) + len(example.answer) for example in examples)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for example in examples:
        ids = example.prompt + example.answer
        padding = longest - len(ids)
        rows["input_ids"].append([0] * padding + ids)
        rows["attention_mask"].append([0] * padding + [1] * len(ids))
        rows["labels"].append([-100] * (padding + len(example.prompt)) + example.answer)
    return {name: torch.tensor(values) for name, values in rows.items()}


def train(
    model: Glm130bForCausalLM,
    examples: Iterator[list[Example]],
    arguments: argparse.Namespace,
    show_progress: bool = True,
) -> list[float]:
    """Trains the model with the released optimizer settings, at a learning rate for its size.

    Returns:
        The loss of each step, in nats per answer token.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": arguments.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.95))
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, arguments.warmup, arguments.steps, min_lr_rate=0.1
    )
    losses: list[float] = []
    model.train()
    progress = tqdm(range(arguments.steps), desc="Training", unit="step", disable=not show_progress)
    for step in progress:
        batch = collate(next(examples))
        answer_length = int(
            (batch["labels"] != -100).sum(-1).max()
        )  # answers stand at the right end: the rest needs no logits
        batch["labels"] = batch["labels"][:, -answer_length - 1 :]
        loss = model(**batch, logits_to_keep=answer_length + 1, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % 20 == 0:
            progress.set_postfix(loss=f"{sum(losses[-100:]) / len(losses[-100:]):.3f}")
    model.eval()
    return losses


def count_right(model: Glm130bForCausalLM, tokenizer: Glm130bTokenizer, sample: Path) -> tuple[int, int]:
    """Fills the blanks of `blanks.jsonl`, with the weights as the checkpoint will hold them.

    Returns:
        The number of texts with every blank exactly right, and the number of texts.
    """
    model.half().float()
    blanks = [json.loads(line) for line in (sample / "blanks.jsonl").read_text("utf-8").splitlines()]
    answers = fill_blanks(
        model, tokenizer, [blank["text"] for blank in blanks], batch_size=len(blanks), max_new_tokens=32
    )
    right = sum(answer.blanks == blank["blanks"] for answer, blank in zip(answers, blanks, strict=True))
    return right, len(blanks)


def write_released(model: Glm130bForCausalLM, ice_text: Path, arguments: argparse.Namespace) -> None:
    """Writes the sample's folder: fp16 weights as released, settings in the original's words, vocabulary, corpus.

    Args:
        model: The trained model.
        ice_text: The sentencepiece model.
        arguments: The command line.

    Raises:
        subprocess.CalledProcessError: the converter refused; its reason is on stderr.
    """
    output = arguments.output.resolve()
    with tempfile.TemporaryDirectory() as folder:
        model.half().save_pretrained(folder)
        # The converter names the folder of the weights after the iteration of this record.
        record = {"iteration": str(arguments.steps), "tensor_parallel": arguments.tensor_parallel}
        (Path(folder) / "conversion.json").write_text(json.dumps(record), "utf-8")
        command = [sys.executable, "-m", "conversion", "glm130b", "--reverse", "--source", folder]
        command += ["--output", str(output), "--tensor-parallel", str(arguments.tensor_parallel)]
        subprocess.run(command, cwd=REPOSITORY, check=True)
    settings = {
        "num_layers": model.config.num_hidden_layers,
        "hidden_size": model.config.hidden_size,
        "inner_hidden_size": model.config.intermediate_size,
        "num_attention_heads": model.config.num_attention_heads,
        "vocab_size": model.config.vocab_size,
        "max_sequence_length": model.config.max_position_embeddings,
        "num_image_tokens": 0,
        "hidden_dropout": model.config.hidden_dropout,
        "attention_dropout": model.config.attention_dropout,
        "embedding_gradient_shrink": model.config.embedding_gradient_shrink,
    }
    (output / "config.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
    shutil.copyfile(ice_text, output / "ice_text.model")
    for name in (*CORPUS_FILES, "blanks.jsonl"):
        shutil.copyfile(arguments.sample / name, output / name)


def main(arguments: argparse.Namespace) -> None:
    """Trains, evaluates and writes the sample."""
    if arguments.output.exists():
        raise SystemExit(f"--output {arguments.output} exists already. Name a new folder, or remove that one.")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    sentences = read_sentences(arguments.sample)
    with tempfile.TemporaryDirectory() as folder:
        ice_text = Path(folder) / "ice_text.model"
        tokenizer = train_tokenizer(sentences, arguments.pieces, ice_text)
        model = build_model(tokenizer, arguments)
        print(f"{len(sentences)} sentences, {len(tokenizer)} ids, {model.num_parameters():,} parameters")
        sampler = BlankSampler(tokenizer, arguments.mask_share, random.Random(arguments.seed))
        losses = train(model, batches(sentences, sampler, arguments.batch_size), arguments)
        print(f"loss of the last 100 steps: {sum(losses[-100:]) / len(losses[-100:]):.4f} nats per token")
        right, total = count_right(model, tokenizer, arguments.sample)
        print(f"{right} of {total} held-out texts exactly right ({right / total:.0%})")
        write_released(model, ice_text, arguments)


if __name__ == "__main__":
    main(parse_arguments())
