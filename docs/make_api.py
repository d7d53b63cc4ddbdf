"""Writes docs/api.md, the reference of every public name, from the docstrings.

    python docs/make_api.py

Everything is read from the source text by griffe; nothing is imported. So the page does not depend on the versions of
the libraries, and names whose libraries are not installed stand in it, too. `GROUPS` says what the page holds: every
name of `hf_glm_ernie.__all__`, and what is imported from a file of the package (written `folder.file.name`).
`tests/test_docs.py` holds the committed page against this script.
"""

import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
WIDTH = 100  # of a signature on one line

GROUPS = {
    "GLM-130B": (
        *("Glm130bConfig", "Glm130bTokenizer", "Glm130bModel", "Glm130bForCausalLM", "Glm130bPreTrainedModel"),
        *("generation_glm130b.Glm130bGenerationMixin", "fill_blanks", "FilledText"),
        "Glm130bTextGenerationPipeline",
    ),
    "ERNIE's encoders": (
        *("ErnieTokenizer", "sentence_embeddings", "uie", "utc", "answer_questions", "OnnxEncoder"),
        *("evaluate_ernie", "Evaluation"),
        *("ernie_tasks.display.display", "ernie_tasks.display.to_html", "ernie_tasks.display.save_html"),
        "ernie_tasks.display.to_text",
        *("ErnieForUIE", "ErnieUIEConfig", "ErnieUIEOutput", "ErnieForUTC", "ErnieUTCConfig", "ErnieUTCOutput"),
        *("extract", "ErnieForGPLinker", "ErnieGPLinkerConfig", "ErnieGPLinkerOutput"),
        *("ernie_distillation.distil.distil_uie", "ernie_distillation.distil.DistilArguments"),
    ),
    "ERNIE's encoders: smaller": (
        *("ErnieCompactConfig", "ErnieCompactModel", "ErnieCompactForSequenceClassification"),
        *("ErnieCompactForTokenClassification", "ErnieCompactForQuestionAnswering", "ErnieCompactForMultipleChoice"),
    ),
    "ERNIE's encoders: labels to rows": (
        *("ernie_data.convert.label_data", "ernie_data.arguments.LabelDataArguments"),
        *("ernie_data.uie_rows.extraction_rows", "ernie_data.utc_rows.utc_rows"),
    ),
    "ERNIE 3.0's unified model": (
        *("Ernie3Config", "Ernie3Tokenizer", "split_sentences", "Ernie3Model", "Ernie3ModelOutput"),
        *("Ernie3PreTrainedModel", "Ernie3ForCausalLM", "Ernie3CausalLMOutput"),
        *("generation_ernie3.Ernie3GenerationMixin", "Ernie3Memories", "Ernie3ForPreTraining"),
        *("Ernie3ForPreTrainingOutput", "Ernie3ForMaskedLM", "Ernie3ForSequenceClassification"),
        *("Ernie3ForTokenClassification", "Ernie3ForQuestionAnswering", "Ernie3ForMultipleChoice"),
    ),
    "ERNIE 3.0: prompts and scores": (
        *("build_control_prompt", "add_control_marks", "GENRES", "SENTIMENTS", "zero_shot", "ZeroShotAnswer"),
        *("pair_scores", "rerank", "RankedText"),
    ),
    "ERNIE 3.0: pre-training": (
        *("Ernie3PretrainingTrainer", "Ernie3PretrainingMixture", "WeightedSources", "Ernie3PretrainingCollator"),
        "ProgressiveSchedule",
        *("MemoryBank", "layerwise_lr_groups", "KnowledgeMasking", "Lexicon", "DocumentTokens", "DocumentStreams"),
        *("SentenceReordering", "SentenceDistance", "label_permutation", "permutation_classes", "permutation_label"),
        *("KnowledgeTextPrediction", "DistantSupervision", "sentences_with", "CredibleRows", "AdversarialTexts"),
        *("ModelContinuations", "ControllableLM", "ControlLabels", "JiebaKeywords", "ClassifierLabels"),
    ),
    "ERNIE 3.0: a corpus": (
        *("ernie_corpus.prepare.prepare_corpus", "ernie_corpus.prepare.CorpusArguments"),
        *("ernie_corpus.mapping.CleanDocuments", "ernie_corpus.mapping.FirstOccurrences"),
        *("ernie_corpus.mapping.NearDuplicateKeys", "ernie_corpus.mapping.WordSpans"),
        *("ernie_corpus.reading.read_corpus", "ernie_corpus.report.CorpusReport", "ernie_corpus.report.Tally"),
    ),
    "ERNIE 3.0: distillation": (
        *("OnlineDistillation", "Ernie3DistillationTrainer", "add_auxiliary_layer", "drop_auxiliary_layer"),
    ),
    "Quantized weights": (
        *("WeightOnlyConfig", "quantization_weight_only.repack"),
        *("weight_only_cpu.build_cpu_kernel", "weight_only_cpu.cpu_kernel_is_ready"),
    ),
    "Planning devices": (
        *("planner.devices.plan", "planner.report.Plan", "planner.report.DevicePlan", "set_offload", "Offload"),
        *("planner.speed_table.Speed", "planner.speed.Step", "planner.speed.Waiting"),
        *("planner.training.plan_training", "planner.training_report.TrainingPlan"),
        *("planner.training_report.TrainingRow", "planner.training_state.State"),
        "planner.training_speed.TrainingSpeed",
    ),
    "Fine-tuning": (
        *("finetuning.methods.AdapterArguments", "finetuning.methods.adapt", "finetuning.weight_only.load_adapter"),
        *("finetuning.weight_only.merging_into_integers", "finetuning.targets.register_default_targets"),
        *("finetuning.objectives.BlankInfilling", "one_chat_an_answer"),
        *(
            "finetuning.objectives.InstructionPairs",
            "finetuning.objectives.Packing",
            "finetuning.objectives.mix_instructions",
        ),
        *("finetuning.objectives.published_arguments", "finetuning.collator.Glm130bCollator"),
        *("finetuning.collator.shifted_label_smoothing", "finetuning.collator.packed_attention_mask"),
    ),
    "Evaluation": (
        *(
            "glm130b_evaluation.evaluate.cond_log_probs",
            "glm130b_evaluation.evaluate.lm_loss",
            "glm130b_evaluation.evaluate.TextLoss",
        ),
        *(
            "glm130b_evaluation.evaluate.generate_answers",
            "glm130b_evaluation.evaluate.last_words",
            "glm130b_evaluation.evaluate.evaluate_task",
        ),
        *(
            "glm130b_evaluation.evaluate.TaskResult",
            "glm130b_evaluation.evaluate.FileResult",
            "glm130b_evaluation.evaluate.summarize",
        ),
        "glm130b_evaluation.lm_eval.Glm130bLM",
    ),
}

