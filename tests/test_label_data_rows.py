"""Annotations as UIE and UTC rows, against PaddleNLP's converters and a slow reference.

The chain: `reference/label_data_naive.py` with the original's mistakes gives PaddleNLP's rows, row for row and random
ones too; without them it gives the package's, but for the candidates that take the places of wrong ones.
The mistakes are shown one by one: what PaddleNLP did (in its own rows,
or by the reference that equals them) and what is right.
"""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hf_glm_ernie.ernie_data import (
    LABEL_STUDIO_RULES,
    AnnotationError,
    ClassifiedText,
    Document,
    Entity,
    Relation,
    Rules,
    doccano,
    extraction_rows,
    label_studio,
    negatives,
    uie_rows,
    utc_rows,
)
from hf_glm_ernie.ernie_data.options import ShuffledOptions
from tests.reference.label_data_naive import Naive
from tests.support.label_data import (
    FULL,
    MISSING,
    SMALL,
    FlatRow,
    GoldenRows,
    bag,
    contradictory,
    flat,
    golden_rows,
    plain,
    read_lines,
    records_of,
)

NOT_AN_OPTION = "贵"
"""A class in the golden inputs that no variant but one offers: an error by default, dropped for the comparison."""


def rules_of(golden: GoldenRows) -> Rules:
    variant = golden.variant
    given = (golden.ratio, variant["prefix"], variant["options"], variant["sep"], variant["lang"], "drop")
    return Rules(*given, **(LABEL_STUDIO_RULES if golden.is_label_studio else {}))


def documents_of(root: Path, golden: GoldenRows) -> tuple[list[Document], list[Any]]:
    """The input as the package and as the slow reference take it."""
    path = root / "inputs" / f"{golden.source}.{'json' if golden.is_label_studio else 'jsonl'}"
    read = label_studio.read_document if golden.is_label_studio else doccano.read_document
    records = records_of(path)
    return [read(record) for record in records], [plain(record) for record in records]


def touched(row: FlatRow) -> bool:
    """Whether a class that is no option is among the results."""
    return any(text == NOT_AN_OPTION and start < 0 for text, start, _ in row[2])


def check_places(found: list[FlatRow], expected: list[FlatRow], places: list[tuple[str, int, list[str]]]) -> None:
    """`found` is `expected` with right candidates in the places of wrong ones, as many as there are."""
    there = iter(found)
    assert all(row in there for row in expected)  # in this order
    new = bag(found) - bag(expected)
    allowed: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for text, wrong, left in places:
        if wrong:
            allowed += bag([(text, prompt, []) for prompt in left])
            count[text] += min(wrong, len(left))
    assert not new - allowed
    assert Counter(json.loads(row)[0] for row in new.elements()) == +count


def check(root: Path, golden: GoldenRows) -> None:
    documents, simple = documents_of(root, golden)
    kind = golden.ratio, golden.is_train
    assert Naive(golden.variant, golden.is_label_studio, original=True).rows(simple, *kind) == golden.rows
    naive = Naive(golden.variant, golden.is_label_studio, original=False)
    expected = naive.rows(simple, *kind)
    found = [flat(row) for row in extraction_rows(documents, rules_of(golden), is_train=golden.is_train)]
    check_places(found, expected, naive.places)
    assert not contradictory(found)
    # Against PaddleNLP's rows themselves: nothing is missing but what is wrong.
    missing = bag(golden.rows) - bag(found)
    assert not missing - bag(contradictory(golden.rows)) - bag(list(filter(touched, golden.rows))) - artefacts(golden)


def artefacts(golden: GoldenRows) -> Counter[str]:
    """Questions for an opinion of something else, in texts with opinions: brought in by the symmetric difference."""
    texts = {row[0] for row in golden.rows if row[1] == "观点词" and row[2]}
    asked = [row for row in golden.rows if row[0] in texts and not row[2] and "观点词" in row[1]]
    return bag(asked) if golden.is_label_studio else Counter()


@pytest.mark.parametrize("golden", list(golden_rows(SMALL)), ids=lambda one: one.id)
def test_rows_are_the_originals(golden: GoldenRows) -> None:
    check(SMALL, golden)


def test_rows_are_the_originals_on_the_full_set() -> None:
    if not FULL.is_dir():
        pytest.skip(MISSING)
    goldens = list(golden_rows(FULL))
    assert len(goldens) == 46
    for golden in goldens:
        check(FULL, golden)


