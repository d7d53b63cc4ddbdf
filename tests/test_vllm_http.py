"""GLM-130B behind vLLM's OpenAI-compatible server: ids and log probabilities of `generate` through HTTP, streamed and
not; chats; bad requests; a server that is killed and started again.

One server with the sample, as `python -m vllm.entrypoints.openai.api_server FOLDER` starts it, in eager mode; the last
test kills it and starts a second.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from http.client import HTTPException
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_glm_ernie  # registers GLM-130B
from tests.support import serving
from tests.support.evaluation_sample import CONTEXT, converted_sample
from tests.support.http_servers import Server, free_port, running
from tests.support.pages import shown

pytest.importorskip("vllm", reason=serving.MISSING)

BOUND = 2e-5  # of log probabilities, in fp32: 3.8e-6 seen
NEW = 32
START_SECONDS = 600  # 30 on a quiet machine
TEXTS = [*serving.sample_texts(), "A blue lantern hangs. [sMASK] It is blue.", "邮局门口挂着[sMASK]", "太阳", "a"]
TEXTS += ["Thunder is the sound[gMASK]<sop> that"]
GREEDY = {"temperature": 0, "max_tokens": NEW}
TOLD = {"return_token_ids": True, "logprobs": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted_sample(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return SimpleNamespace(model=model, tokenizer=AutoTokenizer.from_pretrained(folder))


def start(folder: Path, port: int) -> AbstractContextManager[Server]:
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", folder.name, "--dtype", "float32"]
    words += ["--enforce-eager", "--kv-cache-memory-bytes", str(serving.CACHE_BYTES), "--max-num-seqs", "8"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--max-logprobs", "-1"]
    variables = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # not in the checkout, whose build leftovers would hide the entry point of the installed package
    options: dict[str, Any] = {"env": variables | {"VLLM_NO_USAGE_STATS": "1"}, "cwd": folder.parent}
    options["start_new_session"] = True
    return running([sys.executable, *words], port, folder.parent / "server.txt", START_SECONDS, **options)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with start(folder, free_port()) as server:
        yield server


@pytest.fixture(scope="module")
def wanted(opened: Any) -> dict[str, serving.Answer]:
    """What `generate` answers to each text."""
    rows = [opened.tokenizer(text)["input_ids"] for text in TEXTS]
    return dict(zip(TEXTS, serving.expected(opened.model, rows, NEW), strict=True))


def text_of(opened: Any, ids: list[int]) -> str:
    return opened.tokenizer.decode(ids, skip_special_tokens=True)


def check(found: dict[str, Any], wanted: serving.Answer) -> None:
    """Ids and log probabilities of one choice."""
    assert found["token_ids"] == wanted.ids
    differences = zip(found["logprobs"]["token_logprobs"], wanted.logprobs, strict=True)
    assert max(abs(a - b) for a, b in differences) <= BOUND


def joined(events: list[dict[str, Any]]) -> dict[str, Any]:
    """One choice from the events of a stream."""
    choices = [event["choices"][0] for event in events if event["choices"]]
    return {
        "text": "".join(choice["text"] for choice in choices),
        "token_ids": [index for choice in choices for index in choice["token_ids"] or []],
        "logprobs": {
            "token_logprobs": [
                one for choice in choices for one in (choice["logprobs"] or {}).get("token_logprobs", [])
            ]
        },
        "finish_reason": choices[-1]["finish_reason"],
    }


# Answers -------------------------------------------------------------------------------------------------------------


def test_completions_are_generate_s(server: Server, opened: Any, wanted: dict[str, serving.Answer]) -> None:
    for text in TEXTS:
        status, answer = server.ask("/v1/completions", {"prompt": text} | GREEDY | TOLD)
        assert status == 200, answer
        (choice,) = answer["choices"]
        assert choice["prompt_token_ids"] == opened.tokenizer(text)["input_ids"]
        check(choice, wanted[text])
        # the text goes on behind the prompt: with the space that a decoder drops from a text's begin
        assert choice["text"].removeprefix(" ") == text_of(opened, wanted[text].ids)
        assert choice["finish_reason"] == (
            "stop" if wanted[text].ids[-1] == opened.tokenizer.eop_token_id else "length"
        )


def test_streams_are_generate_s(server: Server, opened: Any, wanted: dict[str, serving.Answer]) -> None:
    pieces = []
    for text in TEXTS:
        events = server.stream("/v1/completions", {"prompt": text} | GREEDY | TOLD)
        choice = joined(events)
        pieces.append(len(events))  # a busy server sends several tokens in one
        check(choice, wanted[text])
        assert choice["text"].removeprefix(" ") == text_of(opened, wanted[text].ids)
    assert max(pieces) > 2


def test_ids_several_prompts_and_many_at_once(server: Server, opened: Any, wanted: dict[str, serving.Answer]) -> None:
    rows = [opened.tokenizer(text)["input_ids"] for text in TEXTS]
    _, answer = server.ask("/v1/completions", {"prompt": rows} | GREEDY | TOLD)
    for choice, text in zip(answer["choices"], TEXTS, strict=True):
        check(choice, wanted[text])

    def ask(index: int) -> dict[str, Any]:
        body = {"prompt": TEXTS[index % len(TEXTS)]} | GREEDY | TOLD
        if index % 2:
            return joined(server.stream("/v1/completions", body))
        return server.ask("/v1/completions", body)[1]["choices"][0]

    with ThreadPoolExecutor(16) as threads:
        for index, choice in enumerate(threads.map(ask, range(64))):
            check(choice, wanted[TEXTS[index % len(TEXTS)]])


def test_without_special_tokens_a_text_is_causal(server: Server, opened: Any) -> None:
    ids = opened.tokenizer("Thunder is the sound", add_special_tokens=False)["input_ids"]
    (expected,) = serving.expected(opened.model, [ids], NEW)
    body = {"prompt": "Thunder is the sound", "add_special_tokens": False} | GREEDY | TOLD
    (choice,) = server.ask("/v1/completions", body)[1]["choices"]
    assert choice["prompt_token_ids"] == ids
    check(choice, expected)


def test_a_text_with_two_blanks_is_a_request_a_blank(server: Server, opened: Any) -> None:
    """As ids: the first answer, decoded and tokenized again, need not be the same."""
    text = next(text for text in TEXTS if text.count("[MASK]") == 2)
    filled = hf_glm_ernie.fill_blanks(opened.model, opened.tokenizer, text, max_new_tokens=NEW)
    ids, blanks = opened.tokenizer(text)["input_ids"], []
    while opened.tokenizer.mask_token_id in ids:
        (choice,) = server.ask("/v1/completions", {"prompt": ids} | GREEDY | TOLD)[1]["choices"]
        answer = [index for index in choice["token_ids"] if index != opened.tokenizer.eop_token_id]
        blanks.append(text_of(opened, answer))
        place = ids.index(opened.tokenizer.mask_token_id)
        ids = [*ids[:place], *answer, *ids[place + 1 :]]
    assert blanks == filled.blanks
    closing = [opened.tokenizer.eos_token_id, opened.tokenizer.sop_token_id]
    assert [*filled.input_ids, *closing][: len(ids) - 1] == ids[:-1]  # `</s>` where the text does not end in its blank


def test_a_request_that_names_no_temperature_is_greedy(server: Server, wanted: dict[str, serving.Answer]) -> None:
    """The folder says so, as to `generate`; one that names a temperature is sampled."""
    for text in TEXTS[:8]:
        (choice,) = server.ask("/v1/completions", {"prompt": text, "max_tokens": NEW} | TOLD)[1]["choices"]
        check(choice, wanted[text])

    def asked(**settings: Any) -> str:
        body = {"prompt": "Thunder is the sound", "max_tokens": NEW} | settings
        return server.ask("/v1/completions", body)[1]["choices"][0]["text"]

    assert asked(temperature=2, seed=7) == asked(temperature=2, seed=7) != asked()


CHATS = [
    [{"role": "user", "content": "Mara the baker lights her oven at [MASK] in the morning."}],
    [{"role": "system", "content": "金刚石很硬。"}, {"role": "user", "content": "纸是[MASK]在两千年前发明的。"}],
    [{"role": "user", "content": "Thunder is the sound"}],
]


@pytest.mark.parametrize("chat", CHATS, ids=["mask", "system", "none"])
def test_chats_are_the_template_s(server: Server, opened: Any, chat: list[dict[str, str]]) -> None:
    ids = opened.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    (expected,) = serving.expected(opened.model, [ids], NEW)
    status, answer = server.ask("/v1/chat/completions", {"messages": chat, "return_token_ids": True} | GREEDY)
    assert status == 200, answer
    assert answer["prompt_token_ids"] == ids
    assert answer["choices"][0]["token_ids"] == expected.ids
    content = answer["choices"][0]["message"]["content"]
    assert content.removeprefix(" ") == text_of(opened, expected.ids)
    events = server.stream("/v1/chat/completions", {"messages": chat} | GREEDY)
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == content


def test_the_page_prints_what_stands_there(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands, python, printed = shown("serve.md", "vLLM")
    *words, dtype, float32, port, _ = commands.splitlines()[-1].split()
    assert words[1:] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "glm-130b"]
    assert (dtype, float32, port) == ("--dtype", "float32", "--port")
    monkeypatch.chdir(folder.parent)
    exec(compile(python.replace(":8001/", f":{server.port}/"), "serve.md", "exec"), {})
    assert capsys.readouterr().out == printed


# Refusals ------------------------------------------------------------------------------------------------------------

LONG = "a b c " * 200
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("completions", {"prompt": "Thunder [gMASK] and [MASK]"}, "holds two kinds of mask, [MASK] and [gMASK]"),
    ("completions", {"prompt": [20, 1400, 1401, 1404]}, "two kinds of mask"),
    ("completions", {"prompt": LONG}, f"maximum context length is {CONTEXT} tokens"),
    ("completions", {"prompt": [20] * (CONTEXT + 1)}, f"maximum context length is {CONTEXT} tokens"),
    ("completions", {"prompt": [20] * CONTEXT}, "no room is left to generate"),
    ("completions", {"prompt": "a", "max_tokens": CONTEXT + 1}, f"greater than max_model_len={CONTEXT}"),
    ("completions", {"prompt": [20, 1791]}, "have no token"),
    ("completions", {"prompt": [20, 5000]}, "have no token"),
    ("completions", {"prompt": [20, -1]}, "-1"),
    ("completions", {"prompt": []}, "at least one prompt"),
    ("completions", {"prompt": ""}, "must be provided and non-empty"),
    ("completions", {}, "must be provided and non-empty"),
    ("completions", {"prompt": "a", "temperature": -1}, "temperature must be non-negative"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, "found tool"),
    ("chat/completions", {"messages": [{"role": "user", "content": "[MASK] [sMASK]"}]}, "two kinds of mask"),
    ("chat/completions", {"messages": [{"role": "user", "content": LONG}]}, "maximum context length"),
    ("chat/completions", {}, "messages"),
]


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_bad_requests_get_a_400_and_the_server_goes_on(
    server: Server, wanted: dict[str, serving.Answer], streams: bool
) -> None:
    for path, body, words in BAD:
        status, answer = server.ask(f"/v1/{path}", body | {"stream": streams})
        assert status == 400, (path, body, answer)
        assert words in json.dumps(answer, ensure_ascii=False), (path, body, answer)
    # ids without a token among the most probable of a place have no text and end nothing
    status, _ = server.ask("/v1/completions", {"prompt": TEXTS[0], "logprobs": 1792, "max_tokens": 2, "echo": True})
    assert status == 200
    (choice,) = server.ask("/v1/completions", {"prompt": TEXTS[0]} | GREEDY | TOLD)[1]["choices"]
    check(choice, wanted[TEXTS[0]])


def test_killed_and_started_again(server: Server, folder: Path, wanted: dict[str, serving.Answer]) -> None:
    """Last in this file. A request that runs is lost, with an error to its client; the next server answers as ever.

    vLLM's engine outlives a server that is killed alone, so the whole group is killed, as a container's end does it.
    """
    children = psutil.Process(server.process.pid).children(recursive=True)
    long = {"prompt": TEXTS[-1], "ignore_eos": True, "max_tokens": 200, "temperature": 0}

    def is_answered(_: int) -> bool:
        try:
            events = server.stream("/v1/completions", long)
        except (OSError, HTTPException, ValueError):
            return False
        return bool(events) and events[-1]["choices"][0]["finish_reason"] == "length"

    with ThreadPoolExecutor(64) as threads:
        answered = threads.map(is_answered, range(64))  # eight run at a time
        time.sleep(0.5)
        os.killpg(server.process.pid, signal.SIGKILL)
        assert not all(answered)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    with start(folder, server.port) as again:
        for text in TEXTS[::4]:
            (choice,) = again.ask("/v1/completions", {"prompt": text} | GREEDY | TOLD)[1]["choices"]
            check(choice, wanted[text])
