"""GLM-130B in vLLM gives the ids and log probabilities of `generate`: every kind of row, every way to run it.

The bound of log probabilities in fp32 is 2e-5. Seen: 3.8e-6 on the sample and 1.9e-6 on random weights in one process,
see each test for the others.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_glm_ernie import Glm130bForCausalLM, Glm130bTokenizer
from hf_glm_ernie.vllm_plugin import rows as rows_module
from tests.support import serving
from tests.support.serving import Answer, answers, engine, expected, largest_difference, random_rows, sample_rows

pytest.importorskip("vllm", reason=serving.MISSING)

BOUND = 2e-5
NEW = 8  # tokens of a random row's answer
TEXTS = [
    "An octopus has [MASK] and blue blood.",
    "The heart [MASK] through the whole [MASK]",
    "[sMASK] Bats find their way.",
    "二月是[sMASK]里最短的",
]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.converted_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    return serving.random_folder(tmp_path_factory.mktemp("random"), sample)


@pytest.fixture(scope="module")
def texts(sample: Path) -> list[list[int]]:
    """The sample's list: every text of it, and ids that end within an answer."""
    tokenizer = Glm130bTokenizer.from_pretrained(sample)
    rows = sample_rows(tokenizer, serving.sample_texts() + TEXTS)
    begun = [[*row, *tokenizer(" three", add_special_tokens=False)["input_ids"]] for row in rows[:5]]
    return [*rows, *begun, *[row[: row.index(tokenizer.sop_token_id)] for row in rows[:5]]]


@pytest.fixture(scope="module")
def of_texts(sample: Path, texts: list[list[int]]) -> list[Answer]:
    return expected(opened(sample), texts, 32)


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[list[int]]:
    return random_rows(opened(folder).config, 100)


@pytest.fixture(scope="module")
def of_rows(folder: Path, rows: list[list[int]]) -> list[Answer]:
    return expected(opened(folder), rows, NEW)


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return Glm130bForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def staggered(rows: list[list[int]]) -> list[int]:
    """Three rows before every step."""
    return [index // 3 for index in range(len(rows))]


def assert_equal(found: list[Answer], wanted: list[Answer], bound: float = BOUND) -> None:
    wrong = [index for index, (a, b) in enumerate(zip(found, wanted, strict=True)) if a.ids != b.ids]
    assert not wrong, f"{len(wrong)} of {len(wanted)} rows differ, the first: {found[wrong[0]]}, {wanted[wrong[0]]}"
    assert largest_difference(found, wanted) <= bound


@pytest.fixture(scope="class")
def served(folder: Path) -> Iterator[Any]:
    with engine(folder) as served:
        yield served


@pytest.fixture(scope="class")
def served_sample(sample: Path) -> Iterator[Any]:
    with engine(sample) as served:
        yield served


class TestOneProcess:
    def test_random_rows_that_arrive_one_after_the_other(
        self, served: Any, rows: list[list[int]], of_rows: list[Answer]
    ) -> None:
        assert min(map(len, rows)) == 1
        assert max(map(len, rows)) == serving.CONTEXT - 1
        assert_equal(answers(served, rows, staggered(rows), max_tokens=NEW), of_rows)

    def test_all_at_once(self, served: Any, rows: list[list[int]], of_rows: list[Answer]) -> None:
        assert_equal(answers(served, rows, [0] * len(rows), max_tokens=NEW), of_rows)

    def test_the_longest_row_is_the_context(self, served: Any) -> None:
        assert served.llm_engine.model_config.max_model_len == serving.CONTEXT

    def test_prompts_are_computed_whole(self, served: Any) -> None:
        config = served.llm_engine.vllm_config
        assert not config.scheduler_config.enable_chunked_prefill
        assert not config.cache_config.enable_prefix_caching
        assert config.scheduler_config.max_num_batched_tokens >= serving.CONTEXT

    def test_a_control_that_fails_causal_prompts(
        self, served: Any, rows: list[list[int]], of_rows: list[Answer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without split rows 68 of the 100 answers are right, the causal ones among them."""
        from hf_glm_ernie.vllm_plugin import attention

        monkeypatch.setattr(attention, "split", lambda *row: None)
        found = answers(served, rows, staggered(rows), max_tokens=NEW)
        assert sum(a.ids == b.ids for a, b in zip(found, of_rows, strict=True)) <= 80

    def test_a_control_that_fails_vllms_own_prefix(
        self, served: Any, rows: list[list[int]], of_rows: list[Answer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`PrefillPrefixLMAttention` shows the whole prompt to itself, so that the context sees `<sop>`."""
        from hf_glm_ernie.vllm_plugin import attention

        def whole(queries: list[int], keys: list[int], contexts: list[int]) -> rows_module.Rows:
            return rows_module.Rows(list(range(len(queries))), queries, keys)

        monkeypatch.setattr(attention, "split", whole)
        found = answers(served, rows, staggered(rows), max_tokens=NEW)
        assert sum(a.ids == b.ids for a, b in zip(found, of_rows, strict=True)) <= 95


class TestSample:
    def test_every_text(self, served_sample: Any, texts: list[list[int]], of_texts: list[Answer]) -> None:
        assert_equal(answers(served_sample, texts, staggered(texts), max_tokens=32), of_texts)

    def test_texts_become_ids_as_by_the_tokenizer(self, served_sample: Any, texts: list[list[int]]) -> None:
        from vllm import SamplingParams

        given = serving.sample_texts()
        outputs = served_sample.generate(given, SamplingParams(max_tokens=1), use_tqdm=False)
        assert [list(output.prompt_token_ids) for output in outputs] == texts[: len(given)]

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ([20, 1400, 1401, 1404], "two kinds of mask"),
            ([20, 1791], "1791"),
            ([20, 5000], r"\[5000\] have no token"),
            ([20] * 257, "256"),
            ("One [MASK] and another [gMASK]", "two kinds of mask"),
        ],
    )
    def test_a_bad_request_says_why_and_the_engine_goes_on(
        self, served_sample: Any, prompt: Any, message: str
    ) -> None:
        from vllm import SamplingParams

        given = {"prompt_token_ids": prompt} if isinstance(prompt, list) else prompt
        with pytest.raises(Exception, match=message) as caught:  # vLLM's classes differ by version
            served_sample.generate([given], SamplingParams(max_tokens=1), use_tqdm=False)
        assert type(caught.value).__name__ in ("VLLMValidationError", "ValueError")
        good = served_sample.generate(TEXTS[:1], SamplingParams(temperature=0), use_tqdm=False)
        assert good[0].outputs[0].text == " three hearts"

    @pytest.mark.parametrize("prompt", [[20, 1400, 21, 1404], [20] * 9])
    def test_ids_are_not_cut(self, served_sample: Any, prompt: list[int]) -> None:
        from vllm import SamplingParams

        with pytest.raises(Exception, match="truncate_prompt_tokens=3 would cut"):
            served_sample.generate(
                [{"prompt_token_ids": prompt}],
                SamplingParams(max_tokens=1),
                tokenization_kwargs={"truncate_prompt_tokens": 3},
                use_tqdm=False,
            )

    def test_ids_without_a_token_among_the_most_probable_end_nothing(self, served_sample: Any) -> None:
        """The model has 1,792 rows and the tokenizer fewer tokens; all are asked for."""
        from vllm import SamplingParams

        tokens = len(served_sample.get_tokenizer())
        assert tokens < 1792
        settings = SamplingParams(max_tokens=1, prompt_logprobs=1, logit_bias={1791: 100.0})
        output = served_sample.generate(["An octopus has [MASK] and blue blood."], settings, use_tqdm=False)[0]
        assert output.outputs[0].token_ids == [1791]
        assert output.outputs[0].text == ""


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2, "enforce_eager": False},  # vLLM's CPU runner asserts in eager pipelines
        {"enforce_eager": False},
    ],
    ids=lambda options: " ".join(options),
)
def test_in_parallel_and_compiled(
    folder: Path, rows: list[list[int]], of_rows: list[Answer], options: dict[str, Any]
) -> None:
    with engine(folder, **options) as served:
        assert_equal(answers(served, rows, staggered(rows), max_tokens=NEW), of_rows)


