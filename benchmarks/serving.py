"""GLM-130B behind three engines, the same 200 requests, several rates: vLLM, `transformers serve`, `fill_blanks`.

    python benchmarks/serving.py --vllm-python ENVIRONMENT/bin/python --output serving

Two models: the shipped sample, whose answers end by themselves (2 to 20 tokens), and a larger one of random weights
with the sample's tokenizer, whose answers all have 24 tokens, so that less of Python is measured. Prompts are
sentences of the sample's corpus with a blank; of the larger model, four in a row.

- vLLM: `python -m vllm.entrypoints.openai.api_server` in the environment given, or left out.
- transformers: `python -m hf_glm_ernie serve` in this environment: one request after another.
- fill_blanks: a loop in this process that fills what has arrived, at most 16 texts a call. It streams nothing.

Requests are greedy, arrivals a Poisson process with a fixed seed (`serving_load.py`). Every answer is compared with
`generate`'s, in fp32, and the count of equal ones is part of the table. The engines take turns within each rate, so
that a machine whose speed drifts slows all, and compute with as many threads each. Writes results.json, table.md and,
with matplotlib, latency.png.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from serving_load import arrivals, figures, load_function, load_server
from tqdm import tqdm

from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM, Glm130bTokenizer, fill_blanks

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, which need not be installed

from conversion.__main__ import main as convert

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "sample-glm130b"
HEAD = 128  # a size that vLLM's CPU kernel takes
ENGINES = {"vllm": "vLLM", "transformers": "transformers serve", "fill_blanks": "fill_blanks, what has arrived"}
BATCH_SIZE = 16


@dataclass
class Work:
    """A model's folder, the requests to it and what `generate` answers.

    Attributes:
        name: In tables.
        folder: What the engines open.
        prompts: One text with one blank, or with none, a request.
        max_tokens: Of each answer.
        rates: Requests per second, of each run.
        expected: Answers, without spaces at their ends, and how many tokens each has.
    """

    name: str
    folder: Path
    prompts: list[str]
    max_tokens: int
    rates: list[float]
    expected: list[tuple[str, int]]


# Models and requests ------------------------------------------------------------------------------------------------


def write_sample(folder: Path) -> None:
    """The shipped sample, converted."""
    if not folder.exists() and convert(["glm130b", f"--source={SAMPLE}", f"--output={folder}"]):
        raise SystemExit("the sample was not converted")


def write_larger(folder: Path, sample: Path, layers: int, hidden: int) -> int:
    """Random weights with the sample's tokenizer; returns how many.

    The rows of tokens that are no text of their own (bytes, blanks, marks) are zero: their logits are 0, below the
    largest of a thousand others, so that greedy answers are whole characters and run to their limit.
    """
    tokenizer = Glm130bTokenizer.from_pretrained(sample)
    settings = json.loads((sample / "config.json").read_text())
    ids = {name: value for name, value in settings.items() if name.endswith("token_id")}
    torch.manual_seed(0)
    config = Glm130bConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD,
        max_position_embeddings=1024,
        **ids,
    )
    model: Any = Glm130bForCausalLM(config)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    with torch.no_grad():
        for index, token in enumerate(tokens):
            if token.startswith("<") or token.endswith("MASK]") or token == "▁":
                model.get_input_embeddings().weight[index] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def prompts(count: int, seed: int, sentences: int) -> list[str]:
    """Texts of the corpus, English and Chinese in turn, each with one blank or none.

    Args:
        count: How many.
        seed: Of places and kinds of the blanks.
        sentences: In a text.
    """
    corpora = [(SAMPLE / f"corpus.{language}.txt").read_text().splitlines() for language in ("en", "zh")]
    rng, texts = random.Random(seed), []
    for i in range(count):
        english = i % 2 == 0
        text = (" " if english else "").join(rng.sample(corpora[i % 2], sentences))
        pieces = text.split(" ") if english else list(text)
        start = rng.randrange(len(pieces) - 2)
        end = min(len(pieces) - 1, start + rng.randint(1, 4))
        kind = rng.choice(["[MASK]", "[MASK]", "[sMASK]", "[gMASK]", ""])
        if kind in ("[gMASK]", ""):  # the text breaks off
            written = [*pieces[: max(2, start)], *([kind] if kind else [])]
        else:
            written = [*pieces[:start], kind, *pieces[end:]]
        texts.append((" " if english else "").join(written))
    return texts


def expected_answers(model: Any, tokenizer: Any, texts: list[str], max_tokens: int) -> list[tuple[str, int]]:
    """What `generate` writes, and in how many tokens."""
    answers = []
    for start in tqdm(range(0, len(texts), BATCH_SIZE), desc="generate"):
        inputs = tokenizer(texts[start : start + BATCH_SIZE], padding=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=max_tokens)[:, inputs["input_ids"].shape[1] :]
        for row in output.tolist():
            ids = row[: row.index(tokenizer.eop_token_id) + 1] if tokenizer.eop_token_id in row else row
            answers.append((tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids)))
    return answers


# Engines -------------------------------------------------------------------------------------------------------------


@contextmanager
def server(command: list[str], port: int, log: Path, environment: dict[str, str], wait: float) -> Iterator[str]:
    """A server on the loopback as long as this lasts; gives its address once it says it is well."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    with log.open("w") as out:  # not in a checkout, whose build leftovers would hide the installed plugin
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=variables, cwd=log.parent)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + wait
    try:
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not start; see {log}")
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def start_servers(stack: ExitStack, engines: list[str], folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """Starts the servers that are asked for; they run beside each other and idle while another is measured."""
    urls = {}
    for name in engines:
        port, log = free_port(), options.output / f"{name}-{folder.name}.log"
        environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)}
        if name == "vllm":
            words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype=float32"]
            command = [options.vllm_python, *words, "--max-num-seqs", "64"]
            environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
            environment |= {"VLLM_CPU_OMP_THREADS_BIND": f"0-{options.threads - 1}"}
        elif name == "transformers":
            command = [sys.executable, "-m", "hf_glm_ernie", "serve", str(folder), "--dtype=float32", "--device=cpu"]
        else:
            continue
        command += ["--host", "127.0.0.1", "--port", str(port)]
        urls[name] = stack.enter_context(server(command, port, log, environment, options.start_seconds))
    return urls


