"""Labels for controllable language modelling: any functions, jieba's keywords, a classifier's answers."""

import pytest

from hf_glm_ernie import ClassifierLabels, ControlLabels, ControllableLM, JiebaKeywords
from tests.support.ernie3_rows import small_tokenizer

TEXTS = ["今天天气真好。", "百度飞桨是一个开源的深度学习平台，深度学习平台有很多。"]


def classifier(texts, **options):
    """Answers as a pipeline of transformers gives them."""
    assert options == {"batch_size": 2}
    return [{"label": f"LABEL_{len(text) % 2}", "score": 0.4 if "平台" in text else 0.9} for text in texts]


def test_rows_get_what_the_labellers_say(tmp_path):
    labels = ControlLabels(
        topic=lambda texts: [text[:2] for text in texts],
        keywords=lambda texts: [(), ["平台"]],
        sentiment=ClassifierLabels(classifier, {"LABEL_1": "positive"}, batch_size=2),
    )
    made = labels({"text": TEXTS, "genre": ["Web", None]})
    assert made == {"topic": ["今天", "百度"], "keywords": [None, ["平台"]], "sentiment": ["positive", None]}
    rows = {"text": TEXTS, **made}
    built = ControllableLM(small_tokenizer(tmp_path))(rows, range(2))
    assert len(built["input_ids"]) == 2


def test_a_dataset_takes_them():
    datasets = pytest.importorskip("datasets", reason="needs the datasets library, whose map the labels are for")
    found = datasets.Dataset.from_dict({"text": TEXTS}).map(
        ControlLabels(sentiment=lambda texts: ["neutral"] * len(texts)), batched=True
    )
    assert found["sentiment"][:] == ["neutral", "neutral"]


def test_answers_below_the_threshold_are_none():
    assert ClassifierLabels(classifier, batch_size=2)(TEXTS) == ["LABEL_1", None]
    assert ClassifierLabels(classifier, threshold=0, batch_size=2)(TEXTS)[1] is not None
    with pytest.raises(ValueError, match="threshold=2 must be from 0 to 1"):
        ClassifierLabels(classifier, threshold=2)


def test_keywords_by_jieba():
    pytest.importorskip("jieba", reason="needs jieba, whose TF-IDF finds the keywords: pip install jieba")
    keywords = JiebaKeywords(2)([*TEXTS, "。"])
    assert keywords[1] is not None
    assert "平台" in "".join(keywords[1])
    assert [words if words is None else len(words) for words in keywords[1:]] == [2, None]
    with pytest.raises(ValueError, match="count=0"):
        JiebaKeywords(0)


@pytest.mark.parametrize(
    ("labellers", "texts", "message"),
    [
        ({}, TEXTS, "needs a labeller"),
        ({"topic": lambda texts: ["x"]}, TEXTS, "topic returned 1 labels for 2 texts"),
        ({"sentiment": lambda texts: ["happy"] * 2}, TEXTS, "sentiment='happy' is unknown"),
        ({"topic": lambda texts: texts}, ["今", " "], "text 1 of the batch: column 'text' is an empty text"),
    ],
)
def test_what_is_refused(labellers, texts, message):
    with pytest.raises(ValueError, match=message):
        ControlLabels(**labellers)({"text": texts})