@pytest.mark.parametrize("golden", list(golden_rows(SMALL)), ids=lambda one: one.id)
def test_where_nothing_is_wrong_even_random_rows_are_equal(golden: GoldenRows) -> None:
    """Documents without relations, opinions and the class that is no option: no candidate is ever dropped."""
    documents, simple = documents_of(SMALL, golden)
    places = [
        place
        for place, (_, entities, _) in enumerate(simple)
        if not any(NOT_AN_OPTION in one[3] or one[3] == "观点词" for one in entities)
    ]
    kept = [Document(documents[place].text, documents[place].entities) for place in places]
    expected = Naive(golden.variant, golden.is_label_studio, original=True).rows(
        [(*simple[place][:2], []) for place in places], golden.ratio, golden.is_train
    )
    assert [flat(row) for row in extraction_rows(kept, rules_of(golden), is_train=golden.is_train)] == expected
    assert len(expected) > 50


@pytest.mark.parametrize("root", [SMALL, FULL], ids=["small", "full"])
def test_class_rows_are_the_originals(root: Path) -> None:
    """The order of the options too: the same shuffles, one list shuffled on and on."""
    if not root.is_dir():
        pytest.skip(MISSING)
    for golden in read_lines(root / "rows" / "cls.jsonl"):
        is_doccano = golden["source"].startswith("doccano")
        path = root / "inputs" / f"{golden['source']}.{'jsonl' if is_doccano else 'json'}"
        texts = [(doccano if is_doccano else label_studio).read_classified(one) for one in records_of(path)]
        rules = Rules(prompt_prefix=golden["prompt_prefix"], options=golden["options"])
        options = ShuffledOptions(rules.options, random.Random(golden["seed"]))
        assert list(uie_rows.class_rows(texts, rules, options)) == golden["rows"]


@pytest.mark.parametrize("root", [SMALL, FULL], ids=["small", "full"])
def test_utc_rows_are_the_originals(root: Path) -> None:
    if not root.is_dir():
        pytest.skip(MISSING)
    tasks = records_of(root / "inputs" / "label_studio_utc.json")
    texts = [label_studio.read_classified(task) for task in tasks]
    options = (root / "inputs" / "utc_options.txt").read_text(encoding="utf-8").splitlines()
    for golden in read_lines(root / "utc" / "rows.jsonl"):
        rows = list(utc_rows(texts, options, golden["text_separator"]))
        assert rows[: len(golden["rows"])] == golden["rows"]


# What PaddleNLP does wrong, and what is right.


def test_opinions_are_no_negatives_of_texts_that_have_them() -> None:
    """观点词 is left out of the label set, and a symmetric difference brings it back where it must not be."""
    golden = next(one for one in golden_rows(SMALL) if one.is_label_studio)
    opinions = [row for row in golden.rows if row[1] == "观点词"]
    assert (len([row for row in opinions if row[2]]), len(bag(contradictory(opinions)))) == (7, 6)
    found = [flat(row) for row in extraction_rows(documents_of(SMALL, golden)[0], rules_of(golden))]
    assert [row for row in found if row[1] == "观点词"] == [row for row in opinions if row[2]]


def test_subjects_without_a_row_of_their_own_are_no_negatives() -> None:
    """The same mistake with names: an entity labelled 属性值 is not among the names, so its own question came back."""
    document = Document("甲乙", [Entity(1, 0, 1, "属性值"), Entity(2, 1, 2, "人物")], [Relation(1, 2, "父亲")])
    variant = {"prefix": "", "options": ["正向"], "sep": "##", "lang": "ch"}
    simple = [("甲乙", [(1, 0, 1, "属性值"), (2, 1, 2, "人物")], [(1, 2, "父亲")])]
    theirs = Naive(variant, label_studio=True, original=True).rows(simple, -1, True)
    assert contradictory(theirs) == [("甲乙", "甲的父亲", [])]
    mine = [flat(row) for row in extraction_rows([document], Rules(-1, **LABEL_STUDIO_RULES))]
    assert not contradictory(mine)
    assert bag(theirs) - bag(mine) == bag([("甲乙", "甲的父亲", [])])
    assert not bag(mine) - bag(theirs)


def test_an_inverse_that_holds_is_no_negative() -> None:
    """A symmetric relation turned round is the relation: 1 朋友 2 and 2 朋友 1."""
    simple = [("甲乙", [(1, 0, 1, "人"), (2, 1, 2, "人")], [(1, 2, "朋友"), (2, 1, "朋友")])]
    variant = {"prefix": "", "options": ["正向"], "sep": "##", "lang": "en"}
    theirs = Naive(variant, label_studio=False, original=True).rows(simple, -1, True)
    assert [row[1] for row in contradictory(theirs)] == ["朋友 of 乙", "朋友 of 甲"]
    document = Document(
        "甲乙", [Entity(1, 0, 1, "人"), Entity(2, 1, 2, "人")], [Relation(1, 2, "朋友"), Relation(2, 1, "朋友")]
    )
    mine = [flat(row) for row in extraction_rows([document], Rules(-1, schema_lang="en"))]
    assert mine == [row for row in theirs if row not in contradictory(theirs)]


