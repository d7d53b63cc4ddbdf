"""Training retrieval through sentence-transformers: losses, folders that everybody opens, a task that is learned.

All of it needs sentence-transformers, the extra `retrieval`; `make test-serve` has it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from conversion.__main__ import main as conversion_main
from hf_glm_ernie import sentence_embeddings
from tests.reference.retrieval_naive import in_batch_loss, mean_reciprocal_rank, two_class_loss

MISSING = "needs sentence-transformers (the extra `retrieval`; `make test-serve` has it)"
sentence_transformers = pytest.importorskip("sentence_transformers", reason=MISSING)
datasets = pytest.importorskip("datasets", reason="the training scripts need datasets")

from examples import train_retrieval  # noqa: E402  # needs them
from examples.made_up_labels import make_texts, passage_rows  # noqa: E402
from hf_glm_ernie.ernie_retrieval.encoders import MODES, RelevanceScores, cross_encoder, dual_encoder  # noqa: E402
from hf_glm_ernie.ernie_retrieval.evaluators import cross_evaluator, dual_evaluator  # noqa: E402
from hf_glm_ernie.ernie_retrieval.judged_files import JudgedQuery, read_queries  # noqa: E402
from hf_glm_ernie.ernie_retrieval.training_rows import cross_columns, dual_columns  # noqa: E402
from tests.support.finetuning import cache_in  # noqa: E402
from tests.support.page_blocks import ROOT, check_shown, run_page  # noqa: E402
from tests.support.rank_processes import run_ranks  # noqa: E402

SAMPLE = Path(__file__).parents[1] / "examples" / "sample-ernie" / "masked-lm"
CAPITAL, OTHERS = ("法国", "首都是巴黎，人很多。"), (("日本", "首都是东京。"), ("", "今天下雨。"))
BOUGHT, SENT = ("", "陈静在杭州买了一个书包，花了三百元，很喜欢，说下次还要来。"), ("", "送得很快，真好。" * 40)
TITLED = [
    JudgedQuery("法国的首都是哪里？", (CAPITAL,), OTHERS),
    JudgedQuery("谁买了书包？", (BOUGHT,), (("", "何伟买了水杯。"),)),
    JudgedQuery("天气怎么样？", (("天气", "今天下雨，天气冷了。"),), (SENT,)),
]
QUERIES = [one.query for one in TITLED]
PASSAGES = list(dict.fromkeys(passage for one in TITLED for passage in (*one.positives, *one.negatives)))
LENGTH = 128  # positions of the sample
# Measured 0: these few texts are one batch for both libraries. Others' batches would change the order of sums.
BOUND = 1e-5
# Softmax of products up to 320 in fp32, where a step is 3e-5, against Python's floats. Measured 1.9e-5.
LOSS_BOUND = 5e-5

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def ernie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ernie") / "ernie"
    assert conversion_main(["ernie", f"--source={SAMPLE}", f"--output={folder}", "--dtype=float32"]) == 0
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The judged queries with titles, in RocketQA's columns."""
    file = tmp_path_factory.mktemp("data") / "train.tsv"
    rows = [
        "\t".join((one.query, *passage, label))
        for one in TITLED
        for label, passages in (("1", one.positives), ("0", one.negatives))
        for passage in passages
    ]
    file.write_text("\n".join(rows), encoding="utf-8")
    return file


def made_arguments(model: Path, data: Path, output: Path, **options: Any) -> list[str]:
    settings = {
        "model": model,
        "data": data,
        "output_dir": output,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_train_batch_size": 4,
    }
    return [text for name, value in (settings | options).items() for text in (f"--{name}", str(value))]


def trained(model: Path, data: Path, output: Path, **options: Any) -> Any:
    with cache_in(output.parent / "cache"):
        return train_retrieval.main(made_arguments(model, data, output, **options))


def made_trainer(model: Path, data: Path, output: Path, **options: Any) -> Any:
    """As the script makes it, before it trains."""
    own, training = train_retrieval.read_arguments(made_arguments(model, data, output, **options))
    return train_retrieval.TRAINERS[own.kind](own, training, read_queries(data), None)


def loss_of(trainer: Any, rows: int) -> float:
    """Of all rows in one batch, whose order changes nothing."""
    (batch,) = list(trainer.get_train_dataloader())
    trainer.model.eval()
    assert len(next(value for value in batch.values() if isinstance(value, torch.Tensor | list))) == rows
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))


