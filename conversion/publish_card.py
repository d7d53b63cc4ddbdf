"""The model card of a published repository."""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

import hf_glm_ernie
from hf_glm_ernie.weight_only import METHOD

from .folder_files import count
from .markdown import code, plain, table
from .publish_classes import AS_SOURCE, License, Published
from .publish_config import SIZES, PublishError
from .publish_settings import refuse_secrets

PACKAGE = "hf-glm-ernie"
INSTALL = "`pip install .` in a checkout of it"  # it is on no index


@dataclass(frozen=True)
class CardTexts:
    """What only the publisher knows.

    Attributes:
        license: Identifier, name and link; name and link only where the identifier is "other".
        base_model: `OWNER/NAME` of the repository these weights were made from.
        base_model_relation: `quantized`, `finetune`, ...
        about: Markdown that goes below the title.
        parity: Further rows of the table of checks: what, compared with, result.

    Raises:
        PublishError: a licence or relation that would not stay one line of the card's metadata, or no web address.
    """

    license: License
    base_model: str | None = None
    base_model_relation: str | None = None
    about: str = ""
    parity: tuple[tuple[str, str, str], ...] = ()

    def __post_init__(self) -> None:
        identifier, name, link = self.license
        for option, value in (("--license", identifier), ("--license-name", name)):
            if value is not None and not re.fullmatch(r"[\w.+ -]{1,100}", value):
                raise PublishError(f"{option} {value!r}: letters, digits, dots and dashes are expected.")
        if link is not None and not re.fullmatch(r"https?://[^\s()<>\"']+", link):
            raise PublishError(f"--license-link {link!r}: the address of a page is expected, https://...")
        refuse_secrets(self.about, "--about")