def test_a_label_that_is_a_predicate_is_no_negative_where_it_holds() -> None:
    """地震的地点 has an answer; the corpus also has the label 地点, which this text has not."""
    golden = next(one for one in golden_rows(SMALL) if one.source == "doccano_data_relation")
    wrong = {row[1] for row in contradictory(golden.rows)}
    assert wrong & {"地震的地点", "地震的时间"}
    found = [flat(row) for row in extraction_rows(documents_of(SMALL, golden)[0], rules_of(golden))]
    asked = [row for row in found if row[1] in wrong]
    assert asked
    assert not contradictory(found)


def test_whole_options_are_matched() -> None:
    """`rfind` finds 科技 at the end of 体育科技, wherever that stands behind 科技 itself."""
    options, places = ["体育", "体育科技", "科技"], set()
    for seed in range(20):
        shuffled = ShuffledOptions(options, random.Random(seed))
        row = shuffled.row("x", ["科技", "体育"], "类别")
        for one in row["result_list"]:
            start, end = (len(row["prompt"]) + 1 + one[name] for name in ("start", "end"))
            assert row["prompt"][start:end] == one["text"]
            assert row["prompt"][start - 1] + row["prompt"][end] in ("[,", "[]", ",,", ",]")
            theirs = row["prompt"].rfind(one["text"])
            places.add((one["text"], theirs == start))
    assert places == {(text, right) for text in ("科技", "体育") for right in (True, False)}


def test_a_class_that_is_no_option_is_an_error() -> None:
    """In PaddleNLP's rows it stands in front of the prompt, at -(prompt + 2)."""
    golden = next(one for one in golden_rows(SMALL) if one.source == "doccano_relation")
    outside = [row for row in golden.rows if touched(row)]
    assert [one for row in outside for one in row[2] if one[0] == NOT_AN_OPTION] == [
        [NOT_AN_OPTION, -len(row[1]) - 2, -len(row[1]) - 1] for row in outside
    ]
    documents = documents_of(SMALL, golden)[0]
    with pytest.raises(
        AnnotationError, match=r"the entity \(id 30, label '产品##正向##贵'\): class '贵' is not among the options"
    ):
        extraction_rows(documents)
    found = [flat(row) for row in extraction_rows(documents, rules_of(golden))]
    for text, prompt, results in outside:
        assert (text, prompt, [one for one in results if one[0] != NOT_AN_OPTION]) in found


# Rules that no golden shows.


def random_documents(draw: random.Random) -> list[Document]:
    labels, predicates = ["甲", "乙的", "父亲##正向", "丙", "属性值", "观点词"], ["父亲", "丙", "朋友"]
    documents = []
    for _ in range(draw.randrange(1, 6)):
        text = "".join(draw.choice("ab的父亲") for _ in range(draw.randrange(2, 9)))
        entities = []
        for number in range(draw.randrange(5)):
            start = draw.randrange(len(text))
            entities.append(Entity(number, start, draw.randrange(start, len(text)) + 1, draw.choice(labels)))
        ids = range(len(entities))
        count = draw.randrange(4) if entities else 0
        relations = [Relation(draw.choice(ids), draw.choice(ids), draw.choice(predicates)) for _ in range(count)]
        documents.append(Document(text, entities, relations))
    return documents


@pytest.mark.parametrize("seed", range(60))
def test_any_annotation_gives_the_rows_of_the_slow_reference(seed: int) -> None:
    """Names with 的 in them, prompts that meet by chance, labels that are predicates: all of it at once."""
    draw = random.Random(seed)
    documents = random_documents(draw)
    is_label_studio, lang, ratio, is_train = (
        *(draw.random() < 0.5, draw.choice(["ch", "en"]), draw.choice([-1, 0, 1, 3, 5, 9]), draw.random() < 0.7),
    )
    variant = {"prefix": "p", "options": ["正向", "负向"], "sep": "##", "lang": lang}
    simple = [
        (
            one.text,
            [(e.id, e.start, e.end, e.label) for e in one.entities],
            [(r.subject, r.object, r.predicate) for r in one.relations],
        )
        for one in documents
    ]
    rules = Rules(ratio, "p", ["正向", "负向"], schema_lang=lang, **(LABEL_STUDIO_RULES if is_label_studio else {}))
    naive = Naive(variant, is_label_studio, original=False)
    expected = naive.rows(simple, ratio, is_train)
    found = [flat(row) for row in extraction_rows(documents, rules, is_train=is_train)]
    check_places(found, expected, naive.places)
    assert not contradictory(found)


