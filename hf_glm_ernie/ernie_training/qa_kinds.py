"""What a question asks for, read off its question word, so that scores can be reported by kind."""

KINDS = (
    ("why", ("为什么", "为何", "为啥", "何故", "原因", "why")),
    ("when", ("什么时候", "何时", "几时", "哪一年", "哪年", "哪天", "哪一天", "什么时间", "when", "what year")),
    ("how many", ("多少", "几", "多长", "多大", "多高", "多远", "多久", "how many", "how much", "how long")),
    ("where", ("哪里", "哪儿", "何处", "什么地方", "在哪", "哪个城市", "哪个国家", "哪个省", "where")),
    ("who", ("谁", "何人", "哪位", "什么人", "who", "whom", "whose")),
    ("how", ("怎么", "怎样", "如何", "how")),
    ("which", ("哪", "which")),
    ("what", ("什么", "何", "啥", "what")),
)
"""Kind -> its question words; the first kind that has one in the question is taken."""
OTHER = "other"


def question_kind(question: str) -> str:
    """The kind of a Chinese or English question, one of [`KINDS`] or `"other"`."""
    lower = question.lower()
    words = set("".join(char if char.isalnum() else " " for char in lower).split())
    for kind, marks in KINDS:
        if any((mark in words if mark.isascii() and " " not in mark else mark in lower) for mark in marks):
            return kind
    return OTHER


__all__ = ["KINDS", "OTHER", "question_kind"]