def model_card(
    repo: str,
    row: Published,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    texts: CardTexts,
    carries_code: bool,
    has_tokenizer: bool,
    checks: Sequence[tuple[str, str, str]],
    sha256: Mapping[str, str],
) -> ModelCard:
    """README.md of a repository.

    Args:
        repo: `OWNER/NAME`.
        row: What its model type needs.
        config: The repository's config.json.
        record: `conversion.json`; empty where a converter did not write the folder.
        texts: What the publisher says.
        carries_code: Whether it opens with `trust_remote_code=True`.
        has_tokenizer: Whether it holds a tokenizer.
        checks: Rows of what was measured: what, compared with, result.
        sha256: File -> SHA-256.
    """
    architecture = config["architectures"][0]
    identifier, name, link = texts.license
    data = ModelCardData(
        language=list(row.language),
        license=identifier,
        license_name=name,
        license_link=link,
        library_name="transformers",
        pipeline_tag=row.pipelines[architecture],
        tags=[*row.tags, *(["custom_code"] if carries_code else []), *_quantization_tags(config)],
        base_model=texts.base_model,
    )
    if texts.base_model_relation:
        data["base_model_relation"] = texts.base_model_relation
    body = CARD.format(
        repo=repo,
        kind=_kind(row, config),
        about=f"{texts.about.strip()}\n\n" if texts.about.strip() else "",
        how=_how(row, carries_code),
        example=_example(repo, row, architecture, carries_code, has_tokenizer),
        without_tokenizer="" if has_tokenizer else "\nThis repository has no tokenizer.\n",
        origin=_origin(config, record),
        checks=table(("what", "compared with", "result"), [*checks, *texts.parity]),
        checksums="\n".join(f"{value}  {file}" for file, value in sorted(sha256.items())),
        licence=_licence(texts.license, carries_code),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _kind(row: Published, config: Mapping[str, Any]) -> str:
    settings = config.get("quantization_config")
    dtype = plain(config.get("dtype", "unknown numbers"))
    if settings is None:
        numbers = dtype
    elif settings.get("quant_method") == METHOD:
        numbers = f"{settings['bits']}-bit integers in the linears, {dtype} else"
    else:
        numbers = f"quantized ({plain(settings.get('quant_method'))})"
    sizes = {name: plain(config.get(name, "?")) for name in SIZES}
    return (
        f"{row.title}, `{config['architectures'][0]}`: {sizes['num_hidden_layers']} layers, hidden size "
        f"{sizes['hidden_size']}, {sizes['num_attention_heads']} heads, vocabulary {sizes['vocab_size']}, "
        f"{sizes['max_position_embeddings']} positions, {numbers}."
    )


def _quantization_tags(config: Mapping[str, Any]) -> list[str]:
    settings = config.get("quantization_config") or {}
    return [f"int{settings['bits']}"] if settings.get("quant_method") == METHOD else []


def _how(row: Published, carries_code: bool) -> str:
    needed = host_requirement()
    if not carries_code:
        return f'Opens with `pip install "{needed}" torch`; no code comes with this repository.'
    instead = "" if row.native else " Where that package is imported, its model classes are taken instead."
    return (
        f'Opens with `pip install "{needed}" torch` and `trust_remote_code=True`: the classes are in this '
        f"repository, those of {PACKAGE} {hf_glm_ernie.__version__}.{instead} Pass `revision=` to stay with the code "
        "you have read."
    )


def host_requirement() -> str:
    """The versions of transformers this package works with, as pip spells them."""
    try:
        requirements = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        requirements = []
    return next((line for line in requirements if re.match(r"transformers\b", line)), "transformers")


def _example(repo: str, row: Published, architecture: str, carries_code: bool, has_tokenizer: bool) -> str:
    auto = row.auto_classes[architecture]
    trust = ", trust_remote_code=True" if carries_code else ""
    open_model = f'model = {auto}.from_pretrained("{repo}"{trust})'
    if not has_tokenizer:
        return f"from transformers import {auto}\n\n{open_model}"
    lines = [f'tokenizer = AutoTokenizer.from_pretrained("{repo}"{trust})', open_model]
    if auto == "AutoModelForCausalLM":
        lines += [
            'inputs = tokenizer("Ng is an adjunct professor at [MASK].", return_tensors="pt").to(model.device)',
            "outputs = model.generate(**inputs)",
            'print(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    elif row.extra_inputs or architecture == "ErnieForMultipleChoice":
        lines += [f"help(model.forward)  # the inputs; {PACKAGE} ({INSTALL}) has functions that make them"]
    else:
        lines += ['outputs = model(**tokenizer("巴黎是法国的首都。", return_tensors="pt"))']
    return f"from transformers import {auto}, AutoTokenizer\n\n" + "\n".join(lines)


def _origin(config: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """How the weights were made, from the converter's record; it came out of a file, so anything may be missing."""
    if not record:
        return "Saved with `save_pretrained`; the folder has no record of a conversion."
    if "iteration" in record:
        degree = record.get("tensor_parallel")
        source = (
            f"Iteration {plain(record['iteration'])} of a {'' if degree is None else f'{degree}-way '}tensor-parallel "
            "checkpoint in the released format"
        )
    elif "original_class" in record:
        source = f"PaddleNLP's {plain(record['original_class'])}, {plain(record.get('kind', 'in its own format'))}"
    else:
        source = f"The parameters of a static graph ({plain(record.get('kind', 'of Paddle'))})"
    made_by = f"{PACKAGE} {plain(record.get('converter', 'of an unknown version'))}"
    lines = [f"{source}, converted with {made_by} (torch {plain(record.get('torch', 'unknown'))})."]
    if record.get("bits") is not None:
        lines.append(f"The linears' weights were quantized on the way (`--bits {record['bits']}`), one scale a row.")
    elif config.get("quantization_config") is not None:
        lines.append("The source was quantized; its integers and scales are rearranged, not changed.")
    else:
        lines.append("Weights are rearranged, not changed, unless the conversion was told another number format.")
    dropped = record.get("dropped") or {}
    if dropped:
        lines.append(f"{count(len(dropped), 'tensor')} of the source left out; `conversion.json` names them.")
    return " ".join(lines)


def _licence(chosen: License, carries_code: bool) -> str:
    identifier, name, link = chosen
    if chosen == AS_SOURCE:
        weights = "Whoever made the source checkpoint sets the licence of the weights."
    elif link:
        weights = f"The weights are under [{plain(name)}]({link})."
    else:
        weights = f"The weights are under {code(identifier)}."
    return weights + (" The code files are under Apache-2.0." if carries_code else "")


CARD = """# {repo}

{kind}

{about}{how}

```python
{example}
```
{without_tokenizer}
## Origin

{origin}

## Checked before publication

{checks}

## Checksums

For `sha256sum --check`:

```text
{checksums}
```

## Licence

{licence}
"""


__all__ = ["PACKAGE", "CardTexts", "host_requirement", "model_card"]
