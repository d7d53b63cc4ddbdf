"""Writes docs/api.md, the reference of every public name, from the docstrings.

    python docs/make_api.py

Everything is read from the source text with `ast`; nothing is imported. So the page does not depend on the versions of
the libraries, and names whose libraries are not installed stand in it, too. `GROUPS` says what the page holds: every
name of `hf_glm_ernie.__all__`, and what is imported from a file of the package (written `file.name`).
`tests/test_docs.py` holds the committed page against this script.
"""

import ast
import inspect
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hf_glm_ernie"
PAGE = ROOT / "docs" / "api.md"
WIDTH = 100  # of a signature on one line

GROUPS = {
    "GLM-130B": (
        *("Glm130bConfig", "Glm130bTokenizer", "Glm130bModel", "Glm130bForCausalLM", "Glm130bPreTrainedModel"),
        *("generation_glm130b.Glm130bGenerationMixin", "fill_blanks", "FilledText"),
        "Glm130bTextGenerationPipeline",
    ),
    "ERNIE's encoders": (
        *("ErnieTokenizer", "sentence_embeddings", "uie", "utc"),
        *("ErnieForUIE", "ErnieUIEConfig", "ErnieUIEOutput", "ErnieForUTC", "ErnieUTCConfig", "ErnieUTCOutput"),
    ),
    "ERNIE 3.0's unified model": (
        *("Ernie3Config", "Ernie3Tokenizer", "split_sentences", "Ernie3Model", "Ernie3ModelOutput"),
        *("Ernie3PreTrainedModel", "Ernie3ForCausalLM", "Ernie3CausalLMOutput"),
        *("generation_ernie3.Ernie3GenerationMixin", "Ernie3Memories", "Ernie3ForPreTraining"),
        *("Ernie3ForPreTrainingOutput", "Ernie3ForMaskedLM", "Ernie3ForSequenceClassification"),
        *("Ernie3ForTokenClassification", "Ernie3ForQuestionAnswering", "Ernie3ForMultipleChoice"),
    ),
    "ERNIE 3.0: prompts and scores": (
        *("build_control_prompt", "GENRES", "SENTIMENTS", "zero_shot", "ZeroShotAnswer", "pair_scores", "rerank"),
        "RankedText",
    ),
    "ERNIE 3.0: pre-training": (
        *("Ernie3PretrainingTrainer", "Ernie3PretrainingMixture", "Ernie3PretrainingCollator", "ProgressiveSchedule"),
        *("MemoryBank", "layerwise_lr_groups", "KnowledgeMasking", "Lexicon", "DocumentTokens", "DocumentStreams"),
        *("SentenceReordering", "SentenceDistance", "label_permutation", "permutation_classes", "permutation_label"),
        *("KnowledgeTextPrediction", "DistantSupervision", "sentences_with", "CredibleRows", "AdversarialTexts"),
        *("ModelContinuations", "ControllableLM"),
    ),
    "ERNIE 3.0: distillation": (
        *("OnlineDistillation", "Ernie3DistillationTrainer", "add_auxiliary_layer", "drop_auxiliary_layer"),
    ),
    "Quantized weights": (
        *("WeightOnlyConfig", "quantization_weight_only.repack"),
        *("weight_only_cpu.build_cpu_kernel", "weight_only_cpu.cpu_kernel_is_ready"),
    ),
    "Planning devices": ("planner.devices.plan", "planner.devices.Plan", "planner.devices.DevicePlan"),
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
used; B is always the batch.
"""

Node = ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\s*$")
ENTRY = re.compile(r"^(\*{0,2}[\w., `\[\]]+?)(?: \([^)]*\))?: (.*)$")


@dataclass(frozen=True)
class Definition:
    """Where a name is defined.

    Attributes:
        file: Name of the file in the package, without `.py`.
        node: Its class, function or assignment.
        note: The text behind an assignment, or a comment before it.
    """

    file: str
    node: Node
    note: str


@cache
def tree_of(file: str) -> ast.Module:
    """The parsed file of the package."""
    return ast.parse((PACKAGE / (file.replace(".", "/") + ".py")).read_text(encoding="utf-8"))


def public_names() -> dict[str, str]:
    """Name of `hf_glm_ernie.__all__` -> the file it is imported from."""
    tree = tree_of("__init__")
    # Imports for type checkers among them, which stand for those that are made when they are asked for.
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    files = {alias.name: str(node.module) for node in imports for alias in node.names}
    listed = next(node for node in tree.body if isinstance(node, ast.Assign) and _target(node) == "__all__")
    return {name: files[name] for name in ast.literal_eval(listed.value)}


def find(file: str, name: str) -> Definition:
    """The definition of a name in a file, or in the file that one has it from.

    Raises:
        KeyError: there is none.
    """
    body = tree_of(file).body
    found: Definition | None = None
    for i, node in enumerate(body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            found = Definition(file, node, "")  # of overloads the last one counts
        elif isinstance(node, ast.Assign | ast.AnnAssign) and _target(node) == name:
            behind = body[i + 1] if i + 1 < len(body) else None
            is_text = isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
            note = behind.value.value if is_text else _comment_before(file, node.lineno)  # type: ignore[union-attr]  # is_text says so
            found = Definition(file, node, str(note))
        elif isinstance(node, ast.ImportFrom) and node.level == 1 and found is None:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(f"{file.rpartition('.')[0]}.{node.module}".lstrip("."), alias.name)
    if found is None:
        raise KeyError(f"hf_glm_ernie/{file}.py does not define {name}")
    return found


def _target(node: ast.Assign | ast.AnnAssign) -> str | None:
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    return target.id if isinstance(target, ast.Name) else None


def _comment_before(file: str, line: int) -> str:
    lines = (PACKAGE / (file.replace(".", "/") + ".py")).read_text(encoding="utf-8").splitlines()
    comment: list[str] = []
    while line >= 2 and lines[line - 2].startswith("#"):
        line -= 1
        comment.insert(0, lines[line - 1].lstrip("# "))
    return " ".join(comment)


def signature(node: Node) -> str:
    """How a class is made or a function called, or what a constant is."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return ast.unparse(node)
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return _call(node.name, _parameters(node.args), returns)
    init = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if init is not None:
        return _call(f"class {node.name}", _parameters(init.args), "")
    names = {ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in node.decorator_list}
    fields = [
        ast.unparse(one)
        for one in node.body
        if isinstance(one, ast.AnnAssign) and not ast.unparse(one.annotation).startswith("ClassVar")
    ]
    if fields and names & {"dataclass", "strict"}:
        return _call(f"class {node.name}", fields, "")
    return f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"


def _parameters(arguments: ast.arguments) -> list[str]:
    ordered = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(ordered) - len(arguments.defaults))
    parts = [_parameter(one, value) for one, value in zip(ordered, [*defaults, *arguments.defaults], strict=True)]
    parts = parts[1:] if ordered and ordered[0].arg in ("self", "cls") else parts
    if arguments.vararg:
        parts.append(f"*{_parameter(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += [_parameter(one, value) for one, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return parts + ([f"**{_parameter(arguments.kwarg, None)}"] if arguments.kwarg else [])


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    typed = f"{argument.arg}: {ast.unparse(argument.annotation)}" if argument.annotation else argument.arg
    if default is None:
        return typed
    return f"{typed} = {ast.unparse(default)}" if argument.annotation else f"{typed}={ast.unparse(default)}"


def _call(name: str, parts: list[str], returns: str) -> str:
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){returns}"])