# What the host calls and nobody else: left out.
HOOKS = {
    *("activation_checkpointing_enable", "convert_ids_to_tokens", "convert_to_native_format"),
    *("convert_tokens_to_string", "create_masks_for_generate", "create_optimizer", "create_scheduler"),
    *("evaluation_loop", "get_eval_dataloader", "get_input_embeddings", "get_output_embeddings", "get_text_config"),
    *("get_train_dataloader", "gradient_checkpointing_enable", "log", "num_special_tokens_to_add"),
    *("prediction_step", "prepare_inputs_for_generation", "resize_token_embeddings", "save_vocabulary"),
    *("set_input_embeddings", "set_output_embeddings", "tokenizer_name", "validate_architecture", "validate_task_id"),
}

HEAD = """\
# API reference

Made by `python docs/make_api.py` from the docstrings; change those, not this page. The classes are transformers' own
kinds: whatever `from_pretrained`, `generate` and `Trainer` take, they take. Letters in shapes are said where they are
used; B is always the batch; "the host" is transformers.
"""

# A Returns section is one text, whose lines are not several results.
PARSING = {"warnings": False, "returns_multiple_items": False, "returns_named_value": False}
SECTIONS = {
    "parameters": "Args",
    "attributes": "Attributes",
    "returns": "Returns",
    "yields": "Yields",
    "raises": "Raises",
}


def _call(name: str, parameters: list[str], returns: str = "") -> str:
    line = f"{name}({', '.join(parameters)}){returns}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {one}," for one in parameters), f"){returns}"])


def _typed(name: str, annotation: object, default: object) -> str:
    typed = f"{name}: {annotation}" if annotation else name
    return typed if default is None else f"{typed} = {default}" if annotation else f"{typed}={default}"


def _parameters(function: Any) -> list[str]:
    stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
    parts: list[str] = []
    for one in function.parameters:
        if one.name in ("self", "cls"):
            continue
        if one.kind is griffe.ParameterKind.keyword_only and not any(part.startswith("*") for part in parts):
            parts.append("*")
        star = stars.get(one.kind, "")
        parts.append(_typed(star + one.name, one.annotation, None if star else one.default))
    return parts


def signature(thing: Any) -> str:
    """How a class is made or a function called, or what a constant is."""
    if isinstance(thing, griffe.Function):
        return _call(thing.name, _parameters(thing), f" -> {thing.returns}" if thing.returns else "")
    if not isinstance(thing, griffe.Class):
        return (
            _typed(thing.name, thing.annotation, thing.value) if thing.annotation else f"{thing.name} = {thing.value}"
        )
    if "__init__" in thing.members and "dataclass" not in thing.labels:
        return _call(f"class {thing.name}", _parameters(thing.members["__init__"]))
    members: dict[str, Any] = thing.members
    fields = [
        _typed(name, one.annotation, one.value)
        for name, one in members.items()
        if one.is_attribute and "property" not in one.labels and one.annotation
        if not str(one.annotation).startswith("ClassVar")
    ]
    decorators = " ".join(str(decorator.value) for decorator in thing.decorators)
    if fields and re.search(r"\b(dataclass|strict)\b", decorators):
        return _call(f"class {thing.name}", fields)
    return f"class {thing.name}({', '.join(map(str, thing.bases))})"


