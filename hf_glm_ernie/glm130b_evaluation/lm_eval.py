"""GLM-130B in lm-evaluation-harness: the model `glm130b`.

    python -m hf_glm_ernie.glm130b_evaluation.lm_eval --model glm130b --model_args pretrained=glm-130b --tasks ...

The harness (0.4.13) knows the models of its own package only and imports no plugins, so its command must be told of
this one; the line above registers it and runs the harness's own command, options and all. In Python importing this
module is enough: `lm_eval.simple_evaluate(model="glm130b", ...)`, or with a `Glm130bLM`.

The harness thinks of continuations; here a context is read in both directions and what follows it is an answer,
`context [gMASK] <sop> continuation`, as in the authors' evaluation. So context and continuation are tokenized each by
itself, and what is one token in running text may be two. A context with a `[MASK]` is scored, and answered, in that
blank. Requests about one context share a row where they fit into it.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from hf_glm_ernie.host_arguments import check_model_and_tokenizer, whole_number
from hf_glm_ernie.modeling_glm130b import Glm130bForCausalLM
from hf_glm_ernie.prefix_glm130b import left_padded
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig

from .answers import answer_text, until_end
from .scoring import ScoredRow, choice_row, fit_text, lm_loss, prompt_row, span_scores
from .texts import token_ids

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
except ImportError as error:
    raise ImportError(
        f"{__name__} needs lm-evaluation-harness ({error}): pip install 'hf-glm-ernie[lm-eval]'"
    ) from error

QUANTIZATIONS = {"int4": 4, "int8": 8}
# Read by the host's `generate`, or by us; a task that asks for anything else is told so.
GENERATION_SETTINGS = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "num_beams", "length_penalty", "early_stopping"),
    *("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens"),
)


class StopTexts(StoppingCriteria):
    """Ends a row when its answer holds one of these texts.

    Args:
        tokenizer: Decodes the answers.
        texts: The texts.
        prompt_length: Width of the prompts, padding included.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt_length: int):
        self.tokenizer, self.texts, self.prompt_length = tokenizer, [text for text in texts if text], prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """As in the host: (rows, T) ids; returns (rows,) bool."""
        answers = [answer_text(self.tokenizer, ids) for ids in input_ids[:, self.prompt_length :].tolist()]
        ended = [any(text in answer for text in self.texts) for answer in answers]
        return torch.tensor(ended, device=input_ids.device)  # type: ignore[return-value]  # a BoolTensor


