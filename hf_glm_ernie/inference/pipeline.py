"""`pipeline("text-generation")` for GLM-130B: the full text is the prompt and its answer as one text.

The host decodes the answer by itself and puts it behind the prompt. The first space of a text decoded by itself is
sentencepiece's, not the text's, and goes; so the host's full text joins two words (`the soundthat follows`). Here the
answer is decoded behind its prompt, and stands in place of the blank that it fills.

The class is the registered one for the task, and makes itself only for GLM-130B's tokenizer: every other model gets
the host's own class.
"""

from typing import Any

from transformers.pipelines import PIPELINE_REGISTRY, TextGenerationPipeline
from transformers.pipelines.text_generation import ReturnType

from hf_glm_ernie.tokenization_glm130b_chat import MASK_PATTERN

TASK = "text-generation"


def full_text(prompt: str, answer: str, written: bool) -> str:
    """Puts an answer into its prompt.

    Args:
        prompt: As the user typed it.
        answer: Decoded behind the prompt, with the space that stands between the two, if any.
        written: Whether the prompt ended in `<sop>`: the answer then fills the prompt's first mask, if it has one.

    Returns:
        The text; where a space stood already, no second one.
    """
    mask = MASK_PATTERN.search(prompt) if written else None
    left, right = (prompt, "") if mask is None else (prompt[: mask.start()], prompt[mask.end() :])
    if not left or left[-1].isspace():
        answer = answer.removeprefix(" ")
    return left + answer + right


class Glm130bTextGenerationPipeline(TextGenerationPipeline):
    """The host's pipeline, whose full texts read as the tokenizer would decode the whole row.

    `return_full_text=False` and `return_tensors=True` are the host's. For another tokenizer than GLM-130B's the
    host's own class is made.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Makes the host's class where the tokenizer is another model's."""
        tokenizer = kwargs.get("tokenizer", args[1] if len(args) > 1 else None)
        # By name: a tokenizer that came with a Hub repository is a class of its own.
        if "Glm130bTokenizer" in (kind.__name__ for kind in type(tokenizer).__mro__):
            return super().__new__(cls)
        return TextGenerationPipeline(*args, **kwargs)

    def postprocess(  # type: ignore[override]  # the host's other arguments, which differ by version, are in `options`
        self, model_outputs: Any, return_type: Any = ReturnType.FULL_TEXT, **options: Any
    ) -> Any:
        """As in the host.

        Args:
            model_outputs: As in the host.
            return_type: As in the host.
            **options: As in the host.

        Returns:
            As in the host.
        """
        records = super().postprocess(model_outputs, return_type=return_type, **options)
        prompt, ids = model_outputs["prompt_text"], model_outputs["input_ids"]
        if return_type != ReturnType.FULL_TEXT or ids is None:
            return records
        tokenizer: Any = self.tokenizer
        skip = options.get("skip_special_tokens")
        decoding = {
            "skip_special_tokens": True if skip is None else skip,
            "clean_up_tokenization_spaces": options.get("clean_up_tokenization_spaces"),
        }
        head_ids = ids[0].tolist()
        head = tokenizer.decode(head_ids, **decoding)
        for record, row in zip(records, model_outputs["generated_sequence"][0].tolist(), strict=True):
            whole = tokenizer.decode(row, **decoding)
            if not whole.startswith(head):
                continue  # cleaning up has changed the prompt itself: the host's text stays
            answer = whole[len(head) :]
            if isinstance(prompt, str):
                written = head_ids[-1] == tokenizer.sop_token_id and str(tokenizer.sop_token) not in prompt
                record["generated_text"] = full_text(prompt, answer, written)
            elif len(record["generated_text"]) == len(prompt.messages):  # a message of the chat was gone on with
                record["generated_text"][-1]["content"] = full_text(prompt.messages[-1]["content"], answer, False)
        return records


def register_pipeline() -> None:
    """Puts the class in the place of the host's for its task. Registering again is harmless.

    A class that somebody else has registered stays.
    """
    task = PIPELINE_REGISTRY.supported_tasks[TASK]
    host = f"{TextGenerationPipeline.__module__}.{TextGenerationPipeline.__name__}"
    if task["impl"] in (TextGenerationPipeline, host):  # newer hosts write the name
        # Not `PIPELINE_REGISTRY.register_pipeline`: it warns, and marks every pipeline that is saved as custom code.
        task["impl"] = Glm130bTextGenerationPipeline


register_pipeline()

__all__ = ["TASK", "Glm130bTextGenerationPipeline", "full_text", "register_pipeline"]