@pytest.mark.parametrize(
    "options", [{}, {"normalize": True}, {"scale": 3.5}, {"hard_negatives": 0}, {"mini_batch_size": 2}], ids=str
)
def test_the_loss_is_rocketqas(ernie: Path, data: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """The loop takes vectors that were made of one text at a time."""
    rows = 3 if options.get("hard_negatives") == 0 else 4
    # the plain sampler: all rows in one batch, a query's two rows among them
    trainer = made_trainer(ernie, data, tmp_path / "out", kind="dual", batch_sampler="batch_sampler", **options)
    found = loss_of(trainer, rows)
    columns = dual_columns(read_queries(data), options.get("hard_negatives"))
    queries, *passages = (
        torch.cat([encode([text], convert_to_tensor=True) for text in texts])
        for name, texts in columns.items()
        for encode in [trainer.model.encode_query if name == "query" else trainer.model.encode_document]
    )
    scale = options.get("scale", 20.0 if options.get("normalize") else 1.0)
    expected = in_batch_loss(queries, passages[0], passages[1:], scale)
    assert expected > 0.01
    assert abs(found - expected) < LOSS_BOUND


def test_the_loss_over_two_ranks_has_the_passages_of_both(ernie: Path, data: Path, tmp_path: Path) -> None:
    run_ranks("retrieval_ranks_run.py", ernie, data, tmp_path / "out")


def test_queries_and_passages_are_cut_at_their_own_lengths(ernie: Path, data: Path, tmp_path: Path) -> None:
    """And have the ids and token types of RocketQA's reader: `[CLS] title [SEP] text [SEP]`, 0 and 1."""
    options = {"kind": "dual", "query_length": 6, "passage_length": 12, "batch_sampler": "batch_sampler"}
    trainer = made_trainer(ernie, data, tmp_path / "out", **options)
    (batch,) = list(trainer.get_train_dataloader())
    assert batch["query_input_ids"].shape[1] == 6
    assert batch["positive_input_ids"].shape[1] == batch["negative_1_input_ids"].shape[1] == 12
    tokenizer = AutoTokenizer.from_pretrained(ernie)
    ids, kinds = batch["positive_input_ids"].tolist(), batch["positive_token_type_ids"].tolist()
    untitled = next(k for k, row in enumerate(ids) if row[:2] == tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"]))
    assert kinds[untitled] == [0, 0] + [1] * 10
    titled = next(k for k, row in enumerate(ids) if tokenizer.decode(row[1:3]).replace(" ", "") == "法国")
    assert tokenizer.convert_ids_to_tokens(ids[titled])[:4] == ["[CLS]", "法", "国", "[SEP]"]
    assert kinds[titled] == [0] * 4 + [1] * 8


@pytest.mark.parametrize("pooling", MODES)
def test_the_folder_is_everybodys(ernie: Path, data: Path, tmp_path: Path, pooling: str) -> None:
    """sentence-transformers, `AutoModel` and PaddleNLP's format: the same vectors."""
    normalize = pooling == "mean"
    settings = {"pooling": pooling, "normalize": normalize}
    steps = {"max_steps": 1, "warmup_steps": 0, "learning_rate": 1e-3}
    trained(ernie, data, tmp_path / "out", kind="dual", **settings, **steps)
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert model.similarity_fn_name == "dot"
    reverse = ["ernie", "--reverse", f"--source={tmp_path / 'out'}", f"--output={tmp_path / 'paddle'}"]
    forward = ["ernie", f"--source={tmp_path / 'paddle'}", f"--output={tmp_path / 'again'}"]
    assert conversion_main(reverse) == conversion_main(forward) == 0
    for folder in (tmp_path / "out", tmp_path / "again"):
        encoder, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        queries = sentence_embeddings(encoder, tokenizer, QUERIES, max_length=32, **settings)
        passages = sentence_embeddings(encoder, tokenizer, PASSAGES, **settings)
        for vectors, theirs in ((queries, model.encode_query(QUERIES)), (passages, model.encode_document(PASSAGES))):
            assert (vectors - torch.tensor(theirs)).abs().max() < BOUND
    encoder, tokenizer = AutoModel.from_pretrained(ernie), AutoTokenizer.from_pretrained(ernie)
    start = sentence_embeddings(encoder, tokenizer, QUERIES, **settings)
    assert (queries - start).abs().max() > 100 * BOUND  # it was trained


def test_two_encoders(ernie: Path, data: Path, tmp_path: Path) -> None:
    """RocketQA's form: each side's folder is a plain encoder, and both move away from where they began."""
    options = {"kind": "dual", "passage_model": ernie, "max_steps": 2, "learning_rate": 1e-3, "warmup_steps": 0}
    trained(ernie, data, tmp_path / "out", **options, eval_data=data)
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    weights = []
    for side, texts, encode in (("query", QUERIES, model.encode_query), ("document", PASSAGES, model.encode_document)):
        folder = tmp_path / "out" / f"{side}_0_Transformer"
        encoder, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        own = sentence_embeddings(encoder, tokenizer, texts, pooling="cls", normalize=False)
        assert (own - torch.tensor(encode(texts))).abs().max() < BOUND
        weights.append(encoder.encoder.layer[0].attention.self.query.weight)
        paddle = ["ernie", "--reverse", f"--source={folder}", f"--output={tmp_path / side}"]
        assert conversion_main(paddle) == 0
    start = AutoModel.from_pretrained(ernie).encoder.layer[0].attention.self.query.weight
    assert not torch.equal(weights[0], weights[1])
    assert not any(torch.equal(one, start) for one in weights)
    scores = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {"dot_mrr@10", "dot_accuracy@1", "dot_accuracy@50"} <= set(scores)


def test_ranks_are_those_of_the_loop(ernie: Path) -> None:
    """MRR@10 and recall@1 as DuReader counts them, over the passages of the queries and a corpus beside them."""
    queries = [JudgedQuery(**row) for row in judged_rows(60)]
    corpus = [f"第{k}天，今天下雨。" for k in range(5)]
    model = dual_encoder(str(ernie), device="cpu")
    scores = dual_evaluator(queries, corpus)(model)
    passages = list(dict.fromkeys([*(p for one in queries for p in (*one.positives, *one.negatives)), *corpus]))
    right = [{passages.index(passage) for passage in one.positives} for one in queries]
    vectors = [
        torch.tensor(encode(texts))
        for encode, texts in ((model.encode_query, [one.query for one in queries]), (model.encode_document, passages))
    ]
    assert scores["dot_mrr@10"] == pytest.approx(mean_reciprocal_rank(*vectors, right), abs=1e-12)
    assert scores["dot_accuracy@1"] == pytest.approx(mean_reciprocal_rank(*vectors, right, cut=1), abs=1e-12)
    assert scores["dot_accuracy@50"] >= scores["dot_accuracy@1"]


def judged_rows(texts: int) -> list[dict[str, Any]]:
    rows = passage_rows(make_texts(texts, two_orders=0.0))
    return [{"query": row["query"], "positives": tuple(row["pos"]), "negatives": tuple(row["neg"])} for row in rows]


@pytest.mark.parametrize("num_labels", [1, 2])
def test_cross_encoders(ernie: Path, data: Path, tmp_path: Path, num_labels: int) -> None:
    """Loss and folder. The loss is the cross entropy of logits; PaddleNLP's class takes that of probabilities."""
    options = {"kind": "cross", "num_labels": num_labels, "per_device_train_batch_size": 8}
    trainer = made_trainer(ernie, data, tmp_path / "untrained", **options)
    columns = cross_columns(read_queries(data))
    pairs = list(zip(columns["query"], columns["passage"], strict=True))
    logits = trainer.model.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    two = logits if num_labels == 2 else torch.stack([torch.zeros_like(logits), logits], 1)
    # Measured: 1.1e-7 of 0.7.
    assert abs(loss_of(trainer, len(pairs)) - two_class_loss(two, columns["label"])) < 1e-6
    found = torch.tensor(RelevanceScores(trainer.model).predict(pairs))
    torch.testing.assert_close(found, two.softmax(-1)[:, 1].float(), rtol=0, atol=1e-6)

    trained(ernie, data, tmp_path / "out", **options, max_steps=40, learning_rate=1e-3, eval_data=data)
    scores = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert scores == {"mrr@10": 1.0, "map": 1.0, "ndcg@10": 1.0}  # the few pairs are learnt by heart
    assert cross_evaluator(read_queries(data))(trainer.model)["map"] < 1  # and were not known
    again = cross_encoder(str(tmp_path / "out"), num_labels=num_labels, device="cpu")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    cut = {"truncation": True, "max_length": LENGTH}
    inputs = tokenizer(*zip(*pairs, strict=True), padding=True, return_tensors="pt", **cut)
    with torch.no_grad():
        plain = model(**inputs).logits
    theirs = again.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    torch.testing.assert_close(theirs.reshape(plain.shape), plain, rtol=0, atol=BOUND)
    paddle = ["ernie", "--reverse", f"--source={tmp_path / 'out'}", f"--output={tmp_path / 'paddle'}"]
    assert conversion_main(paddle) == 0


def test_a_cross_encoder_chooses_hard_negatives(ernie: Path) -> None:
    """RocketQA's denoising: what the cross-encoder takes for an answer is no negative. The recipe of the guide."""
    from sentence_transformers.util import mine_hard_negatives

    queries = [JudgedQuery(**row) for row in judged_rows(40)]
    columns = {"query": [one.query for one in queries], "positive": [one.positives[0] for one in queries]}
    rows = datasets.Dataset.from_dict(columns)
    scorer = RelevanceScores(cross_encoder(str(ernie), device="cpu"))
    model = dual_encoder(str(ernie), device="cpu")
    options = {
        "range_max": 10,
        "num_negatives": 2,
        "verbose": False,
        "output_format": "n-tuple",
        "output_scores": True,
    }
    scores = scorer.predict(list(zip(*columns.values(), strict=True)), convert_to_tensor=True)
    limit = float(scores.median())
    mined = mine_hard_negatives(rows, model, cross_encoder=scorer, max_score=limit, **options)
    assert 0 < len(mined) <= len(rows)
    for row in mined:
        for negative in (row["negative_1"], row["negative_2"]):
            assert negative != row["positive"]
            assert scorer.predict([(row["query"], negative)])[0] <= limit + 1e-6


def test_a_run_goes_on(ernie: Path, data: Path, tmp_path: Path) -> None:
    """A second run asks what is meant; one that begins anew leaves nothing of the first."""
    options = {"kind": "dual", "passage_model": ernie, "save_strategy": "steps", "save_steps": 1}
    trained(ernie, data, tmp_path / "out", **options, max_steps=2)
    with pytest.raises(ValueError, match="holds a run already"):
        trained(ernie, data, tmp_path / "out", **options, max_steps=3)
    resumed = trained(ernie, data, tmp_path / "out", **options, max_steps=3, resume=True)
    assert resumed.state.global_step == 3
    trained(ernie, data, tmp_path / "out", kind="dual", max_steps=1, overwrite_output_dir=True)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not [name for name in names if name.startswith(("query_", "document_", "checkpoint", "router"))]


def test_a_dual_encoder_learns_made_up_orders(ernie: Path, tmp_path: Path) -> None:
    """Questions about customers of a city; dev's texts were never seen. Seen: MRR@10 0.12 before, 0.64 after."""
    texts = make_texts(560, two_orders=0.0)
    for name, part in (("train", texts[:480]), ("dev", texts[480:])):
        lines = (json.dumps(row, ensure_ascii=False) for row in passage_rows(part))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = {"kind": "dual", "learning_rate": 5e-4, "per_device_train_batch_size": 32, "num_train_epochs": 2}
    evaluate = {"eval_data": tmp_path / "dev.jsonl", "eval_on_start": True, "eval_strategy": "epoch"}
    trainer = trained(ernie, tmp_path / "train.jsonl", tmp_path / "out", **options, **evaluate)
    ranks = [entry["eval_dot_mrr@10"] for entry in trainer.state.log_history if "eval_dot_mrr@10" in entry]
    assert ranks[0] < 0.3
    assert ranks[-1] > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "both"}, "kind='both' is not one of dual, cross"),
        ({"kind": "dual", "pooling": "pooler"}, "pooling='pooler' is not one of cls, mean, max, mean_sqrt"),
        ({"kind": "cross", "pooling": "mean"}, "--pooling is not for --kind cross"),
        ({"kind": "dual", "num_labels": 1}, "--num_labels is not for --kind dual"),
        ({"kind": "cross", "num_labels": 3}, "num_labels=3: a cross-encoder has 2 classes"),
        ({"kind": "dual", "scale": 0}, "scale=0.0 must be above 0"),
        ({"kind": "dual", "hard_negatives": -1}, "hard_negatives=-1 must be at least 0"),
        ({"kind": "dual", "corpus": "passages.tsv"}, "--corpus is searched for the queries of --eval_data"),
    ],
    ids=str,
)
def test_refusals(ernie: Path, data: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(ernie, data, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_to_evaluate_on() -> None:
    with pytest.raises(ValueError, match="has a passage that answers it"):
        dual_evaluator([JudgedQuery("q", (), ("a",))])
    with pytest.raises(ValueError, match="has both passages that answer it and passages that do not"):
        cross_evaluator([JudgedQuery("q", ("a",), ())])


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    check_shown(run_page("retrieval.md"))
