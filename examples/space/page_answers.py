"""What the page asks of the models: a text in, an answer that can be shown out. No Gradio here.

Everything goes through the public functions of `hf_glm_ernie` and transformers' `generate`: `fill_blanks` fills,
`generate` with beams finds what else the model might have written, `uie` extracts, `utc` and `cond_log_probs`
classify. What is too much for a page that others use too is refused before it reaches a model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from page_refusals import Refusal
from transformers import StoppingCriteria, set_seed

from hf_glm_ernie import cond_log_probs, fill_blanks, uie, utc

MASKS = ("[MASK]", "[sMASK]", "[gMASK]")

LONGEST_TEXT = 8_000  # characters
MOST_BLANKS = 8
MOST_CHOICES = 32
LONGEST_CHOICE = 200  # characters
MOST_NEW_TOKENS = 256
MOST_CANDIDATES = 10
MOST_BEAMS = 16
MOST_SECONDS = 300.0  # that one blank may take

Report = Callable[[float, str], None]
"""Is told how much of a job is done, from 0 to 1, and what is being done."""


def _no_report(done: float, what: str) -> None:
    pass


@dataclass(frozen=True)
class FillSettings:
    """How blanks are filled.

    Attributes:
        method: `"greedy"`, `"beams"` or `"sampling"`.
        max_new_tokens: The most tokens in one blank.
        num_beams: Of `"beams"`.
        temperature: Of `"sampling"`.
        top_p: Of `"sampling"`.
        seed: Of `"sampling"`.
        candidates: How many likely answers to look for in each blank; 0: none.
    """

    method: str = "greedy"
    max_new_tokens: int = 32
    num_beams: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    candidates: int = 5

    def generate_arguments(self) -> dict[str, Any]:
        """For `fill_blanks`, which passes them to `generate`.

        Raises:
            Refusal: a setting out of range.
        """
        for name, least, most in (
            ("max_new_tokens", 1, MOST_NEW_TOKENS),
            ("num_beams", 2, MOST_BEAMS),
            ("temperature", 0.05, 5.0),
            ("top_p", 0.05, 1.0),
            ("candidates", 0, MOST_CANDIDATES),
            ("seed", 0, 2**32 - 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least <= value <= most:
                raise Refusal("setting", name=name, value=value, allowed=f"{least} .. {most}")
        methods: dict[str, dict[str, Any]] = {
            "greedy": {"do_sample": False},
            "beams": {"do_sample": False, "num_beams": self.num_beams},
            "sampling": {
                "do_sample": True,
                "temperature": float(self.temperature),  # the host takes no whole number
                "top_p": float(self.top_p),
                "top_k": 0,
            },
        }
        if self.method not in methods:
            raise Refusal("setting", name="method", value=self.method, allowed=" / ".join(methods))
        return {"max_new_tokens": self.max_new_tokens} | methods[self.method]


@dataclass(frozen=True)
class Candidate:
    """Something the model may write into a blank.

    Attributes:
        text: What.
        probability: That it writes this and ends there; of one that was cut off, that it begins so.
        is_chosen: Whether it is what stands in the text.
        is_cut_off: Whether it reached the limit of tokens.
    """

    text: str
    probability: float
    is_chosen: bool
    is_cut_off: bool


@dataclass(frozen=True)
class FilledPage:
    """A text with its blanks filled.

    Attributes:
        pieces: The text around the blanks as it was typed, one piece more than there are blanks.
        blanks: What stands in each.
        text: The whole text as the model reads it.
        candidates: Of each blank, the likeliest first; none where they were not asked for.
    """

    pieces: list[str]
    blanks: list[str]
    text: str
    candidates: list[list[Candidate]]


@dataclass(frozen=True)
class Choice:
    """A choice and how likely it is."""

    label: str
    probability: float
    holds: bool


class _Steps(StoppingCriteria):
    """Stops nothing; reports each token."""

    def __init__(self, report: Report, blanks: int, max_new_tokens: int):
        self.report, self.blanks, self.max_new_tokens = report, blanks, max_new_tokens
        self.blank, self.token, self.length = 0, 0, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.token += 1
        if input_ids.shape[1] != self.length + 1:  # another prompt
            self.blank, self.token = self.blank + 1, 1
        self.length = input_ids.shape[1]
        done = (self.blank - 1 + min(1.0, self.token / self.max_new_tokens)) / self.blanks
        self.report(min(done, 1.0), f"{min(self.blank, self.blanks)}/{self.blanks}: {self.token}")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def split_at_masks(text: str) -> list[str]:
    """A text around its masks; without a mask, the text and nothing behind it, where `fill_blanks` goes on."""
    pieces = [text]
    for mask in MASKS:
        pieces = [part for piece in pieces for part in piece.split(mask)]
    if len(pieces) > 1:
        return pieces
    return [text if not text.isascii() or text[-1:].isspace() else f"{text} ", ""]


def fill(model: Any, tokenizer: Any, text: str, settings: FillSettings, report: Report = _no_report) -> FilledPage:
    """Fills the blanks of a text, and looks what else might have stood there.

    Args:
        model: A `Glm130bForCausalLM`.
        tokenizer: Its tokenizer.
        text: With masks of one kind, or one to go on with.
        settings: How.
        report: Is told of every token.

    Raises:
        ValueError: the text is empty or too long, has too many blanks, or what `fill_blanks` refuses.
    """
    _check_text(text)
    arguments = settings.generate_arguments()
    pieces = split_at_masks(text)
    blanks = len(pieces) - 1
    if blanks > MOST_BLANKS:
        raise Refusal("blanks", count=blanks, most=MOST_BLANKS)
    set_seed(settings.seed)
    steps = _Steps(report, blanks, settings.max_new_tokens)
    filled = fill_blanks(model, tokenizer, text, stopping_criteria=[steps], max_time=MOST_SECONDS, **arguments)
    if len(filled.blanks) != blanks:  # the model wrote a mask of its own
        return FilledPage([filled.text], [], filled.text, [])
    found: list[list[Candidate]] = []
    if settings.candidates:
        prompts = prompts_of_blanks(tokenizer, text, filled.blank_ids)
        for number, (prompt, answer) in enumerate(zip(prompts, filled.blank_ids, strict=False), 1):
            report(number / (blanks + 1), f"{number}/{blanks}")
            found.append(candidates(model, tokenizer, prompt, answer, settings.candidates, settings.max_new_tokens))
    return FilledPage(pieces, filled.blanks, filled.text, found)


def prompts_of_blanks(tokenizer: Any, text: str, answers: Sequence[list[int]]) -> Iterator[list[int]]:
    """The row that each blank is filled from: the text filled so far, and `<sop>`.

    Args:
        tokenizer: Of GLM-130B.
        text: With its masks.
        answers: The ids that were written into each blank.

    Yields:
        The ids for `generate`, ending in `<sop>`; fewer than there are blanks where an answer holds a mask or `<sop>`
        itself, which only `fill_blanks` can tell from the text's own.
    """
    *ids, sop = tokenizer(text)["input_ids"]
    masks = [tokenizer.mask_token_id, tokenizer.smask_token_id, tokenizer.gmask_token_id]
    kind = next(mask for mask in masks if mask in ids)
    for answer in answers:
        place = ids.index(kind)
        yield [*ids, sop]
        if {*masks, sop} & set(answer):
            return
        ids = [*ids[:place], *answer, *ids[place + 1 :]]


def candidates(
    model: Any, tokenizer: Any, prompt: list[int], answer: list[int], count: int, max_new_tokens: int
) -> list[Candidate]:
    """The likeliest answers to a blank, by beam search, and how likely the one is that was given.

    Args:
        model: A `Glm130bForCausalLM`.
        tokenizer: Its tokenizer.
        prompt: P ids, ending in `<sop>`.
        answer: The ids that were given.
        count: How many to look for.
        max_new_tokens: The most tokens of one.

    Returns:
        The likeliest first. Different ids with one text count together.
    """
    ends = _ends(model)
    limit = min(max_new_tokens, model.config.max_position_embeddings - len(prompt))
    beams = max(count, 2)  # one beam has no score
    output = model.generate(
        input_ids=torch.tensor([prompt], device=model.device),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
        do_sample=False,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=0.0,  # a beam's score is then the log-probability of its tokens, the end included
        max_new_tokens=limit,
        max_time=MOST_SECONDS,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found: dict[str, tuple[float, bool]] = {}
    for row, score in zip(output.sequences[:, len(prompt) :].tolist(), output.sequences_scores.tolist(), strict=True):
        end = next((i for i, token in enumerate(row) if token in ends), None)
        text = tokenizer.decode(row[:end])
        earlier = found.get(text, (0.0, False))[0]
        found[text] = (earlier + math.exp(score), end is None)
    given = tokenizer.decode(answer)
    likeliest = sorted(found, key=lambda text: -found[text][0])[:count]
    if given not in likeliest:
        likeliest.append(given)
    if given not in found:
        is_cut_off = len(answer) >= limit
        found[given] = (answer_probability(model, prompt, answer, is_cut_off), is_cut_off)
    return [Candidate(text, found[text][0], text == given, found[text][1]) for text in likeliest]


def answer_probability(model: Any, prompt: list[int], answer: list[int], is_cut_off: bool = False) -> float:
    """The probability that a model writes an answer and ends it.

    Args:
        model: A `Glm130bForCausalLM`.
        prompt: Ids, ending in `<sop>`.
        answer: Ids, without the token that ends them.
        is_cut_off: Whether the answer has no end: then the probability that the model begins so.
    """
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]], device=model.device)).logits[0]
    log_probs = logits[len(prompt) - 1 :].float().log_softmax(-1).cpu()  # (answer + 1, vocabulary)
    total = log_probs[torch.arange(len(answer)), torch.tensor(answer, dtype=torch.long)].sum()
    if not is_cut_off:
        total += log_probs[-1, sorted(_ends(model))].logsumexp(-1)
    return float(total.exp())


def extract(model: Any, tokenizer: Any, schema: Any, text: str, language: str, threshold: float) -> dict[str, Any]:
    """Extracts what a schema names: one text of `uie`.

    Raises:
        TypeError: a schema of something else than names, lists and dicts.
        ValueError: the text is empty or too long, or what `uie` refuses.
    """
    _check_text(text)
    return uie(model, tokenizer, schema, text, language=language, threshold=threshold)[0]


def read_choices(typed: str) -> list[str]:
    """The choices that were typed, one on each line.

    Raises:
        Refusal: too many, one that is too long, or one twice.
    """
    found = [line.strip() for line in typed.splitlines() if line.strip()]
    if len(found) < 2:
        raise Refusal("choices_few", count=len(found))
    if len(found) > MOST_CHOICES:
        raise Refusal("choices_many", count=len(found), most=MOST_CHOICES)
    if long := [one for one in found if len(one) > LONGEST_CHOICE]:
        raise Refusal("choice_long", count=len(long[0]), most=LONGEST_CHOICE)
    if twice := [one for i, one in enumerate(found) if one in found[:i]]:
        raise Refusal("choice_twice", what=twice[0])
    return found


def classify(
    model: Any, tokenizer: Any, text: str, choices: list[str], threshold: float, single_label: bool
) -> list[Choice]:
    """Says how likely each choice is.

    Args:
        model: An `ErnieForUTC`, or a `Glm130bForCausalLM`, which scores what the choices make of a blank of the text.
        tokenizer: Its tokenizer.
        text: What is classified; for GLM-130B with one mask, or none: then the choices stand behind it.
        choices: At least two.
        threshold: Of UTC: a choice holds where its probability is above this.
        single_label: Of UTC: whether only the likeliest holds, and only that is given. GLM-130B's always do.

    Returns:
        The likeliest first. GLM-130B's probabilities are those of each choice if it must be one of them.

    Raises:
        ValueError: the text is empty or too long, has several blanks, or what the library refuses.
    """
    _check_text(text)
    if model.config.model_type == "ernie_utc":
        kept = 0.0 if not single_label else threshold
        found = utc(model, tokenizer, choices, text, threshold=kept, single_label=single_label)[0]["predictions"]
        answers = [Choice(one["label"], one["score"], single_label or one["score"] > threshold) for one in found]
        return sorted(answers, key=lambda one: -one.probability)
    return _choose_for_blank(model, tokenizer, text, choices)


def _choose_for_blank(model: Any, tokenizer: Any, text: str, choices: list[str]) -> list[Choice]:
    if len(split_at_masks(text)) > 2:
        raise Refusal("choice_blanks")
    *ids, _ = tokenizer(text)["input_ids"]
    if tokenizer.smask_token_id in ids:
        raise Refusal("choice_kind")
    context = model.config.max_position_embeddings
    # With the end of each, or a choice would never lose to one that begins like it and goes on.
    answers = [[*row, tokenizer.eop_token_id] for row in tokenizer(choices, add_special_tokens=False)["input_ids"]]
    needed = len(ids) + sum(map(len, answers)) + 2
    if needed > context:  # it would be cut on its left
        raise Refusal("choice_room", count=needed, most=context)
    counts_on = tokenizer.gmask_token_id in ids
    scores = cond_log_probs(model, tokenizer, [ids], [answers], use_task_mask=counts_on, progress=False)[0]
    shares = torch.tensor(scores, dtype=torch.float64).softmax(-1).tolist()
    best = max(shares)
    found = [Choice(label, share, share == best) for label, share in zip(choices, shares, strict=True)]
    return sorted(found, key=lambda one: -one.probability)


def _check_text(text: str) -> None:
    if not text.strip():
        raise Refusal("text_empty")
    if len(text) > LONGEST_TEXT:
        raise Refusal("text_long", count=len(text), most=LONGEST_TEXT)


def _ends(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


__all__ = [
    "Candidate",
    "Choice",
    "FillSettings",
    "FilledPage",
    "candidates",
    "classify",
    "extract",
    "fill",
    "read_choices",
    "split_at_masks",
]