def test_preempted_requests_go_on_where_they_were(folder: Path, rows: list[list[int]]) -> None:
    """Eight requests of 100 tokens that grow to 160, in a cache that holds 960: five at a time would be too many."""
    chosen = [row[-100:] for row in rows if len(row) > 100][:8]
    wanted = expected(opened(folder), chosen, 60)
    a_token = 3 * 2 * 128 * 4  # bytes: layers, key and value, width, fp32
    with engine(folder, kv_cache_memory_bytes=960 * a_token, max_model_len=320, block_size=32) as served:
        found = answers(served, chosen, [0] * len(chosen), max_tokens=60)
        counters = {metric.name: getattr(metric, "value", None) for metric in served.get_metrics()}
    assert_equal(found, wanted)
    assert counters["vllm:num_preemptions"] > 0


@pytest.mark.parametrize(("dtype", "least"), [("float16", 0.97), ("bfloat16", 0.9)])
def test_half_precision(
    sample: Path, texts: list[list[int]], of_texts: list[Answer], dtype: str, least: float
) -> None:
    """The sample's answers do not hang on the last bits; in bf16 a tie may fall the other way."""
    with engine(sample, dtype=dtype) as served:
        found = answers(served, texts, staggered(texts), max_tokens=32)
    assert sum(a.ids == b.ids for a, b in zip(found, of_texts, strict=True)) >= least * len(texts)


@pytest.mark.parametrize(
    "left_out", ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.bias"]
)
def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path: Path, folder: Path, left_out: str) -> None:
    """vLLM alone would answer from memory that nothing was written to."""
    shutil.copytree(folder, tmp_path / "part")
    tensors = load_file(folder / "model.safetensors")
    del tensors[left_out]
    save_file(tensors, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 of the model's tensors, {left_out}"), engine(tmp_path / "part"):
        pass


def test_without_a_tokenizer_ids_are_held_against_the_model(folder: Path) -> None:
    with engine(folder, skip_tokenizer_init=True) as served:
        with pytest.raises(Exception, match=r"\[5000\] have no token"):
            answers(served, [[20, 5000]], [0], max_tokens=1, detokenize=False)
        assert answers(served, [[20, 1404]], [0], max_tokens=1, detokenize=False)[0].ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer_mode": "inkling"}, "would go round the checks"),
        ({"long_prefill_token_threshold": 16}, "long_prefill_token_threshold=16 cuts prompts"),
        ({"runner": "pooling"}, "GLM-130B generates"),
        ({"enable_prompt_embeds": True}, "Send ids or text"),
        ({"attention_backend": "FLEX_ATTENTION"}, "FLEX_ATTENTION cannot run"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_settings_that_would_answer_wrongly_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message), engine(folder, **options):  # pydantic wraps it
        pass


def test_fewer_tokens_in_a_step_than_a_prompt_has(folder: Path, rows: list[list[int]], of_rows: list[Answer]) -> None:
    """Where vLLM alone would wait forever."""
    longest = [1, 1]
    with engine(folder, max_num_batched_tokens=64) as served:
        found = answers(served, [rows[1], rows[2]], longest, max_tokens=NEW)
    assert_equal(found, of_rows[1:3])
