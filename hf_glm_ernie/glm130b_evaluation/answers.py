"""Answers as the authors' evaluation generates them: greedy, or by the released beam search.

`generate_answers` gives texts, `answer_ids` the ids of every beam, `last_words` LAMBADA's last words. The host's
`generate` runs the model, its cache and its bans; one thing is ours, `released_beam_search`, which `generate` takes as
its `custom_generate`. The host's own beam search (`num_beams` without it) gives other answers, because

- it divides a finished beam's score by its own length to the power of `length_penalty`; the released search by
  `((5 + n) / 6) ** length_penalty`, n counting the prompt too, padded to a multiple of 32: hardly anything;
- it takes tokens away after the softmax; the released search before it, so the others gain what was taken;
- `no_repeat_ngram_size` there also bans what stands in the prompt; here only what the answer itself holds;
- it keeps a beam that ended only if it is among the best `num_beams`; the released search keeps every one that comes
  before the beams it goes on with.

Source: `generation/strategies.py`, `evaluation/tasks.py` and `tasks/lambada` of the GLM-130B repository [R]. Letters
in shape comments: B batch, K beams, P prompt, T all tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from string import punctuation
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from hf_glm_ernie.host_arguments import check_model_and_tokenizer, whole_number
from hf_glm_ernie.host_interface import CACHE_NAME
from hf_glm_ernie.inference.batches import in_batches
from hf_glm_ernie.prefix_glm130b import left_padded

from .scoring import PromptRow, fit_text, prompt_row
from .texts import Text, token_ids

# A prompt counts for the length penalty as padded by the authors' collator.
TILE = 32
# What the authors' LAMBADA task bans by number, in the released vocabulary: at the start of the answer (`'` and
# two backquotes), and everywhere.
RELEASED_PREFIXES = ([46010], [146337])
RELEASED_INVALID = (20068, 146010, 146337)
RELEASED_IMAGE_TOKENS = 20000


class AnswerNgramBan(LogitsProcessor):
    """Bans what would repeat an n-gram of the answer [R `BeamSearchStrategy`].

    The original also keeps n-grams that begin before the answer, which is mostly in the padding of its prompts; here
    they lie in the answer.

    Args:
        size: n, at least 2.
        prompt_length: P, padding included.
    """

    def __init__(self, size: int, prompt_length: int):
        self.size, self.prompt_length = size, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """As in the host: (rows, T) ids and (rows, V) scores; returns the scores."""
        for row, ids in enumerate(input_ids.tolist()):
            answer = ids[self.prompt_length :]
            last = answer[len(answer) - self.size + 1 :]
            for end in range(self.size - 1, len(answer)):
                if answer[end - self.size + 1 : end] == last:
                    scores[row, answer[end]] = -torch.inf
        return scores


class BannedPrefixes(LogitsProcessor):
    """Bans answers that begin with one of these runs of tokens [R `BeamSearchStrategyForLAMBADA`].

    Args:
        prefixes: The runs.
        prompt_length: P, padding included.
    """

    def __init__(self, prefixes: Sequence[Sequence[int]], prompt_length: int):
        self.prefixes, self.prompt_length = [list(prefix) for prefix in prefixes], prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """As in the host: (rows, T) ids and (rows, V) scores; returns the scores."""
        done = input_ids.shape[1] - self.prompt_length
        for prefix in self.prefixes:
            if done == len(prefix) - 1:
                begun = (input_ids[:, self.prompt_length :] == input_ids.new_tensor(prefix[:-1])).all(-1)
                scores[begun, prefix[-1]] = -torch.inf
        return scores


class _RowSearch:
    """The search of one row: its best beams that have ended, and the choice of those that go on."""

    def __init__(self, num_beams: int, ends: set[int], length_penalty: float, penalty_length: int):
        self.num_beams, self.ends = num_beams, ends
        self.length_penalty, self.penalty_length = length_penalty, penalty_length
        self.ended: list[tuple[float, list[int]]] = []
        self.is_done = False

    def end(self, score: float, answer: list[int]) -> None:
        """Puts a beam in its place among those that ended; of two with one score the later comes first."""
        score = self._penalized(score, len(answer))
        place = len(self.ended)
        while place > 0 and not score < self.ended[place - 1][0]:
            place -= 1
        self.ended.insert(place, (score, answer))
        del self.ended[self.num_beams :]

    def _penalized(self, score: float, length: int) -> float:
        return score / ((5.0 + self.penalty_length + length) / 6) ** self.length_penalty

    def step(self, candidates: list[tuple[float, int, int]], answers: list[list[int]]) -> list[tuple[float, int, int]]:
        """Takes one token more.

        Args:
            candidates: Score, beam and next token, best first.
            answers: What each beam holds so far.

        Returns:
            The candidates that go on, as many as there are beams.
        """
        going_on: list[tuple[float, int, int]] = []
        for score, beam, token in candidates:
            if not self.is_done and token in self.ends:
                self.end(score, [*answers[beam], token])
            elif len(going_on) < self.num_beams:
                going_on.append((score, beam, token))
            else:
                break
        best = self._penalized(going_on[0][0], len(answers[0]) + 1)
        # None that goes on can become better than the worst that ended.
        self.is_done = self.is_done or (len(self.ended) == self.num_beams and self.ended[-1][0] >= best)
        return going_on

    def finish(self, scores: list[float], answers: list[list[int]]) -> None:
        """Ends the beams that still go on, unless none of them could be better."""
        if not self.is_done:
            for score, answer in zip(scores, answers, strict=True):
                self.end(score, answer)


def released_beam_search(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: Any,
    generation_config: Any,
    penalty_lengths: Sequence[int],
    **model_kwargs: Any,
) -> torch.Tensor:
    """The authors' deterministic beam search, for the host's `generate(custom_generate=...)`.

    Args:
        model: The model.
        input_ids: (B * K, P) int64: each prompt K times.
        logits_processor: Applied to the logits, before the softmax.
        stopping_criteria: Not used: a beam ends at `eos_token_id` or at `max_length`.
        generation_config: Read for `num_beams`, `length_penalty`, `max_length` and the ends.
        penalty_lengths: B lengths that the prompts count for in the length penalty.
        **model_kwargs: For the model, as `generate` prepares them.

    Returns:
        (B * K, T) int64: the beams of each prompt, best first; behind shorter ones stands a token that ends an answer.
    """
    beams = generation_config.num_beams
    prompt_length = input_ids.shape[1]
    ends = set(torch.as_tensor(generation_config.eos_token_id).flatten().tolist())
    rows = [_RowSearch(beams, ends, generation_config.length_penalty, length) for length in penalty_lengths]
    scores = torch.zeros(len(rows), beams, device=input_ids.device)
    while input_ids.shape[1] < generation_config.max_length and not all(row.is_done for row in rows):
        first = input_ids.shape[1] == prompt_length
        step = None if first or not model_kwargs["use_cache"] else 1
        inputs = model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=step, is_first_iteration=first, **model_kwargs
        )
        outputs = model(**inputs, return_dict=True)
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=False)
        logits = outputs.logits[:, -1].to(input_ids.device, torch.float32)
        logits = logits_processor(input_ids, logits)  # type: ignore[arg-type]  # a LongTensor
        log_probs = logits.log_softmax(-1).view(len(rows), beams, -1)  # (B, K, V)
        # The beams of a row are one and the same at first.
        totals = log_probs[:, :1] if first else log_probs + scores[..., None]
        values, picks = totals.flatten(1).topk((len(ends) + 1) * beams)
        answers = input_ids[:, prompt_length:].view(len(rows), beams, -1).tolist()
        kept = []
        for index, row in enumerate(rows):
            pairs = zip(values[index].tolist(), picks[index].tolist(), strict=True)
            candidates = [(value, *divmod(pick, log_probs.shape[-1])) for value, pick in pairs]
            kept += [
                (score, index * beams + beam, token) for score, beam, token in row.step(candidates, answers[index])
            ]
        scores = scores.new_tensor([score for score, _, _ in kept]).view(len(rows), beams)
        parents = input_ids.new_tensor([parent for _, parent, _ in kept])
        input_ids = torch.cat((input_ids[parents], input_ids.new_tensor([[token] for _, _, token in kept])), dim=1)
        if model_kwargs.get(CACHE_NAME) is not None:
            model_kwargs[CACHE_NAME].reorder_cache(parents)
    answers = input_ids[:, prompt_length:].view(len(rows), beams, -1).tolist()
    for index, row in enumerate(rows):
        row.finish(scores[index].tolist(), answers[index])
    ended = [torch.tensor(answer) for row in rows for _, answer in row.ended]
    # Behind an answer stands a token that ends one.
    padded = torch.nn.utils.rnn.pad_sequence(ended, batch_first=True, padding_value=min(ends)).to(input_ids.device)
    return torch.cat((input_ids[:, :prompt_length], padded), dim=1)


def answer_ids(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[Text],
    *,
    max_gen_length: int = 128,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    min_gen_length: int = 0,
    use_task_mask: bool = False,
    unidirectional: bool = False,
    max_seq_length: int | None = None,
    invalid_ids: Sequence[int] = (),
    banned_prefixes: Sequence[Sequence[int]] = (),
    masks_in_text: bool = True,
    batch_size: int = 8,
    progress: bool = True,
) -> list[list[list[int]]]:
    """Generates the answers of a generation task.

    Arguments are those of `generate_answers`, and: `invalid_ids`, tokens that no answer holds; `banned_prefixes`, runs
    of tokens that no answer begins with; `masks_in_text`, see `token_ids` in `texts`.

    Returns:
        For each context its beams, best first (one if greedy): the ids, without the token that ended them.

    Raises:
        TypeError: see `generate_answers`.
        ValueError: see `generate_answers`.
    """
    check_model_and_tokenizer(model, tokenizer)
    counts = {"max_gen_length": max_gen_length, "num_beams": num_beams, "batch_size": batch_size}
    size = _checked_size(model, max_seq_length, counts, no_repeat_ngram_size, min_gen_length)
    mask_id = tokenizer.gmask_token_id if use_task_mask else tokenizer.mask_token_id
    kind = {"use_task_mask": use_task_mask, "unidirectional": unidirectional}
    prompts = []
    for index, ids in enumerate(token_ids(tokenizer, contexts, masks_in_text=masks_in_text, name="contexts")):
        text = fit_text(ids, size - max_gen_length - 2, mask_id, f"contexts[{index}]")
        prompts.append(prompt_row(text, mask_id, tokenizer.sop_token_id, **kind))
    settings: dict[str, Any] = {
        "do_sample": False,
        "num_beams": num_beams,
        "max_new_tokens": max_gen_length,
        "min_new_tokens": min_gen_length or None,
        "suppress_tokens": list(invalid_ids) or None,
    }
    if num_beams > 1:
        settings |= {"custom_generate": released_beam_search, "length_penalty": length_penalty}

    def answer(batch: list[int]) -> list[list[list[int]]]:
        chosen = [prompts[i] for i in batch]
        width = max(len(prompt.ids) for prompt in chosen)
        processors = LogitsProcessorList()
        if no_repeat_ngram_size:
            processors.append(AnswerNgramBan(no_repeat_ngram_size, width))
        if banned_prefixes:
            processors.append(BannedPrefixes(banned_prefixes, width))
        beams = _generate(model, tokenizer, chosen, settings | {"logits_processor": processors})
        return [beams[i : i + num_beams] for i in range(0, len(beams), num_beams)]

    lengths = [len(prompt.ids) for prompt in prompts]
    show = progress and len(prompts) > batch_size
    return in_batches(model, answer, lengths, batch_size, what="Generating", show_progress=show)


def _checked_size(
    model: Any, max_seq_length: int | None, counts: Mapping[str, int], ngram_size: int, min_gen_length: int
) -> int:
    """Checks the settings; returns how many tokens prompt and answer may have together."""
    for name, value in counts.items():
        whole_number(name, value)
    whole_number("min_gen_length", min_gen_length, least=0)
    if whole_number("no_repeat_ngram_size", ngram_size, least=0) == 1:
        raise ValueError("no_repeat_ngram_size=1 must be 0 (off) or at least 2.")
    context = int(model.config.max_position_embeddings)
    return context if max_seq_length is None else whole_number("max_seq_length", max_seq_length, most=context)


def _generate(model: Any, tokenizer: Any, batch: list[PromptRow], settings: dict[str, Any]) -> list[list[int]]:
    """One `generate` call: the ids of every beam of every prompt."""
    if "custom_generate" in settings:
        settings["penalty_lengths"] = [-(-len(prompt.ids) // TILE) * TILE for prompt in batch]
    ends = [tokenizer.eop_token_id, tokenizer.eos_token_id]
    rows = [(prompt.ids, prompt.token_types, prompt.positions) for prompt in batch]
    inputs = left_padded(rows, tokenizer.pad_token_id, model.device)
    output = model.generate(**inputs, **settings, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return [until_end(row, ends) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]


def until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first that ends an answer."""
    return ids[: next((i for i, index in enumerate(ids) if index in ends), len(ids))]


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decodes an answer; ids that only the padded embedding has carry no text."""
    size = len(tokenizer)
    return str(tokenizer.decode([index for index in ids if index < size]))


def generate_answers(model: Any, tokenizer: Any, contexts: Sequence[Text], **settings: Any) -> list[str]:
    """Answers contexts as the authors' generation tasks do; the best beam of each.

    Args:
        model: A `Glm130bForCausalLM`.
        tokenizer: Its tokenizer.
        contexts: Texts, or their ids. A `[MASK]` in one is what is filled; otherwise a mask is put behind it.
        **settings: `max_gen_length` (128); `num_beams` (1: greedy; more: the released beam search), with
            `length_penalty` (1.0), `no_repeat_ngram_size` (0), `min_gen_length` (0), which hold for greedy answers
            too; `use_task_mask` (False: `[MASK]`, True: `[gMASK]`) and `unidirectional` (False); `max_seq_length`
            (the model's context), prompt and answer together: a longer context loses its left; `batch_size` (8) and
            `progress` (True); `invalid_ids`, `banned_prefixes` and `masks_in_text` as for `answer_ids`.

    Returns:
        The answers, decoded.

    Raises:
        TypeError: no model or no tokenizer where it belongs, no list of contexts, what is neither a text nor ids, a
            count that is no number.
        ValueError: a mask in the text of a `[gMASK]` task, `unidirectional` without `use_task_mask`, a count out of
            range, `no_repeat_ngram_size=1`, an answer that leaves no room for its context.
    """
    return [answer_text(tokenizer, beams[0]) for beams in answer_ids(model, tokenizer, contexts, **settings)]


def lambada_bans(tokenizer: Any) -> tuple[list[int], list[list[int]]]:
    """What LAMBADA's answers must not hold, and not begin with: punctuation [R `LAMBADA`].

    The ids that the authors give by number are banned with the released vocabulary only.

    Returns:
        Tokens that are banned everywhere, and runs of tokens that no answer begins with.
    """
    is_released = (
        getattr(tokenizer, "num_image_tokens", None) == RELEASED_IMAGE_TOKENS and len(tokenizer) > RELEASED_INVALID[-1]
    )
    invalid = list(RELEASED_INVALID) if is_released else []
    prefixes = [list(prefix) for prefix in RELEASED_PREFIXES] if is_released else []
    for ids in token_ids(tokenizer, list(punctuation), masks_in_text=False):
        if len(ids) == 1:
            invalid.append(ids[0])
        if ids:
            prefixes.append(ids)
    return invalid, prefixes


def last_word(tokenizer: Any, beams: Sequence[Sequence[int]]) -> list[int]:
    """Picks LAMBADA's word: the first of the best beam where punctuation follows it, else of the best [R `LAMBADA`].

    Args:
        tokenizer: The tokenizer.
        beams: Ids of each beam, best first.

    Returns:
        Ids of the word.
    """
    chosen = next((beam for beam in beams if _word_ends(answer_text(tokenizer, beam))), beams[0])
    return token_ids(tokenizer, [answer_text(tokenizer, chosen).strip().split(" ")[0]], masks_in_text=False)[0]


def _word_ends(text: str) -> bool:
    words = text.strip().split(" ")
    # `in` on a string, as in the original: an empty word (two spaces) counts as punctuation too.
    return len(words) >= 2 and words[1] in punctuation


def last_words(model: Any, tokenizer: Any, contexts: Sequence[Text], **settings: Any) -> list[str]:
    """Last words of LAMBADA's passages, by beam search with banned punctuation.

    Args:
        model: A `Glm130bForCausalLM`.
        tokenizer: Its tokenizer.
        contexts: Passages without their last word.
        **settings: As for `generate_answers`; the authors' task sets `num_beams=16, max_gen_length=5,
            no_repeat_ngram_size=3, use_task_mask=True`. Greedy answers (`num_beams=1`) are not held by the bans.

    Returns:
        The words.

    Raises:
        ValueError: as for `generate_answers`.
    """
    if settings.get("num_beams", 1) > 1:
        invalid, prefixes = lambada_bans(tokenizer)
        settings = {"invalid_ids": invalid, "banned_prefixes": prefixes} | settings
    return [
        answer_text(tokenizer, last_word(tokenizer, beams))
        for beams in answer_ids(model, tokenizer, contexts, **settings)
    ]


__all__ = [
    "AnswerNgramBan",
    "BannedPrefixes",
    "answer_ids",
    "answer_text",
    "generate_answers",
    "lambada_bans",
    "last_word",
    "last_words",
    "released_beam_search",
    "until_end",
]
