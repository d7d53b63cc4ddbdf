"""`python -m hf_glm_ernie serve`: a real server answers as `generate` does; bad requests are told why."""

import asyncio
import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_serve_available

from hf_glm_ernie import Ernie3ForCausalLM, Ernie3Tokenizer, fill_blanks
from hf_glm_ernie.__main__ import REFUSED, main
from hf_glm_ernie.serving import command
from hf_glm_ernie.serving.generation import Generations
from hf_glm_ernie.serving.requests import CheckedHandler
from tests.support import tiny_ernie3
from tests.support.evaluation_sample import CONTEXT, ROOT, converted_sample
from tests.support.http_servers import Server, free_port, running
from tests.support.pages import shown

needs_extra = pytest.mark.skipif(
    not is_serve_available(), reason="needs FastAPI and uvicorn: pip install 'hf-glm-ernie[serve-transformers]'"
)
BLANKS = [json.loads(line) for line in (ROOT / "examples/sample-glm130b/blanks.jsonl").open(encoding="utf-8")]
TEXTS = [blank["text"] for blank in BLANKS]
# Kinds that the list does not have: a sentence's blank within a text and at its end, an empty text, one already begun.
TEXTS += [
    "A blue lantern hangs. [sMASK] It is blue.",
    "邮局门口挂着[sMASK]",
    "",
    "Thunder is the sound[gMASK]<sop> that",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted_sample(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return SimpleNamespace(model=model, tokenizer=AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    words = ["serve", folder.name, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--device", "cpu"]
    log = tmp_path_factory.mktemp("log") / "server.txt"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {"PYTHONPATH": paths}
    with running(
        [sys.executable, "-m", "hf_glm_ernie", *words], port, log, cwd=folder.parent, env=variables
    ) as server:
        yield server


def generated(opened: Any, text: str, **settings: Any) -> tuple[str, list[int]]:
    """What the model writes behind a text, decoded, and its ids."""
    inputs = opened.tokenizer(text, return_tensors="pt")
    room = CONTEXT - inputs["input_ids"].shape[1]
    output = opened.model.generate(**inputs, **({"max_new_tokens": room} | settings))
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    return opened.tokenizer.decode(ids, skip_special_tokens=True), ids


# Answers -------------------------------------------------------------------------------------------------------------


@needs_extra
@pytest.mark.parametrize("text", TEXTS)
def test_completions_are_generate_s(server: Server, opened: Any, text: str) -> None:
    expected, ids = generated(opened, text)
    status, answer = server.ask("/v1/completions", {"prompt": text})
    assert status == 200
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
    assert answer["usage"]["completion_tokens"] == len(ids)
    assert answer["usage"]["prompt_tokens"] == len(opened.tokenizer(text)["input_ids"])

    *parts, last = server.stream("/v1/completions", {"prompt": text})
    assert len(parts) > 1 or len(ids) <= 3
    assert "".join(part["choices"][0]["text"] for part in parts) == expected
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"] == answer["usage"]


@needs_extra
def test_answers_fill_the_blanks_of_the_sample(server: Server, opened: Any) -> None:
    one_blank = [blank["text"] for blank in BLANKS if len(blank["blanks"]) == 1]
    filled = fill_blanks(opened.model, opened.tokenizer, one_blank, max_new_tokens=32)
    answers = [server.ask("/v1/completions", {"prompt": text})[1]["choices"][0]["text"] for text in one_blank]
    assert answers == [one.blanks[0] for one in filled]


@needs_extra
def test_many_at_once(server: Server, opened: Any) -> None:
    def ask(index: int) -> str:
        body = {"prompt": TEXTS[index % len(TEXTS)]}
        if index % 2:
            return "".join(part["choices"][0]["text"] for part in server.stream("/v1/completions", body))
        return server.ask("/v1/completions", body)[1]["choices"][0]["text"]

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(32)))
    assert answers == [generated(opened, TEXTS[index % len(TEXTS)])[0] for index in range(32)]


CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Mara the baker lights her oven at [MASK] in the morning."}],
    [{"role": "system", "content": "金刚石很硬。"}, {"role": "user", "content": "纸是[MASK]在两千年前发明的。"}],
    [{"role": "user", "content": [{"type": "text", "text": "Thunder is the sound"}]}],
]


@needs_extra
@pytest.mark.parametrize("chat", CHATS, ids=["mask", "system", "parts"])
def test_chats_are_the_template_s(server: Server, opened: Any, chat: list[dict[str, Any]]) -> None:
    plain = [
        turn | {"content": turn["content"] if isinstance(turn["content"], str) else turn["content"][0]["text"]}
        for turn in chat
    ]
    inputs = opened.tokenizer.apply_chat_template(
        plain, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    width = inputs["input_ids"].shape[1]
    output = opened.model.generate(**inputs, max_new_tokens=CONTEXT - width)[0, width:]
    expected = opened.tokenizer.decode(output, skip_special_tokens=True)
    status, answer = server.ask("/v1/chat/completions", {"messages": chat})
    assert (status, answer["choices"][0]["message"]["content"]) == (200, expected)
    parts = server.stream("/v1/chat/completions", {"messages": chat})
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == expected

    status, answer = server.ask("/v1/responses", {"input": plain, "stream": False})
    assert (status, answer["output"][0]["content"][0]["text"]) == (200, expected)
    events = server.stream("/v1/responses", {"input": plain})
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == expected


@needs_extra
def test_settings_of_a_request(server: Server, opened: Any) -> None:
    def asked(**settings: Any) -> tuple[str, str]:
        choice = server.ask("/v1/completions", {"prompt": text} | settings)[1]["choices"][0]
        return choice["text"], choice["finish_reason"]

    text = "Thunder is the sound"
    greedy = generated(opened, text)[0]
    assert asked(max_tokens=3) == (generated(opened, text, max_new_tokens=3)[0], "length")
    assert asked(temperature=0) == asked(model="glm-130b") == (greedy, "stop")
    stopped = generated(opened, text, stop_strings=["flash"], tokenizer=opened.tokenizer)[0]
    assert asked(stop="flash") == asked(stop=["flash"]) == (stopped, "stop")
    assert greedy.startswith(stopped)
    assert greedy != stopped
    torch.manual_seed(7)
    sampled = generated(opened, text, do_sample=True, temperature=3.0)[0]
    assert asked(temperature=3.0, seed=7)[0] == sampled != greedy


@needs_extra
def test_an_answer_ends_where_the_context_does(server: Server, opened: Any) -> None:
    ids = opened.tokenizer("a " * 300, add_special_tokens=False)["input_ids"]
    text = opened.tokenizer.decode(ids[: CONTEXT - 6])
    length = len(opened.tokenizer(text)["input_ids"])
    assert CONTEXT - 6 <= length < CONTEXT
    _, answer = server.ask("/v1/completions", {"prompt": text})
    expected, ids = generated(opened, text)
    assert answer["choices"][0]["text"] == expected
    assert answer["usage"]["completion_tokens"] == len(ids) <= CONTEXT - length


@needs_extra
def test_the_page_prints_what_stands_there(server: Server) -> None:
    commands, python, printed = shown("serve.md", "transformers serve")
    assert commands.splitlines()[-1] == "python -m hf_glm_ernie serve glm-130b --port 8000"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(python.replace(":8000/", f":{server.port}/"), "serve.md", "exec"), {})
    assert out.getvalue() == printed


def test_the_page_s_plan_is_the_planner_s(capsys: pytest.CaptureFixture[str]) -> None:
    commands, _, printed = shown("serve.md", "On GPUs")
    assert main(shlex.split(commands)[3:]) == 0
    found = capsys.readouterr().out
    assert printed.strip().removeprefix("...").removesuffix("...").strip() in found


# Refusals ------------------------------------------------------------------------------------------------------------

LONG = "a b c " * 200
BAD: list[tuple[str, Any, str]] = [
    ("completions", {"prompt": "Thunder [gMASK] and [MASK]"}, "holds two kinds of mask, [MASK] and [gMASK]"),
    ("completions", {"prompt": LONG}, f"tokens and the model's context {CONTEXT}: no room is left"),
    ("completions", {}, "no 'prompt'"),
    ("completions", {"prompt": ["a", "b"]}, "must be a string"),
    ("completions", {"prompt": [1, 2, 3]}, "must be a string"),
    ("completions", {"prompt": "a", "temperature": -1}, "temperature=-1 must be a number from 0"),
    ("completions", {"prompt": "a", "temperature": "hot"}, "temperature='hot' must be"),
    ("completions", {"prompt": "a", "top_p": 2}, "top_p=2 must be a number above 0, at most 1"),
    ("completions", {"prompt": "a", "max_tokens": 0}, "max_tokens=0 must be a whole number from 1 on"),
    ("completions", {"prompt": "a", "max_tokens": True}, "max_tokens=True must be"),
    ("completions", {"prompt": "a", "seed": 1.5}, "seed=1.5 must be"),
    ("completions", {"prompt": "a", "stop": [1]}, "stop=[1] must be a text"),
    ("completions", {"prompt": "a", "stop": []}, "stop=[] must be a text"),
    ("completions", {"prompt": "a", "model": "other"}, "requested 'other'"),
    ("completions", {"prompt": "a", "generation_config": "{"}, "Expecting property name"),
    ("completions", {"prompt": "a", "generation_config": '{"prefill_chunk_size": 2}'}, "reads a prompt in pieces"),
    ("completions", {"prompt": "a", "colour": "blue"}, "Unexpected fields"),
    ("completions", b'{"prompt": ', "JSON decode error"),
    ("chat/completions", {}, "no 'messages'"),
    ("chat/completions", {"messages": []}, "no 'messages', or an empty one"),
    ("chat/completions", {"messages": "hello"}, "must be a list of messages"),
    ("chat/completions", {"messages": ["hello"]}, "messages[0] must be an object with 'role'"),
    ("chat/completions", {"messages": [{"role": "user"}]}, "content of messages[0] is a NoneType"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, "found tool"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only"),
    ("chat/completions", {"messages": [{"role": "user", "content": "[MASK] [sMASK]"}]}, "two kinds of mask"),
    ("chat/completions", {"messages": [{"role": "user", "content": LONG}]}, "no room is left"),
    ("responses", {}, "no 'input'"),
    ("responses", {"input": LONG}, "no room is left"),
    ("responses", {"input": 5}, "must be a string or list"),
]


@needs_extra
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_bad_requests_say_why_and_the_server_lives(server: Server, opened: Any, streams: bool) -> None:
    """No request of these reaches generation but one, which a stream cannot answer with a status."""
    for path, body, words in BAD:
        if streams and (isinstance(body, bytes) or "reads a prompt" in words):
            continue
        asked = body if isinstance(body, bytes) else body | {"stream": streams}
        status, answer = server.ask(f"/v1/{path}", asked)
        assert status in (400, 422), (path, body, answer)
        assert words in json.dumps(answer, ensure_ascii=False), (path, body, answer)
        assert status == 400 or any(known in words for known in ("Unexpected", "JSON", "string or list"))
    text = "Thunder is the sound"
    assert server.ask("/v1/completions", {"prompt": text})[1]["choices"][0]["text"] == generated(opened, text)[0]
    assert "Traceback" not in server.log.read_text()


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["serve", *words]) == REFUSED
    return capsys.readouterr().err


def test_what_is_refused_before_a_weight_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "is_serve_available", lambda: True)
    assert "as a causal text" in refusal(capsys, str(folder), "--continuous-batching")
    assert "holds no config.json" in refusal(capsys, str(tmp_path))
    for settings, words in (
        ({"architectures": ["ErnieForMaskedLM"]}, "ErnieForMaskedLM, which does not generate"),
        ({"architectures": ["ErnieForUIE"]}, "ErnieForUIE, which does not generate"),
        ({"architectures": None}, "holds no config.json that names its model"),
        ([], "holds no config.json that names its model"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert words in refusal(capsys, str(tmp_path))
    monkeypatch.setattr(command, "is_serve_available", lambda: False)
    assert "pip install 'hf-glm-ernie[serve-transformers]'" in refusal(capsys, str(folder))


def test_the_host_s_continuous_batching_is_refused_behind_the_command_too() -> None:
    with pytest.raises(ValueError, match="causal text"):
        Generations()("model", use_cb=True)


# The unified model ---------------------------------------------------------------------------------------------------


@needs_extra
def test_the_unified_model_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, by the host's handler: only HTTP is left out."""
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.utils import GenerationState

    vocabulary = ROOT / "examples/sample-ernie/uie/vocab.txt"
    tokenizer = Ernie3Tokenizer.from_released_vocabulary(vocabulary, num_pieces=None)
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "sentence_token_id", "soft_prompt_token_id")}
    model = tiny_ernie3.tiny_model(Ernie3ForCausalLM, vocab_size=len(tokenizer), **ids)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    command.check_folder(tmp_path)
    monkeypatch.setattr("transformers.Ernie3ForCausalLM", Ernie3ForCausalLM, raising=False)
    manager, state = ModelManager(device="cpu", force_model=str(tmp_path)), GenerationState()
    monkeypatch.setattr(state, "get_manager", Generations())
    handler = CheckedHandler(CompletionHandler(manager, state), "prompt")
    response = asyncio.run(handler.handle_request({"prompt": "纸是中国人发明的", "max_tokens": 8}, "1"))
    inputs = tokenizer("纸是中国人发明的", return_tensors="pt")
    width = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, max_new_tokens=8)[0, width:]
    (choice,) = json.loads(response.body)["choices"]
    assert choice["text"] == tokenizer.decode(output, skip_special_tokens=True)
    manager.shutdown()


def test_generate_takes_a_tokenizer_for_stop_texts(opened: Any) -> None:
    """The host hands it on to every forward; ours refuse what they do not read."""
    whole, _ = generated(opened, "Thunder is the sound", tokenizer=opened.tokenizer)
    stopped, _ = generated(opened, "Thunder is the sound", tokenizer=opened.tokenizer, stop_strings=["follow"])
    assert (stopped, whole) == ("that follow", "that follows a flash of lightning.")
    static = {"cache_implementation": "static", "disable_compile": True}
    assert generated(opened, "Thunder is the sound", tokenizer=opened.tokenizer, **static)[0] == whole
    with pytest.raises(TypeError, match="tokenizer"):
        opened.model(torch.tensor([[5]]), tokenizer=opened.tokenizer)