class Glm130bLM(TemplateLM):
    """The model as the harness calls it.

    Args:
        pretrained: Folder or repository of the model, or a `Glm130bForCausalLM` that is loaded already.
        tokenizer: Folder or repository of the tokenizer, or a tokenizer; default: beside the model.
        dtype: `auto` (as stored), or a name such as `bfloat16`.
        quantization: `int8` or `int4`: the linears of the layers are quantized while they are loaded.
        device: Where the model goes, e.g. `cuda` or `cpu`; default: a GPU where there is one.
        device_map: For `from_pretrained`, e.g. `auto` to spread the model over devices; goes before `device`.
        peft: Folder or repository of a PEFT adapter to put on the model.
        batch_size: Rows per forward.
        max_batch_size: Must be left out: `batch_size` is a number. The harness names it.
        max_length: Tokens of a row; default: the model's context.
        generation_length: Tokens that a window of a rolling text scores; default: 256, or half a window.
        max_gen_toks: The most tokens of an answer where a task does not say.
        use_task_mask: `[gMASK]` in front of the answer; `False` puts `[MASK]`.
        pack_choices: Requests about one context share a row; the scores are the same.
        revision: Of a repository.
        trust_remote_code: For `from_pretrained`.

    Raises:
        ValueError: another model, an unknown quantization, a batch size that is no number, chat templates, or an
            argument that acts while a model is loaded beside one that is loaded already.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        dtype: str | torch.dtype = "auto",
        quantization: str | None = None,
        device: str | None = None,
        device_map: Any = None,
        peft: str | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | str | None = None,
        max_length: int | None = None,
        generation_length: int | None = None,
        max_gen_toks: int = 256,
        use_task_mask: bool = True,
        pack_choices: bool = True,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        rows = _checked_batch_size(batch_size, max_batch_size)
        for name, value in (("max_length", max_length), ("generation_length", generation_length)):
            if value is not None:
                whole_number(name, value)
        whole_number("max_gen_toks", max_gen_toks)
        source = {"revision": revision, "trust_remote_code": trust_remote_code}
        if isinstance(pretrained, str):
            self.model = _load(pretrained, dtype, quantization, device, device_map, source)
        else:
            self.model = pretrained
            too_late = {"quantization": quantization, "device": device, "device_map": device_map, "revision": revision}
            too_late["dtype"] = None if dtype == "auto" else dtype
            _refuse_too_late(too_late)
        if tokenizer is None:
            tokenizer = pretrained if isinstance(pretrained, str) else self.model.name_or_path
        self.tokenizer = (
            AutoTokenizer.from_pretrained(tokenizer, **source) if isinstance(tokenizer, str) else tokenizer
        )
        if peft is not None:
            from peft import PeftModel  # optional

            self.model = PeftModel.from_pretrained(self.model, peft)
        self.model.eval()
        self._device = self.model.device
        check_model_and_tokenizer(self.model, self.tokenizer)
        self.batch_size = rows
        self.max_length = max_length or self.model.config.max_position_embeddings
        self.generation_length, self.max_gen_toks = generation_length, max_gen_toks
        self.use_task_mask, self.pack_choices = use_task_mask, pack_choices

    @property
    def eot_token_id(self) -> int:
        """Id of `<eop>`, which ends an answer."""
        return self.tokenizer.eop_token_id

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer comes from, for the harness's caches."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """None: GLM-130B was not trained on chats.

        Raises:
            ValueError: a template is asked for.
        """
        if chat_template:
            raise ValueError("GLM-130B is asked with no chat template here: run without --apply_chat_template.")
        return None

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Ids of a context; a mask written in it is that token, nothing is added.

        Raises:
            ValueError: special tokens are asked for.
        """
        if add_special_tokens:
            raise ValueError(
                "add_special_tokens=True: the model's tokens in front of and behind a context are added where a row "
                "is made, not here."
            )
        return token_ids(self.tokenizer, [string])[0]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of context and answer, each by itself; the space between them is no part of either."""
        spaces = len(context) - len(context.rstrip(" "))
        context, continuation = context.rstrip(" "), context[len(context) - spaces :] + continuation
        answer = continuation[1:] if continuation.startswith(" ") else continuation
        return self.tok_encode(context), token_ids(self.tokenizer, [answer], masks_in_text=False)[0]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, in nats, and whether it is what a greedy answer would be.

        Args:
            requests: With `args` (context, continuation); an empty context is a lone `[gMASK]`.
            disable_tqdm: No bars.

        Returns:
            One pair for each request.
        """
        pairs = [(request.args, *self._encode_pair(*request.args)) for request in requests]
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        rows, members = self._rows(requests)
        scores = span_scores(self.model, rows, batch_size=self.batch_size, progress=not disable_tqdm)
        answers: dict[int, tuple[float, bool]] = {}
        for row_scores, row_members in zip(scores, members, strict=True):
            for index, score in zip(row_members, row_scores, strict=True):
                answers[index] = (score.log_prob, score.greedy)
                self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
        return [answers[index] for index in range(len(requests))]

    def _rows(self, requests: list[tuple[tuple[str, str], list[int], list[int]]]) -> tuple[list[ScoredRow], Any]:
        """Rows, and for each the numbers of the requests that its spans are."""
        groups: list[list[int]] = []
        last: dict[tuple[int, ...], tuple[list[int], int]] = {}  # the open group of a context, and its tokens
        for index, ((_, continuation), context, answer) in enumerate(requests):
            if not answer:
                raise ValueError(f"The continuation {continuation!r} has no tokens: there is nothing to score.")
            group, taken = last.get(tuple(context), ([], self.max_length))
            if not self.pack_choices or taken + len(answer) > self.max_length:
                group, taken = [], len(context) + 2
                groups.append(group)
            group.append(index)
            last[tuple(context)] = group, taken + len(answer)
        rows = []
        for group in groups:
            spans = [requests[index][2] for index in group]
            context = requests[group[0]][1]
            mask_id, task_mask = self._mask(context)
            room = self.max_length - 2 - sum(map(len, spans))
            text = fit_text(context, room, mask_id, "A context") if context else []
            one_sop = all(len(span) == 1 for span in spans)
            rows.append(
                choice_row(text, spans, mask_id, self.tokenizer.sop_token_id, use_task_mask=task_mask, one_sop=one_sop)
            )
        return rows, groups

    def _mask(self, context: Sequence[int]) -> tuple[int, bool]:
        """The mask that a context is answered at: its own, or the model's choice."""
        task_mask = self.use_task_mask and self.tokenizer.mask_token_id not in context
        return (self.tokenizer.gmask_token_id if task_mask else self.tokenizer.mask_token_id), task_mask

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in nats, in the authors' windows.

        Args:
            requests: With `args` (text,).
            disable_tqdm: No bars.

        Returns:
            One number for each request; 0.0 for an empty text.
        """
        texts = [request.args[0] for request in requests]
        ids = token_ids(self.tokenizer, texts, masks_in_text=False)
        losses = iter(
            lm_loss(
                self.model,
                self.tokenizer,
                [part for part in ids if part],
                max_seq_length=self.max_length,
                generation_length=self.generation_length,
                batch_size=self.batch_size,
                progress=not disable_tqdm,
            )
        )
        answers = [-next(losses).loss if part else 0.0 for part in ids]
        for text, answer in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generates answers up to a stop text, `<eop>` or `</s>`.

        Args:
            requests: With `args` (context, settings); settings are `until`, `max_gen_toks` and those of the host's
                `generate` that choose tokens (`do_sample`, `temperature`, `num_beams`, ...).
            disable_tqdm: No bars.

        Returns:
            The answers, without the stop text.

        Raises:
            ValueError: an unknown setting, or an answer that leaves no room for its context.
        """
        answers: dict[int, str] = {}
        for settings, indices in self._batches(requests, disable_tqdm):
            kwargs: dict[str, Any] = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
            stops = handle_stop_sequences(kwargs.pop("until", None), eos=None)
            most = kwargs.pop("max_gen_toks")
            unknown = sorted(set(kwargs) - set(GENERATION_SETTINGS))
            if unknown:
                raise ValueError(
                    f"generation_kwargs {', '.join(unknown)} are not known here. Allowed: until, max_gen_toks, "
                    f"{', '.join(GENERATION_SETTINGS)}."
                )
            if not kwargs.get("do_sample"):
                kwargs = {name: value for name, value in kwargs.items() if name != "temperature"} | {
                    "do_sample": False
                }
            contexts = [requests[index].args[0] for index in indices]
            for index, ids in zip(indices, self._generate(contexts, most, stops, kwargs), strict=True):
                answers[index] = postprocess_generated_text(answer_text(self.tokenizer, ids), stops, None)
                self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
        return [answers[index] for index in range(len(requests))]

    def _batches(self, requests: list[Any], disable_tqdm: bool) -> Any:
        """Settings and the numbers of at most `batch_size` requests that have them."""
        by_settings: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_settings.setdefault(repr(request.args[1]), []).append(index)
        batches = [
            indices[i : i + self.batch_size]
            for indices in by_settings.values()
            for i in range(0, len(indices), self.batch_size)
        ]
        for indices in tqdm(batches, desc="Generating", unit="batch", disable=disable_tqdm or len(batches) < 2):
            yield requests[indices[0]].args[1], indices

    def _generate(self, contexts: list[str], most: int, stops: list[str], kwargs: dict[str, Any]) -> list[list[int]]:
        """Ids of the answers to one batch."""
        prompts = []
        for ids in map(self.tok_encode, contexts):
            mask_id, task_mask = self._mask(ids)
            text = fit_text(ids, self.max_length - most - 2, mask_id, "A context") if ids else []
            prompts.append(prompt_row(text, mask_id, self.tokenizer.sop_token_id, use_task_mask=task_mask))
        rows = [(prompt.ids, prompt.token_types, prompt.positions) for prompt in prompts]
        inputs = left_padded(rows, self.tokenizer.pad_token_id, self.model.device)
        width = inputs["input_ids"].shape[1]
        ends = [self.tokenizer.eop_token_id, self.tokenizer.eos_token_id]
        output = self.model.generate(
            **inputs,
            max_new_tokens=most,
            eos_token_id=ends,
            pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=StoppingCriteriaList([StopTexts(self.tokenizer, stops, width)] if stops else []),
            **kwargs,
        )
        return [until_end(ids, ends) for ids in output[:, width:].tolist()]


