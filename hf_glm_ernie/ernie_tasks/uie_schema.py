"""Schemas of information extraction: what is asked of a text, and the prompt that asks it.

A schema is a tree of names. `"时间"` asks for times; `{"歌曲名称": ["歌手", "专辑"]}` asks for songs and, of every
song found, for its singer and album; `{"地震触发词": ["震级", "时间"]}` is an event with its arguments; a name that
ends in options, `"情感倾向[正向,负向]"`, asks for one of them. Lists mix these and nest to any depth.

Source: PaddleNLP 2.8.1, `paddlenlp/taskflow/information_extraction.py` (`_build_tree`, `_multi_stage_predict`) and
`paddlenlp/taskflow/utils.py` (`dbc2sbc`).
"""

import re
from dataclasses import dataclass, field
from typing import Any

from hf_glm_ernie.host_arguments import checked_list, checked_texts

LANGUAGES = ("zh", "en")

ASPECTS = {"zh": "评价维度", "en": "Aspect"}
"""Language -> what aspects are called in a schema and in answers."""

DEEPEST = 64
"""Levels of a schema; every one is a pass over the texts."""

# Full-width forms of ASCII, which prompts are trained without.
HALF_WIDTH = {0xFEE0 + code: code for code in range(0x21, 0x7F)}

OPTIONS = re.compile(r"\[.*?\]$")


@dataclass
class SchemaNode:
    """A name in a schema.

    Attributes:
        name: As the schema spells it; it is the key of the answers.
        children: What is asked of every answer.
    """

    name: str
    children: list["SchemaNode"] = field(default_factory=list)

    @property
    def offers_options(self) -> bool:
        """Whether the prompt holds the possible answers, as in `情感倾向[正向,负向]`."""
        return "[" in self.name.translate(HALF_WIDTH)

    def prompt(self, subject: str | None = None, language: str = "zh") -> str:
        """Spells out the question, ASCII in half width.

        Args:
            subject: The answer that is asked about, or `None` at the top of the schema.
            language: `"zh"`: `subject的name`; `"en"`: `name of subject`, with options last.

        Returns:
            The prompt that stands before the text.
        """
        if subject is None:
            question = self.name
        elif language == "zh":
            question = f"{subject}的{self.name}"
        else:
            options = OPTIONS.search(self.name)
            question = f"{self.name} of {subject}"
            if options:
                head = self.name[: self.name.find("[", 1)].strip()
                question = f"{head} of {subject} {options.group()}"
        return question.translate(HALF_WIDTH)


def read_schema(schema: Any) -> list[SchemaNode]:
    """Reads a schema in any of its forms.

    Args:
        schema: A name, a dict from names to what is asked of their answers, or a list of these.

    Returns:
        The names at the top, each with its children. A name that stands twice in one place is asked once, with the
        children of both.

    Raises:
        TypeError: something else than names, dicts and lists.
        ValueError: an empty schema or name, brackets that do not enclose options, or more than `DEEPEST` levels.
    """
    tree: dict[str, Any] = {}
    _add(tree, schema, "schema")
    if not tree:
        raise ValueError(
            f"The schema {schema!r} is empty: name at least one thing to extract, as in ['时间', '地点']."
        )
    return _nodes(tree)


def read_aspects(nodes: list[SchemaNode], aspects: Any, language: str) -> tuple[str, list[SchemaNode], list[str]]:
    """What is asked about given aspects.

    Args:
        nodes: Of the schema: what is asked of every aspect, or the name of aspects with that below it.
        aspects: The aspects.
        language: `"zh"` or `"en"`.

    Returns:
        The name of aspects, what is asked of each, and the aspects, each once.

    Raises:
        TypeError: aspects that are no list of strings.
        ValueError: no aspects, a blank one, or a schema that asks nothing about them.
    """
    found = checked_list(aspects, "aspects", "a list of strings")
    if not found:
        raise ValueError("aspects is empty: name at least one, as in ['房间', '位置'], or leave aspects out.")
    for i, aspect in enumerate(checked_texts(found, "aspects")):
        if not aspect.strip():
            raise ValueError(f"aspects[{i}] is blank ({aspect!r}): say what is asked about.")
    name = ASPECTS[language]
    asked = nodes[0].children if [node.name for node in nodes] == [name] else nodes
    if not asked:
        raise ValueError(
            f"The schema asks nothing about the aspects: name something below {name!r}, as in ['观点词']."
        )
    return name, asked, list(dict.fromkeys(found))


def _add(tree: dict[str, Any], schema: Any, where: str, depth: int = 0) -> None:
    """Adds the names of a schema to a tree of nested dicts."""
    if depth > DEEPEST:
        raise ValueError(f"The schema nests more than {DEEPEST} deep: {where[:80]}... Ask for less at once.")
    if isinstance(schema, str):
        tree.setdefault(_checked_name(schema, where), {})
    elif isinstance(schema, dict):
        for name, below in schema.items():
            _add(tree.setdefault(_checked_name(name, where), {}), below, f"{where}[{name!r}]", depth + 1)
    elif isinstance(schema, list | tuple):
        for i, entry in enumerate(schema):
            if isinstance(entry, list | tuple):
                raise TypeError(
                    f"{where}[{i}] is a list inside a list: {entry!r}. An entry is a name, or a dict {{name: what is "
                    "asked of its answers}."
                )
            _add(tree, entry, f"{where}[{i}]")
    else:
        raise TypeError(
            f"{where} is a {type(schema).__name__}: {schema!r}. A schema is a name, a list of names and dicts, or a "
            "dict {name: what is asked of its answers}."
        )


def _nodes(tree: dict[str, Any]) -> list[SchemaNode]:
    return [SchemaNode(name, _nodes(below)) for name, below in tree.items()]


def _checked_name(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{where} names {name!r}, a {type(name).__name__}; a name is a string.")
    if not name.strip():
        raise ValueError(f"{where} holds an empty name ({name!r}): say what to extract.")
    plain = name.translate(HALF_WIDTH)
    if plain.count("[") != plain.count("]") or plain.find("]") < plain.find("["):
        raise ValueError(
            f"{where} holds {name!r}, whose brackets do not enclose options. Options follow the name, as in "
            "'情感倾向[正向,负向]'."
        )
    return name


__all__ = ["ASPECTS", "LANGUAGES", "SchemaNode", "read_aspects", "read_schema"]
