"""Zero-shot scores and the re-ranker against slow loops over single tokens."""

import sys
import types

import pytest
import torch

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.ernie_tasks.scoring import SCORES, pair_scores, rerank, zero_shot
from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM, Ernie3ForMaskedLM
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from tests.reference import ernie3_scoring_naive as naive
from tests.support.ernie3_rows import small_tokenizer

PAIRS = [
    ("今天天气真好。我们去", "公园玩吧"),
    ("今天", "吧"),
    ("百度飞桨是一个开源的深学习平台", "好"),
    ("今天天气真好。我们去", "学习"),
    ("the world", "gpt is 真好"),
]
BLANKS = [("今天{}真好，我们去公园", "天气"), ("{}是一个平台", "百度飞桨"), ("我们去公园{}", "玩吧")]
ASKED = [(score, direction) for score in tuple(SCORES)[:4] for direction in ("uni", "bi")] + [("P(True|x,y)", None)]
# Padding and batches change the order of sums in fp32. Measured 7.6e-6, on log-probabilities down to -100.
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(5)
    return Ernie3ForPreTraining(config(tokenizer)).eval()


def config(tokenizer, **changes):
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "branch_hidden_size": 24,
        "branch_num_hidden_layers": 2,
        "branch_num_attention_heads": 3,
        "branch_intermediate_size": 32,
        "max_position_embeddings": 48,
        "num_credible_labels": 2,
        "initializer_range": 0.2,
    }
    return Ernie3Config(**(sizes | changes))


def expected(model, tokenizer, pairs, score, direction):
    return torch.tensor([naive.pair_score(model, tokenizer, x, y, score, direction) for x, y in pairs])


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize(("score", "direction"), ASKED)
def test_equals_the_loop_over_tokens(model, tokenizer, score, direction, batch_size):
    found = pair_scores(model, tokenizer, PAIRS, score, direction=direction, batch_size=batch_size)
    assert (found.shape, found.dtype) == ((len(PAIRS),), torch.float32)
    torch.testing.assert_close(found, expected(model, tokenizer, PAIRS, score, direction), **TOLERANCE)


@pytest.mark.parametrize(
    ("score", "direction"), [("P(x,y)", "uni"), *((score, "bi") for score in tuple(SCORES)[:4])], ids=str
)
def test_the_choice_stands_in_the_blank(model, tokenizer, score, direction):
    found = pair_scores(model, tokenizer, BLANKS, score, direction=direction)
    torch.testing.assert_close(found, expected(model, tokenizer, BLANKS, score, direction), **TOLERANCE)


def test_a_class_with_one_branch_serves_its_direction(model, tokenizer):
    for kind, direction in ((Ernie3ForCausalLM, "uni"), (Ernie3ForMaskedLM, "bi")):
        alone = kind(model.config).eval()
        alone.load_state_dict(model.state_dict(), strict=False)
        found = pair_scores(alone, tokenizer, PAIRS)  # the direction is the model's
        assert torch.equal(found, pair_scores(model, tokenizer, PAIRS, direction=direction))
    assert torch.equal(pair_scores(model, tokenizer, PAIRS), pair_scores(model, tokenizer, PAIRS, direction="uni"))


def test_equal_rows_are_run_once(model, tokenizer, monkeypatch):
    rows = []
    forward = model.ernie3.forward
    monkeypatch.setattr(
        model.ernie3, "forward", lambda input_ids, **given: rows.append(len(input_ids)) or forward(input_ids, **given)
    )
    found = pair_scores(model, tokenizer, PAIRS + PAIRS, "P(y|x)/P(y)")
    assert sum(rows) == 2 * len(PAIRS)  # [CLS] x y and [CLS] y of each
    assert torch.equal(found[: len(PAIRS)], found[len(PAIRS) :])


def test_long_texts_keep_what_is_nearest_to_the_choice(model, tokenizer):
    long = "今天天气真好我们去公园玩吧" * 9
    found = pair_scores(model, tokenizer, [(long, "学习")], max_length=20)
    kept = expected(model, tokenizer, [(long[-17:], "学习")], "P(y|x)", "uni")
    torch.testing.assert_close(found, kept, **TOLERANCE)

    found = pair_scores(model, tokenizer, [(long + "{}" + long, "学习")], direction="bi", max_length=20)
    kept = expected(model, tokenizer, [(long[-9:] + "{}" + long[:8], "学习")], "P(y|x)", "bi")
    torch.testing.assert_close(found, kept, **TOLERANCE)

    found = pair_scores(model, tokenizer, [("好{}" + long, "学习")], direction="bi", max_length=20)
    kept = expected(model, tokenizer, [("好{}" + long[:16], "学习")], "P(y|x)", "bi")
    torch.testing.assert_close(found, kept, **TOLERANCE)

    # at most the model's positions, 48 here
    assert torch.equal(
        pair_scores(model, tokenizer, [(long, "学习")]), pair_scores(model, tokenizer, [(long[-45:], "学习")])
    )