def rendered(thing: Any, anchors: dict[str, str]) -> str:
    """A docstring in Google's style as Markdown.

    Args:
        thing: What has the docstring.
        anchors: Name -> its heading on the page, for cross-references.
    """
    parts = []
    for section in thing.docstring.parse("google", **PARSING) if thing.docstring else ():
        title = SECTIONS.get(section.kind.value)
        if title is None:
            parts.append(str(section.value))
            continue
        parts.append(f"**{title}**")
        entries = [
            (getattr(one, "name", ""), one.annotation, " ".join(one.description.split())) for one in section.value
        ]
        if title in ("Returns", "Yields"):
            # What stands before a colon is taken for the type; where there is none, the type is the signature's.
            written = " ".join(thing.docstring.value.split())
            parts += [f"{kind}: {text}" if f"{kind}: {text}" in written else text for _, kind, text in entries]
        else:
            named = [(name or str(kind), text) for name, kind, text in entries]
            parts.append("\n".join(f"- {_names(name)}: {text}" for name, text in named))
    return re.sub(r"\[`([^`]+)`\](?!\()", lambda match: _reference(match[1], anchors), "\n\n".join(parts).strip())


def _names(names: str) -> str:
    return ", ".join(f"`{name.strip(' `')}`" for name in names.split(","))


def _reference(name: str, anchors: dict[str, str]) -> str:
    name = name.removeprefix("~")
    anchor = anchors.get(name) or anchors.get(name.partition(".")[0])
    return f"[`{name}`](#{anchor})" if anchor else f"`{name}`"


def entry(place: str, name: str, thing: Any, anchors: dict[str, str]) -> str:
    """The part of the page about one name.

    Args:
        place: The module it is imported from.
        name: The name.
        thing: What it is.
        anchors: As for [`rendered`].
    """
    path = thing.relative_package_filepath
    parts = [
        f"### {name}",
        f"`from {place} import {name}`, defined in [{path.relative_to('hf_glm_ernie')}](../{path})",
    ]
    parts += [f"```python\n{signature(thing)}\n```", rendered(thing, anchors)]
    for method in thing.members.values() if isinstance(thing, griffe.Class) else ():
        if method.name.startswith("_") or method.name in HOOKS or not method.docstring:
            continue
        if isinstance(method, griffe.Function):
            call = _call(f"{name}.{method.name}", _parameters(method))
        elif "property" in method.labels:
            call = f"{name}.{method.name}"
        else:
            continue
        parts.append(f"```python\n{call}\n```" if "\n" in call else f"**`{call}`**")
        parts.append(rendered(method, anchors))
    return "\n\n".join(part for part in parts if part)


def render() -> str:
    """The whole page.

    Raises:
        KeyError: `GROUPS` lacks a public name, or has one that is not there.
    """
    package = griffe.load("hf_glm_ernie", search_paths=[ROOT], allow_inspection=False)
    public = set(map(str, package.exports or ()))
    places = {title: [_place(name, public) for name in names] for title, names in GROUPS.items()}
    listed = [name for group in places.values() for place, name in group if place == "hf_glm_ernie"]
    if set(listed) != public or len(listed) != len(set(listed)):
        raise KeyError(
            f"GROUPS in docs/make_api.py: missing {sorted(public - set(listed))}, twice or not public: "
            f"{sorted({one for one in listed if listed.count(one) > 1 or one not in public})}"
        )
    anchors: dict[str, str] = {}
    for _, name in (one for group in places.values() for one in group):
        same = sum(anchor.partition("-")[0] == name.lower() for anchor in anchors.values())
        anchors[name] = f"{name.lower()}-{same}" if same else name.lower()  # `plan` and `Plan`
    contents = [
        f"| {title} | {', '.join(f'[{name}](#{anchors[name]})' for _, name in group)} |"
        for title, group in places.items()
    ]
    parts = [HEAD.rstrip(), "\n".join(["| | |", "|---|---|", *contents])]
    for title, group in places.items():
        parts.append(f"## {title}")
        for place, name in group:
            thing = package[f"{place}.{name}".removeprefix("hf_glm_ernie.")]
            parts.append(entry(place, name, thing.final_target if thing.is_alias else thing, anchors))
    return "\n\n".join(parts) + "\n"


def _place(name: str, public: set[str]) -> tuple[str, str]:
    file, _, own = name.rpartition(".")
    return ("hf_glm_ernie", own) if own in public else (f"hf_glm_ernie.{file}", own)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