def rendered(text: str, anchors: dict[str, str]) -> str:
    """A docstring in Google's style as Markdown.

    Args:
        text: The docstring, its indentation removed.
        anchors: Name -> its heading on the page, for cross-references.
    """
    out: list[str] = []
    section, fenced = "", False
    for line in text.splitlines():
        if line.startswith("```"):
            out += [""] if section else []
            fenced, section = not fenced, ""
        heading = SECTION.match(line)
        if heading and not fenced:
            section = heading[1]
            out += ["", f"**{section}**", ""]
        elif not section:
            out.append(line)
        elif line and not line.startswith(" "):
            section = ""
            out += ["", line]
        elif line:
            _section_line(out, section, line)
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()
    return re.sub(r"\[`([^`]+)`\](?!\()", lambda match: _reference(match[1], anchors), body)


def _section_line(out: list[str], section: str, line: str) -> None:
    """One line below a heading: a new entry where it is indented once, else the rest of the one above."""
    text = line.strip()
    entry = ENTRY.match(text) if section not in ("Returns", "Yields") else None
    if line.startswith("     ") or not (entry or out[-1] == ""):
        out[-1] += f" {text}"
    elif entry:
        names = ", ".join(f"`{name.strip(' `')}`" for name in entry[1].split(","))
        out.append(f"- {names}: {entry[2]}")
    else:
        out.append(text)


