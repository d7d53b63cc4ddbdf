"""Writes made-up orders with known answers: what a label tool exports, and rows for every task that ERNIE is tuned to.

    python examples/made_up_labels.py --output orders --texts 2000

Nobody's data can be shipped, so the guide and the benchmarks label, train, measure and shrink on these. A text is what
a shop reads: one order or two, what is asked for, and sentences without anything to find. Names are put together from
parts, so that a text of dev or test holds names which training never read as a whole. Written are:

- `orders.jsonl`: doccano's export of entities (顾客, 商品, 城市, 时间, 价格) and relations (商品 -> 买家, 价格);
- `requests.json`: Label Studio's export of classes, one or two a text of six (`requests.txt` names them);
- `tags/`, `classes/`, `questions/`: train, dev and test (8:1:1) for `--task tokens`, `classification` and `qa`;
- `passages/`: the same of questions, texts that answer them and a text of the same city that does not, for
  `train_retrieval.py`;
- `unlabelled.txt`: as many texts more, without any answer.

The same seed gives the same files.
"""

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

PARTS = {
    "顾客": (
        ("陈", "林", "周", "吴", "孙", "马", "高", "何", "宋", "谢", "韩", "唐", "于", "董"),
        ("明远", "晓雯", "建国", "丽华", "海燕", "志强", "文博", "春生", "秀兰", "天宇", "雪梅", "静", "伟", "敏"),
    ),
    "商品": (
        ("青云", "远山", "蓝海", "星河", "金桥", "东湖", "北辰", "新月", "长风", "白鹿", "明珠", "春雨"),
        ("手机", "电脑", "雨伞", "茶壶", "台灯", "书包", "自行车", "钢琴", "风筝", "毛衣", "水杯", "地图"),
    ),
    "城市": (
        ("杭州", "成都", "武汉", "西安", "南京", "青岛", "大连", "苏州", "昆明", "长沙", "厦门", "天津", "上海"),
    ),
    "时间": (tuple(f"{month}月" for month in range(1, 13)), tuple(f"{day}日" for day in range(1, 29))),
    "价格": (tuple(str(number) for number in range(20, 900, 7)), ("元",)),
}
LABELS = tuple(PARTS)
RELATIONS = {"买家": "顾客", "价格": "价格"}  # of 商品
ORDERS = (
    "{顾客}{时间}买了{商品}，花了{价格}，要送到{城市}。",
    "{时间}，{顾客}从{城市}下单，买的是{商品}，一共{价格}。",
    "{商品}是{顾客}在{时间}买的，{价格}，送到{城市}。",
    "我是{顾客}，{时间}付了{价格}，买了一个{商品}，人在{城市}。",
    "{城市}的{顾客}{时间}来信，说的是{商品}，当时付了{价格}。",
    "{顾客}想问{商品}的事，{时间}买的，{价格}，地址在{城市}。",
)
REQUESTS = {
    "查物流": ("请问东西到哪里了？", "到现在还没有收到，走到哪里了？", "过了三天还没有送来。", "什么时候可以送到？"),
    "退款": ("不想要了，请把钱退回来。", "请退钱。", "钱什么时候退回来？", "东西不要了，钱要退。"),
    "换新": ("想换一个大的。", "可以换一个新的吗？", "大小不对，要换。", "请换一个白色的来。"),
    "开发票": ("请开一张发票。", "发票没有收到。", "发票上的名字写错了。", "要公司的发票。"),
    "投诉": ("等了很久也没有人说话，太差了。", "送货的人很不好。", "这样的店，下次不来了！", "说了三次也没有人管。"),
    "感谢": ("东西很好，谢谢。", "送得很快，真好。", "家里人都喜欢。", "比想的还要好。"),
}
ASIDES = ("今天下雨。", "早上好！", "我们住在河边。", "家里有一只猫。", "天气冷了。")
QUESTIONS = {
    "顾客": "谁买了{商品}？",
    "商品": "{顾客}买了什么？",
    "城市": "{商品}的买家在哪个城市？",
    "时间": "{商品}是什么时候买的？",
    "价格": "{商品}花了多少钱？",
}
SEARCHED = "{城市}的{顾客}买了什么？"
SPLITS = (("train", 0.8), ("dev", 0.1), ("test", 0.1))


@dataclass(frozen=True)
class Entity:
    """A span of the text, its end excluded."""

    label: str
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class LabelledText:
    """A text and all that is known about it.

    Attributes:
        text: One or two orders, a request or two, asides.
        orders: Of each order the entity of every label.
        requests: Names of what is asked for.
    """

    text: str
    orders: tuple[dict[str, Entity], ...]
    requests: tuple[str, ...]

    @property
    def entities(self) -> list[Entity]:
        """In the order of the text."""
        return sorted((one for order in self.orders for one in order.values()), key=lambda one: one.start)


def make_texts(number: int, seed: int = 0, two_orders: float = 0.2) -> list[LabelledText]:
    """Makes up texts, no two alike; `two_orders` is the share of those with two orders."""
    rng = random.Random(seed)
    made: dict[str, LabelledText] = {}
    while len(made) < number:
        one = _make_text(rng, 2 if rng.random() < two_orders else 1)
        made.setdefault(one.text, one)
    return list(made.values())