def test_all_choices_of_a_text_see_the_same_of_it(model, tokenizer):
    long = "今天天气真好我们去公园玩吧" * 3
    (answer,) = zero_shot(model, tokenizer, long, ["好", "百度飞桨"], score="P(x,y)", max_length=20)
    kept = long[-15:]  # beside [CLS] and the longer choice
    pairs = [(kept, "好"), (kept, "百度飞桨")]
    torch.testing.assert_close(answer.scores, expected(model, tokenizer, pairs, "P(x,y)", "uni"), **TOLERANCE)


@pytest.mark.parametrize(("score", "direction"), ASKED)
def test_zero_shot_takes_the_best(model, tokenizer, score, direction):
    texts = [x for x, _ in PAIRS]
    choices = {"first": "公园玩吧", "second": "学习", "third": "gpt"}
    answers = zero_shot(model, tokenizer, texts, choices, score=score, direction=direction)
    for text, answer in zip(texts, answers, strict=True):
        pairs = [(text, word) for word in choices.values()]
        scores = expected(model, tokenizer, pairs, score, direction)
        torch.testing.assert_close(answer.scores, scores, **TOLERANCE)
        assert answer.index == int(scores.argmax())
        assert answer.label == list(choices)[answer.index]


def test_choices_of_their_own(model, tokenizer):
    own = [["公园", "吧"], ["学习", "真好", "天"]]
    answers = zero_shot(model, tokenizer, ["今天", "我们"], own)
    for text, choices, answer in zip(["今天", "我们"], own, answers, strict=True):
        (alone,) = zero_shot(model, tokenizer, text, choices)
        assert answer.label == alone.label
        assert answer.label == choices[answer.index]
        torch.testing.assert_close(answer.scores, alone.scores, **TOLERANCE)
    assert zero_shot(model, tokenizer, [], ["好"]) == []


class SlowMatching(types.ModuleType):
    """`scipy.optimize` with a matching that tries every way, for where scipy is not installed."""

    def linear_sum_assignment(self, scores, maximize):
        assert maximize
        best = naive.best_assignment(scores.tolist())
        return torch.arange(len(best)).numpy(), torch.tensor(best).numpy()


@pytest.fixture
def matching(monkeypatch):
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        monkeypatch.setitem(sys.modules, "scipy", types.ModuleType("scipy"))
        monkeypatch.setitem(sys.modules, "scipy.optimize", SlowMatching("scipy.optimize"))


def test_assignment_gives_every_blank_another_choice(model, tokenizer, matching):
    blanks = ["今天{}真好", "我们去{}玩", "百度{}平台"]
    choices = ["气", "我们去公园", "飞", "学习"]
    free = zero_shot(model, tokenizer, blanks, choices, score="P(x,y)")
    answers = zero_shot(model, tokenizer, blanks, choices, score="P(x,y)", assignment=True)
    best = naive.best_assignment([answer.scores.tolist() for answer in answers])
    assert tuple(answer.index for answer in answers) == best
    assert [answer.label for answer in answers] == [choices[i] for i in best]
    # Without it two blanks share a choice here, so the assignment decides something.
    assert len({answer.index for answer in free}) < 3
    for one, other in zip(free, answers, strict=True):
        assert torch.equal(one.scores, other.scores)


def test_assignment_without_scipy(model, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"assignment=True needs scipy .*pip install scipy"):
        zero_shot(model, tokenizer, ["今天"], ["好", "吧"], assignment=True)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_generations_are_sorted_by_credibility(model, tokenizer, batch_size):
    texts = ["今天天气真好。", "我们去公园玩吧" * 3, "平台", "the world", "百度", "平台"]
    ranked = rerank(model, tokenizer, texts, batch_size=batch_size)
    probabilities = [naive.originality(model, tokenizer, text) for text in texts]
    assert [one.index for one in ranked] == sorted(range(len(texts)), key=lambda i: -round(probabilities[i], 5))
    for one in ranked:
        assert one.text == texts[one.index]
        assert abs(one.probability - probabilities[one.index]) < 1e-5
    assert rerank(model, tokenizer, []) == []
    (cut,) = rerank(model, tokenizer, ["今天天气真好" * 9], max_length=11)
    assert abs(cut.probability - naive.originality(model, tokenizer, ("今天天气真好" * 9)[:10])) < 1e-5


def test_mode_is_restored_and_dropout_off(model, tokenizer):
    expected = pair_scores(model, tokenizer, PAIRS)
    for name in ("hidden_dropout_prob", "branch_hidden_dropout_prob"):
        setattr(model.config, name, 0.5)
    model.train()
    try:
        assert torch.equal(pair_scores(model, tokenizer, PAIRS), expected)
        assert model.training
        with pytest.raises(ValueError, match="no tokens"):
            pair_scores(model, tokenizer, [("今天", "")])
        assert model.training
        assert not torch.is_inference_mode_enabled()
    finally:
        model.eval()
        for name in ("hidden_dropout_prob", "branch_hidden_dropout_prob"):
            setattr(model.config, name, 0.0)