def _reference(name: str, anchors: dict[str, str]) -> str:
    name = name.removeprefix("~")
    anchor = anchors.get(name) or anchors.get(name.partition(".")[0])
    return f"[`{name}`](#{anchor})" if anchor else f"`{name}`"


def entry(file: str, name: str, at_top: bool, anchors: dict[str, str]) -> str:
    """The part of the page about one name.

    Args:
        file: The file it is imported from.
        name: The name.
        at_top: Whether `hf_glm_ernie` itself has it.
        anchors: As for [`rendered`].
    """
    found = find(file, name)
    node = found.node
    path = found.file.replace(".", "/") + ".py"
    source = f"[{path}](../hf_glm_ernie/{path})"
    place = "hf_glm_ernie" if at_top else f"hf_glm_ernie.{file}"
    parts = [f"### {name}", f"`from {place} import {name}`, defined in {source}"]
    parts.append(f"```python\n{signature(node)}\n```")
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return "\n\n".join([*parts, inspect.cleandoc(found.note)]).rstrip()
    parts.append(rendered(inspect.cleandoc(ast.get_docstring(node) or ""), anchors))
    if isinstance(node, ast.ClassDef):
        parts += _methods(node, anchors)
    return "\n\n".join(part for part in parts if part)


def _methods(node: ast.ClassDef, anchors: dict[str, str]) -> list[str]:
    parts = []
    for one in node.body:
        if not isinstance(one, ast.FunctionDef) or one.name.startswith("_") or one.name in HOOKS:
            continue
        if not ast.get_docstring(one):
            continue
        decorators = {ast.unparse(decorator) for decorator in one.decorator_list}
        if any(decorator.endswith(".setter") for decorator in decorators):
            continue
        call = f"{node.name}.{one.name}"
        if "property" not in decorators:
            call = _call(call, _parameters(one.args), "")
        parts.append(f"```python\n{call}\n```" if "\n" in call else f"**`{call}`**")
        parts.append(rendered(inspect.cleandoc(ast.get_docstring(one) or ""), anchors))
    return parts


def render() -> str:
    """The whole page.

    Raises:
        KeyError: `GROUPS` lacks a public name, or has one that is not there.
    """
    public = public_names()
    places = {title: [_place(name, public) for name in names] for title, names in GROUPS.items()}
    listed = [name for group in places.values() for _, name, at_top in group if at_top]
    missing = sorted(set(public) - set(listed))
    if missing or len(listed) != len(set(listed)):
        raise KeyError(f"GROUPS in docs/make_api.py: missing {missing}, twice {sorted({*listed} - {*public})}")
    anchors: dict[str, str] = {}
    for _, name, _ in (one for group in places.values() for one in group):
        same = sum(anchor.partition("-")[0] == name.lower() for anchor in anchors.values())
        anchors[name] = f"{name.lower()}-{same}" if same else name.lower()  # `plan` and `Plan`
    contents = []
    for title, group in places.items():
        links = ", ".join(f"[{name}](#{anchors[name]})" for _, name, _ in group)
        contents.append(f"| {title} | {links} |")
    parts = [HEAD.rstrip(), "\n".join(["| | |", "|---|---|", *contents])]
    for title, group in places.items():
        parts.append(f"## {title}")
        parts += [entry(file, name, at_top, anchors) for file, name, at_top in group]
    return "\n\n".join(parts) + "\n"


def _place(name: str, public: dict[str, str]) -> tuple[str, str, bool]:
    file, _, own = name.rpartition(".")
    return (public[own], own, True) if own in public else (file, own, False)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