def test_a_large_corpus_draws_predicates_for_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound: as many rows, of the same kinds, and still none that has an answer."""
    golden = next(one for one in golden_rows(SMALL) if one.source == "doccano_relation")
    documents, rules = documents_of(SMALL, golden)[0], rules_of(golden)
    drawn = []
    monkeypatch.setattr(negatives, "relation_prompt", lambda *given: drawn.append(given) or f"{given[0]}的{given[1]}")
    exact = [flat(row) for row in extraction_rows(documents, rules)]
    many = len(drawn)
    drawn.clear()
    monkeypatch.setattr(uie_rows, "DRAWS", 0)
    late = [flat(row) for row in extraction_rows(documents, rules)]
    assert len(drawn) < 0.6 * many
    assert len(late) == len(exact)
    assert not contradictory(late)
    assert [row for row in late if row[2]] == [row for row in exact if row[2]]
    names = {text[e.start : e.end] for d in documents for text in [d.text] for e in d.entities}
    labels = {e.label.split("##")[0] for d in documents for e in d.entities}
    for text, prompt, results in late:
        if not results and prompt not in labels:
            assert any(prompt.startswith(f"{name}的") for name in names), (text, prompt)


@pytest.mark.parametrize(
    ("text", "pair"),
    [("甲", ("甲", "")), ("甲\t乙", ("甲", "乙")), ("甲\t乙\t丙", ("甲乙", "丙")), ("", ("", "")), ("\t", ("", ""))],
)
def test_texts_of_a_pair(text: str, pair: tuple[str, str]) -> None:
    (row,) = utc_rows([ClassifiedText(text, ["b", "a"])], ["a", "b"])
    assert row == {"text_a": pair[0], "text_b": pair[1], "question": "", "choices": ["a", "b"], "labels": [1, 0]}


def test_dropped_classes_leave_no_row_that_says_none() -> None:
    """A row without its only class would teach that no option holds; an annotation without classes says so."""
    texts = [ClassifiedText("甲", ["c"]), ClassifiedText("乙", ["c", "a"]), ClassifiedText("丙", [])]
    assert [row["labels"] for row in utc_rows(texts, ["a", "b"], unknown_options="drop")] == [[0], []]
    rules = Rules(options=["a", "b"], unknown_options="drop")
    rows = uie_rows.class_rows(texts, rules, ShuffledOptions(rules.options, random.Random(0)))
    assert [(row["content"], len(row["result_list"])) for row in rows] == [("乙", 1), ("丙", 0)]
    document = Document("甲乙", [Entity(0, 0, 1, "方面##c")])
    assert [row["prompt"] for row in extraction_rows([document], rules)] == ["方面"]
    with pytest.raises(AnnotationError, match=r"class 'c' is not among the options \['a', 'b'\]"):
        list(utc_rows(texts, ["a", "b"]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"negative_ratio": -2}, "negative_ratio is -2: 0 or more, or -1 for all"),
        ({"separator": ""}, "separator is empty"),
        ({"schema_lang": "zh"}, r"schema_lang is 'zh': one of \['ch', 'en'\]"),
        ({"unknown_options": "skip"}, "unknown_options is 'skip': 'error' or 'drop'"),
        ({"options": []}, "options is empty"),
        ({"options": ["a", "a"]}, r"options \['a'\] are given more than once"),
        ({"options": ["a,b"]}, r"options \['a,b'\] cannot stand in a prompt"),
    ],
)
def test_rules_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extraction_rows([], Rules(**wrong))


def test_rules_of_other_kinds() -> None:
    with pytest.raises(TypeError, match="negative_ratio is True: an integer"):
        Rules(negative_ratio=True)
    with pytest.raises(TypeError, match="options is 'ab': a list of strings"):
        extraction_rows([], Rules(options="ab"))


def test_the_goldens_are_what_the_reader_of_this_file_thinks() -> None:
    """The sample of the issue, as data: an option's offsets count back from the place behind the prompt."""
    shuffled = ShuffledOptions(["正向", "负向"], random.Random(1000))
    rows = [shuffled.row("房间干净明亮", ["正向"], "情感倾向") for _ in range(8)]
    sample = {"text": "正向", "start": -7, "end": -5}
    assert {"content": "房间干净明亮", "prompt": "情感倾向[正向,负向]", "result_list": [sample]} in rows
    assert json.loads(json.dumps(rows, ensure_ascii=False)) == rows
