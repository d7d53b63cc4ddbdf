"""What the page refuses before a model sees it, said in the language of the page."""

REFUSALS = {
    "text_empty": ("The text is empty.", "文本是空的。"),
    "text_long": (
        "The text has {count:,} characters; this page takes at most {most:,}.",
        "文本有 {count:,} 个字符，本页最多接受 {most:,} 个。",
    ),
    "blanks": (
        "The text has {count} blanks; at most {most} are filled at once.",
        "文本有 {count} 处空白，一次最多填 {most} 处。",
    ),
    "setting": ("{name} is {value!r}; it must be {allowed}.", "{name} 的值是 {value!r}，应为 {allowed}。"),
    "schema_empty": (
        "The schema is empty: name at least one thing to extract, one on each line.",
        "抽取结构是空的：请至少写一个要抽取的名称，每行一个。",
    ),
    "schema_long": (
        "The schema has {count:,} characters; at most {most:,} are taken.",
        "抽取结构有 {count:,} 个字符，最多接受 {most:,} 个。",
    ),
    "schema_names": (
        "The schema has {count} names; at most {most} are asked at once.",
        "抽取结构有 {count} 个名称，一次最多 {most} 个。",
    ),
    "schema_json": (
        "The schema is not JSON: line {line}, column {column}: {what}. Names stand in double quotes, as in "
        '["time", {{"company": ["founder"]}}]; or write a plain list, one name on each line.',
        "抽取结构不是合法的 JSON：第 {line} 行第 {column} 列：{what}。名称要用双引号，例如 "
        '["时间", {{"公司": ["创始人"]}}]；也可以写成普通列表，每行一个名称。',
    ),
    "schema_deep": ("The schema nests too deeply. Ask for less at once.", "抽取结构嵌套太深，请分开提问。"),
    "schema_head": (
        "Line {line} of the schema has nothing before its colon: {what!r}.",
        "抽取结构第 {line} 行的冒号前没有名称：{what!r}。",
    ),
    "schema_below": (
        "Line {line} of the schema has nothing behind its colon: {what!r}.",
        "抽取结构第 {line} 行的冒号后没有名称：{what!r}。",
    ),
    "choices_few": (
        "Write at least two choices, one on each line; there are {count}.",
        "请至少写两个选项，每行一个；现在有 {count} 个。",
    ),
    "choices_many": (
        "There are {count} choices; at most {most} are compared at once.",
        "有 {count} 个选项，一次最多比较 {most} 个。",
    ),
    "choice_long": (
        "A choice has {count} characters; at most {most} are taken.",
        "有一个选项长 {count} 个字符，最多接受 {most} 个。",
    ),
    "choice_twice": ("The choice {what!r} stands there twice.", "选项 {what!r} 出现了两次。"),
    "choice_blanks": (
        "The text has several blanks: leave one, which the choices compete for.",
        "文本有多处空白：请只留一处，由各选项来争。",
    ),
    "choice_kind": (
        "Choices are scored in the place of a [MASK] or a [gMASK], not of a [sMASK].",
        "选项只能放在 [MASK] 或 [gMASK] 的位置上打分，不能放在 [sMASK] 的位置上。",
    ),
    "choice_room": (
        "Text and choices take {count:,} tokens, and the model's context has {most:,}. Shorten one.",
        "文本和选项共 {count:,} 个词元，而模型的上下文是 {most:,} 个，请缩短一些。",
    ),
}
"""What is wrong -> how the page says it, in English and in Chinese."""

LANGUAGES = ("en", "zh")


class Refusal(ValueError):
    """The page does not take what it was given.

    Args:
        key: Of `REFUSALS`.
        **values: What its text names.
    """

    def __init__(self, key: str, **values: object):
        super().__init__(REFUSALS[key][0].format(**values))
        self.key, self.values = key, values

    def text(self, language: str) -> str:
        """The reason, in `"en"` or `"zh"`."""
        return REFUSALS[self.key][LANGUAGES.index(language)].format(**self.values)


__all__ = ["LANGUAGES", "REFUSALS", "Refusal"]