def _checked_batch_size(batch_size: int | str | None, max_batch_size: int | str | None) -> int:
    if max_batch_size is not None:
        raise ValueError(
            f"max_batch_size={max_batch_size!r} is for trying sizes out, which this model does not do: give "
            "batch_size as a number."
        )
    if batch_size is None:
        return 1
    if not str(batch_size).isdecimal() or not int(batch_size):
        raise ValueError(f"batch_size={batch_size!r} must be a number, at least 1; this model does not try sizes out.")
    return int(batch_size)


def _refuse_too_late(settings: dict[str, Any]) -> None:
    if named := [name for name, value in settings.items() if value is not None]:
        raise ValueError(
            f"{', '.join(named)} acts while a model is loaded, and pretrained is one: give it as a folder."
        )


def _load(
    pretrained: str,
    dtype: str | torch.dtype,
    quantization: str | None,
    device: str | None,
    device_map: Any,
    source: dict[str, Any],
) -> Any:
    """Opens a model where it is to run."""
    settings = dict(source)
    if quantization is not None:
        if quantization not in QUANTIZATIONS:
            raise ValueError(f"quantization={quantization!r} must be one of {', '.join(QUANTIZATIONS)}.")
        settings["quantization_config"] = WeightOnlyConfig(bits=QUANTIZATIONS[quantization])
    place = device_map or device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_pretrained(pretrained, dtype=dtype, device_map=place, **settings)
    if type(model).__name__ != Glm130bForCausalLM.__name__:  # with remote code the class is the repository's own
        raise ValueError(
            f"{pretrained} holds a {type(model).__name__}, not a {Glm130bForCausalLM.__name__}: use --model hf for it."
        )
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """The harness's command, with `glm130b` among its models.

    Args:
        arguments: Of its command line; `None`: those of the process.

    Returns:
        The exit status.
    """
    from lm_eval.__main__ import cli_evaluate

    if arguments is not None:
        sys.argv = ["lm-eval", *arguments]  # all that the harness reads
    cli_evaluate()
    return 0


# By name and not by decorator: `python -m` runs this file under another name than the class is found by.
model_registry.register("glm130b", target=f"{__package__}.lm_eval:{Glm130bLM.__name__}")

__all__ = ["Glm130bLM", "StopTexts"]

if __name__ == "__main__":
    main()