def _make_text(rng: random.Random, number: int) -> LabelledText:
    text, orders = "", []
    taken: set[str] = set()
    for _ in range(number):
        text += rng.choice(ASIDES) if rng.random() < 0.2 else ""
        names = {label: _name(label, rng, taken) for label in LABELS}
        order: dict[str, Entity] = {}
        for piece in rng.choice(ORDERS).replace("}", "{").split("{"):
            written = names.get(piece, piece)
            if piece in names:
                order[piece] = Entity(piece, len(text), len(text) + len(written), written)
            text += written
        orders.append(order)
    requests = rng.sample(sorted(REQUESTS), rng.choice((1, 1, 2)))
    text += "".join(rng.choice(REQUESTS[name]) for name in requests)
    return LabelledText(text, tuple(orders), tuple(requests))


def _name(label: str, rng: random.Random, taken: set[str]) -> str:
    """A name that the text does not hold yet."""
    while True:
        name = "".join(rng.choice(part) for part in PARTS[label])
        if name not in taken:
            taken.add(name)
            return name


def doccano_lines(texts: Iterable[LabelledText]) -> Iterable[dict[str, Any]]:
    """Export of doccano: entities and relations."""
    number = 0
    for one in texts:
        entities, relations = [], []
        for order in one.orders:
            ids = {}
            for entity in order.values():
                ids[entity.label] = number
                entities.append(
                    {"id": number, "label": entity.label, "start_offset": entity.start, "end_offset": entity.end}
                )
                number += 1
            for kind, label in RELATIONS.items():
                relations.append({"id": number, "from_id": ids["商品"], "to_id": ids[label], "type": kind})
                number += 1
        yield {"text": one.text, "entities": entities, "relations": relations}


def label_studio_tasks(texts: Iterable[LabelledText]) -> list[dict[str, Any]]:
    """Label Studio's export of classes."""
    return [
        {"data": {"text": one.text}, "annotations": [{"result": [{"value": {"choices": list(one.requests)}}]}]}
        for one in texts
    ]


def tag_rows(texts: Iterable[LabelledText]) -> Iterable[dict[str, Any]]:
    """Characters and their IOB2 tags."""
    for one in texts:
        tags = ["O"] * len(one.text)
        for entity in one.entities:
            tags[entity.start : entity.end] = [f"I-{entity.label}"] * (entity.end - entity.start)
            tags[entity.start] = f"B-{entity.label}"
        yield {"tokens": list(one.text), "tags": tags}


def class_rows(texts: Iterable[LabelledText]) -> Iterable[dict[str, Any]]:
    """Texts and the list of their classes."""
    return ({"text": one.text, "label": sorted(one.requests)} for one in texts)


def question_rows(texts: Iterable[LabelledText], split: str) -> Iterable[dict[str, Any]]:
    """A question a label and order, in the flat form of SQuAD; ids begin with the split."""
    for number, one in enumerate(texts):
        for place, order in enumerate(one.orders):
            names = {label: entity.text for label, entity in order.items()}
            for label, question in QUESTIONS.items():
                entity = order[label]
                yield {
                    "id": f"{split}-{number}-{place}-{label}",
                    "context": one.text,
                    "question": question.format(**names),
                    "answers": {"text": [entity.text], "answer_start": [entity.start]},
                }


def passage_rows(texts: Iterable[LabelledText]) -> Iterable[dict[str, Any]]:
    """A question for every customer of a city, all texts that answer it, and the city's next text that does not."""
    cities: dict[str, dict[str, list[str]]] = {}
    for one in texts:
        for order in one.orders:
            customers = cities.setdefault(order["城市"].text, {})
            customers.setdefault(order["顾客"].text, []).append(one.text)
    for city, customers in cities.items():
        in_city = list(dict.fromkeys(text for found in customers.values() for text in found))
        for customer, found in customers.items():
            others = [text for text in in_city if text not in found]
            if others:
                after = in_city.index(found[-1])
                query = SEARCHED.format(城市=city, 顾客=customer)
                other = next((text for text in in_city[after:] if text in others), others[0])
                yield {"query": query, "pos": list(dict.fromkeys(found)), "neg": [other]}


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON, a row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_folder(folder: Path, texts: Sequence[LabelledText], unlabelled: Sequence[LabelledText]) -> None:
    """Writes all files; see the top of this file."""
    write_lines(folder / "orders.jsonl", doccano_lines(texts))
    (folder / "requests.json").write_text(json.dumps(label_studio_tasks(texts), ensure_ascii=False), encoding="utf-8")
    (folder / "requests.txt").write_text("".join(f"{name}\n" for name in REQUESTS), encoding="utf-8")
    begin, share = 0, 0.0
    for split, part in SPLITS:
        share += part
        end = round(share * len(texts))
        questions = partial(question_rows, split=split)
        kinds = {"tags": tag_rows, "classes": class_rows, "questions": questions, "passages": passage_rows}
        for name, rows in tqdm(kinds.items(), desc=split, unit="file", disable=len(texts) < 20_000):
            write_lines(folder / name / f"{split}.jsonl", rows(texts[begin:end]))
        begin = end
    (folder / "unlabelled.txt").write_text("".join(f"{one.text}\n" for one in unlabelled), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and writes the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--texts", type=int, default=2000, help="labelled texts, and as many without labels")
    parser.add_argument("--two-orders", type=float, default=0.2, help="share of texts with two orders")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.texts < 10:
        parser.error(f"--texts {options.texts}: at least 10, so that train, dev and test have some")
    if not 0 <= options.two_orders <= 1:
        parser.error(f"--two-orders {options.two_orders}: a share, from 0 to 1")
    if options.output.exists():
        parser.error(f"--output {options.output} exists already; name a new folder")
    texts = make_texts(2 * options.texts, options.seed, options.two_orders)
    write_folder(options.output, texts[: options.texts], texts[options.texts :])


if __name__ == "__main__":
    main()