def run(name: str, url: str | None, work: Work, times: list[float], opened: Any, limit: float) -> Any:
    """One engine's answers to all requests of a run."""
    if url is not None:
        settings: dict[str, Any] = {"max_tokens": work.max_tokens, "temperature": 0, "model": str(work.folder)}
        settings["stream_options"] = {"include_usage": True}
        bodies = [settings | {"prompt": text} for text in work.prompts[: len(times)]]
        return asyncio.run(load_server(url, bodies, times, limit))
    model, tokenizer = opened

    def answer(numbers: list[int]) -> list[tuple[str, int]]:
        texts = [work.prompts[i] for i in numbers]
        filled = fill_blanks(model, tokenizer, texts, batch_size=BATCH_SIZE, max_new_tokens=work.max_tokens)
        return [(one.blanks[0], work.expected[i][1]) for i, one in zip(numbers, filled, strict=True)]

    return load_function(answer, times, limit, BATCH_SIZE)


def measure(work: Work, engines: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every engine at every rate."""
    model = Glm130bForCausalLM.from_pretrained(work.folder, dtype=torch.float32)
    opened = model, Glm130bTokenizer.from_pretrained(work.folder)
    work.expected = expected_answers(*opened, work.prompts, work.max_tokens)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        urls = start_servers(stack, engines, work.folder, options)
        for name in engines:  # the first requests pay for what is made once
            run(name, urls.get(name), work, [0.0] * 4, opened, options.limit)
        for rate in work.rates:
            times = arrivals(len(work.prompts), rate, options.seed)
            for name in engines:
                answers = run(name, urls.get(name), work, times, opened, options.limit)
                found = figures(rate, answers, times, [text for text, _ in work.expected])
                errors = sorted({one.error for one in answers if one.error})[:3]
                row = {"model": work.name, "engine": name, "errors": errors, **found.as_dict()}
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


# Results -------------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown: a table for each model."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        parts.append(
            f"**{model}**\n\n| arrive/s | engine | answered/s | tokens/s | latency p50, p90, p99, s | first text p50, "
            "p90, s | equal to generate |\n|---|---|---|---|---|---|---|"
        )
        for row in (row for row in rows if row["model"] == model):
            first = (
                f"{row['first_p50']:.2f}, {row['first_p90']:.2f}" if row["engine"] != "fill_blanks" else "as latency"
            )
            latency = ", ".join(f"{row[f'latency_p{p}']:.2f}" for p in (50, 90, 99))
            failed = f" ({row['failed']} failed)" if row["failed"] else ""
            parts.append(
                f"| {row['rate']:g} | {ENGINES[row['engine']]} | {row['requests_per_second']:.2f} | "
                f"{row['tokens_per_second']:.0f} | {latency} | {first} | {row['equal']} of "
                f"{row['answered'] + row['failed']}{failed} |"
            )
        parts.append("")
    return "\n".join(parts)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Latency against rate, one panel a model."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"No {path.name}: pip install matplotlib. The numbers are in results.json.")
        return
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(5 * len(models), 4.4), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        for color, engine in enumerate(ENGINES):
            points = [row for row in rows if (row["model"], row["engine"]) == (model, engine)]
            if not points:
                continue
            rates = [row["rate"] for row in points]
            axes.plot(rates, [row["latency_p50"] for row in points], f"C{color}o-", label=f"{ENGINES[engine]}, p50")
            axes.plot(rates, [row["latency_p99"] for row in points], f"C{color}.:", label=f"{ENGINES[engine]}, p99")
        axes.set(title=model, xlabel="requests that arrive, per second", ylabel="latency, s", yscale="log")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ENGINES))
    figure.savefig(path, dpi=110)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for models, logs and results")
    parser.add_argument("--vllm-python", help="python of an environment with vLLM and this package (default: no vLLM)")
    parser.add_argument("--threads", type=int, default=1, help="of each engine (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="of the larger model (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=512, help="its width, times 128 (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--sample-rates", type=float, nargs="*", default=[8, 16, 32], help="arrivals per second")
    parser.add_argument("--larger-rates", type=float, nargs="*", default=[1, 2, 4], help="arrivals per second")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=300, help="seconds of a run (default: %(default)s)")
    parser.add_argument(
        "--start-seconds", type=float, default=600, help="for a server to start (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.requests <= 2000 or not 0 < options.limit <= 3600:
        parser.error("--requests must lie in 1 .. 2000, --limit in 0 .. 3600")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measures and writes."""
    options = parse_arguments(arguments)
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    sample, larger = options.output / "sample", options.output / "larger"
    write_sample(sample)
    shutil.rmtree(larger, ignore_errors=True)
    size = write_larger(larger, sample, options.layers, options.hidden)
    torch.set_num_threads(options.threads)
    engines = [name for name in ENGINES if name != "vllm" or options.vllm_python]
    count, seed, name = options.requests, options.seed, f"{size / 1e6:.0f}M parameters"
    works = [
        Work("the sample", sample, prompts(count, seed, sentences=1), 32, options.sample_rates, []),
        Work(name, larger, prompts(count, seed, sentences=4), 24, options.larger_rates, []),
    ]
    rows: list[dict[str, Any]] = []
    for work in works:
        if work.rates:
            rows += measure(work, engines, options)
            (options.output / "results.json").write_text(json.dumps(rows, indent=1))
            (options.output / "table.md").write_text(table(rows))
            plot(rows, options.output / "latency.png")
    print(table(rows))


if __name__ == "__main__":
    main()
