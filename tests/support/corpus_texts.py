"""Made-up documents, Chinese, English and mixed, with everything in them that preparing a corpus looks for."""

import random
import re

CHINESE = re.findall(r"\S+", "模型 语言 数据 城市 图书馆 研究 人员 历史 发现 新的 方法 学习 世界 故事 Python 3.5")
ENGLISH = re.findall(r"\S+", "the a model of language don't city library researchers found methods in 3.5 km away")
MARKS = ("。", "！", "？", "！！！", "？！", "……", "；", "。”")
ENGLISH_MARKS = (".", "!", "??", "...", '."')


def sentence(rng: random.Random, language: str) -> str:
    count = rng.choice((2, 5, 9, 10, 11, 14, 25))
    if language == "Chinese":
        pause = rng.randrange(1, count)
        words = [rng.choice(CHINESE) for _ in range(count)]
        return "".join(words[:pause]) + rng.choice("，、：") + "".join(words[pause:]) + rng.choice(MARKS)
    return " ".join(rng.choice(ENGLISH) for _ in range(count)) + rng.choice(ENGLISH_MARKS) + " "


def document(rng: random.Random) -> str:
    """Paragraphs of sentences, some of them repeated, blanks and marks in a row, line ends of any kind."""
    language = rng.choice(("Chinese", "Chinese", "English"))
    lines: list[str] = []
    for _ in range(rng.randint(1, 5)):
        sentences = [sentence(rng, language) for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.2:
            sentences += sentences[-rng.randint(1, 2) :] * rng.randint(1, 3)
        if rng.random() < 0.1:
            sentences.insert(0, rng.choice(("标题", "😂😂😂", "  ", "\t\t——", "((a))", "🇨🇳🇨🇳")))
        lines.append("".join(sentences) if rng.random() < 0.9 else "".join(sentences).replace(" ", "   "))
        if rng.random() < 0.2:
            lines += lines[-rng.randint(1, 2) :]
    return rng.choice(("\n", "\r\n", "\n\n", "\n \n")).join(lines) + rng.choice(("", "\n", "！！！"))


def corpus(count: int, seed: int = 0) -> list[str]:
    """Documents of which some are copies, some copies with another ending, and some empty."""
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        draw = rng.random()
        if texts and draw < 0.15:
            texts.append(rng.choice(texts))
        elif texts and draw < 0.25:
            texts.append(f"{rng.choice(texts)}\n{''.join(rng.sample(CHINESE, 6))}。")
        elif draw < 0.28:
            texts.append(rng.choice(("", " \n ", "好。", "？？？")))
        else:
            texts.append(document(rng))
    return texts