def test_a_failing_forward_leaves_no_inference_mode(model, tokenizer, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(model.ernie3, "forward", fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        pair_scores(model, tokenizer, PAIRS)
    assert not torch.is_inference_mode_enabled()


def test_progress_bar(model, tokenizer, capsys):
    pair_scores(model, tokenizer, PAIRS, batch_size=2)
    assert "Scoring" not in capsys.readouterr().err
    pair_scores(model, tokenizer, PAIRS, batch_size=1)
    assert "Scoring: 100%" in capsys.readouterr().err
    pair_scores(model, tokenizer, PAIRS, batch_size=1, show_progress=False)
    assert "Scoring" not in capsys.readouterr().err


def test_refusals_of_texts_and_choices(model, tokenizer):
    with pytest.raises(TypeError, match=r"pairs\[1\] is no pair of strings: \('a', 7\)"):
        pair_scores(model, tokenizer, [("今", "天"), ("a", 7)])
    with pytest.raises(ValueError, match="The choice of pair 0 has no tokens"):
        pair_scores(model, tokenizer, [("今天", " ")])
    with pytest.raises(ValueError, match=r"The text of pair 0 has no tokens; P\(x\|y\) needs one"):
        pair_scores(model, tokenizer, [("", "今天")], "P(x|y)")
    with pytest.raises(ValueError, match=r"Pair 0 has text behind its blank, which P\(y\|x\) in the direction 'uni'"):
        pair_scores(model, tokenizer, [("今{}天", "好")])
    with pytest.raises(ValueError, match="Text 0 has 2 blanks"):
        pair_scores(model, tokenizer, [("今{}天{}", "好")])
    with pytest.raises(ValueError, match=r"A choice has 50 tokens, but a row has room for 47 \(max_length=512"):
        pair_scores(model, tokenizer, [("今", "天" * 50)])
    with pytest.raises(ValueError, match="There are 1 lists of choices for 2 texts"):
        zero_shot(model, tokenizer, ["今", "天"], [["好"]])
    with pytest.raises(ValueError, match="There are no choices for text 0"):
        zero_shot(model, tokenizer, ["今"], [])
    with pytest.raises(TypeError, match=r"choices\[1\] is a int, not a string: 7"):
        zero_shot(model, tokenizer, ["今"], ["好", 7])
    with pytest.raises(TypeError, match=r"texts\[0\] is a int"):
        zero_shot(model, tokenizer, [7], ["好"])
    with pytest.raises(TypeError, match="choices must be a list of strings, label -> words, or a list of lists: '好'"):
        zero_shot(model, tokenizer, ["今"], "好")
    with pytest.raises(ValueError, match="Generation 1 has no tokens: ''"):
        rerank(model, tokenizer, ["今", ""])


def test_refusals_of_settings(model, tokenizer, matching):
    with pytest.raises(ValueError, match=r"score='P\(y\)' is not one of \('P\(x,y\)'"):
        pair_scores(model, tokenizer, PAIRS, "P(y)")
    with pytest.raises(ValueError, match=r"direction='nlu' is not one of \('uni', 'bi'\)"):
        pair_scores(model, tokenizer, PAIRS, direction="nlu")
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        pair_scores(model, tokenizer, PAIRS, batch_size=0)
    with pytest.raises(ValueError, match="max_length=2 leaves no room"):
        rerank(model, tokenizer, ["今"], max_length=2)
    alone = Ernie3ForMaskedLM(model.config)
    with pytest.raises(ValueError, match=r"Ernie3ForMaskedLM has no nlg_lm_head.*Use Ernie3ForCausalLM"):
        pair_scores(alone, tokenizer, PAIRS, direction="uni")
    with pytest.raises(ValueError, match=r"Ernie3ForMaskedLM has no distance_head.*Use Ernie3ForPreTraining"):
        pair_scores(alone, tokenizer, PAIRS, "P(True|x,y)")
    without = Ernie3ForPreTraining(config(tokenizer, num_credible_labels=0))
    with pytest.raises(ValueError, match=r"has no credible_head.*num_credible_labels=2"):
        rerank(without, tokenizer, ["今"])
    with pytest.raises(ValueError, match="shares one list of choices out among the texts"):
        zero_shot(model, tokenizer, ["今", "天"], [["好", "吧"], ["吧", "好"]], assignment=True)
    with pytest.raises(ValueError, match="every choice once at most, but there are 1 for 2 texts"):
        zero_shot(model, tokenizer, ["今", "天"], ["好"], assignment=True)
