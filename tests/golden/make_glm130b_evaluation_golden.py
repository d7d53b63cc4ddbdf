"""Makes `glm130b_evaluation.json`: rows, scores and answers of the original evaluation code, on random ids.

    git clone https://github.com/THUDM/GLM-130B
    python tests/golden/make_glm130b_evaluation_golden.py --repository GLM-130B

The original's `evaluation`, `generation` and `tasks/lambada` are run as they are: data sets, collators,
`ModelForEvaluation`, beam search. What they import from SwissArmyTransformer and dataclass_wizard is replaced by
stand-ins below; the model is the slow reference of this repository with the weights of `glm130b_small`.
"""

import argparse
import json
import random
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.reference.glm130b_naive import forward  # noqa: E402  # the path comes first

# The two ends are tokens that this model likes to write.
TOKENS = {"[MASK]": 360, "[gMASK]": 361, "sop": 364, "eop": 30, "eos": 304}
WORDS = [index for index in range(5, 350) if index not in TOKENS.values()]
LAYERS, HEADS = 3, 8


class Tokenizer:
    """What the original asks of its tokenizer; a text is its ids."""

    def get_command(self, name: str) -> int:
        return TOKENS[name]

    def tokenize(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]


def stand_ins() -> None:
    """Puts what the original imports, and is not here, into `sys.modules`."""

    def module(name: str, **names: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(names)

    def greedy_only(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
        assert top_k == 1
        assert top_p == 0.0
        return torch.where(logits < logits.max(-1, keepdim=True).values, -65504.0, logits)

    def update_mems(new: list[torch.Tensor], mems: torch.Tensor | None, max_memory_length: int) -> torch.Tensor:
        stacked = torch.stack(new)
        return stacked if mems is None else torch.cat((mems, stacked), dim=2)

    def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")

    sat = "SwissArmyTransformer"
    tokenizer = Tokenizer()
    mpu = types.SimpleNamespace()
    module(sat, get_tokenizer=lambda: tokenizer, mpu=mpu)
    module(f"{sat}.mpu", vocab_parallel_cross_entropy=cross_entropy)
    for name in ("generation", "generation.sampling_strategies", "tokenization", "tokenization.icetk_glm_130B"):
        module(f"{sat}.{name}")
    module(
        f"{sat}.generation.autoregressive_sampling", update_mems=update_mems, get_masks_and_position_ids_default=None
    )
    module(f"{sat}.generation.sampling_strategies.base_strategy", top_k_logits=greedy_only)
    module(f"{sat}.tokenization.icetk_glm_130B.ice_tokenizer", _IceTokenizer=Tokenizer)
    module("dataclass_wizard", YAMLWizard=object)


def weights() -> dict[str, torch.Tensor]:
    """The weights of `glm130b_small`, under this repository's names."""
    from conversion.__main__ import main as convert

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        source = HERE / "glm130b_small"
        assert (
            convert(
                ["glm130b", f"--source={source / 'tp8'}", f"--config={source / 'config.json'}", f"--output={target}"]
            )
            == 0
        )
        from transformers import AutoModelForCausalLM

        import hf_glm_ernie  # noqa: F401  # registers the model

        return AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).state_dict()


class SlowModel(torch.nn.Module):
    """The slow reference as the original calls its model; the "memory" of a beam is its ids."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        self.state = state
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.transformer = types.SimpleNamespace(parallel_output=False)
        self.positions = self.masked = torch.zeros(0)

    def forward(
        self,
        tokens: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        mems: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        new = tokens.shape[1]
        memory = tokens[..., None].float()
        if mems is not None:  # one prompt: all beams have the positions and the mask of the first
            tokens = torch.cat((mems[0, :, :, 0].long(), tokens), dim=1)
            self.positions = torch.cat((self.positions, position_ids[:1]), dim=1)
            before = torch.nn.functional.pad(self.masked, (0, new), value=True)
            self.masked = torch.cat((before, attention_mask[:1]), dim=2)
            positions = self.positions.expand(len(tokens), -1)
            masked = self.masked.expand(len(tokens), -1, -1, -1)
        else:
            self.positions, self.masked = position_ids, attention_mask
            positions, masked = position_ids, attention_mask
        logits = [
            forward(self.state, ids.tolist(), at.tolist(), ~hidden[0], LAYERS, HEADS)[-new:]
            for ids, at, hidden in zip(tokens, positions, masked, strict=True)
        ]
        return torch.stack(logits), {"mem_kv": memory}


def bits(mask: Any) -> str:
    """A square mask as hex digits, row after row."""
    return np.packbits(np.asarray(mask, dtype=bool).reshape(-1)).tobytes().hex()


def listed(value: Any) -> Any:
    """Arrays as lists, at any depth."""
    if isinstance(value, list):
        return [listed(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def words(rng: random.Random, low: int, high: int) -> list[int]:
    return [rng.choice(WORDS) for _ in range(rng.randint(low, high))]


def choice_cases(rng: random.Random, evaluator: Any, folder: Path) -> list[dict[str, Any]]:
    """Every setting, each a file of four items: with masks, without, too long, of one token or several."""
    from evaluation.configs import MultiChoiceTaskConfig, TaskType
    from evaluation.dataset import MultiChoiceTaskDataset

    cases = []
    for task_mask, unified, single in [(t, u, s) for t in (False, True) for u in (False, True) for s in (False, True)]:
        items: list[dict[str, Any]] = []
        for number in range(4):
            text = words(rng, 1, 9) if number < 3 else words(rng, 40, 60)
            if number == 1 and not unified:
                text.insert(rng.randint(0, len(text)), TOKENS["[gMASK]" if task_mask else "[MASK]"])
            count = rng.randint(2, 4)
            choices = [words(rng, 1, 1) if single else words(rng, 1, 5) for _ in range(count)]
            if not single:
                choices[0] += words(rng, 1, 1)
            items.append({"inputs": text, "choices": choices, "label": 0})
        path = folder / "choices.jsonl"
        path.write_text("\n".join(map(json.dumps, items)) + "\n")
        config = MultiChoiceTaskConfig(
            "c", TaskType.MULTICHOICE, "p", use_task_mask=task_mask, use_multitask_encoding=unified, max_seq_length=32
        )
        dataset = MultiChoiceTaskDataset(str(path), config)
        scores = evaluator.cond_log_prob(dataset.collate_fn([dataset[i] for i in range(len(dataset))]))
        for item, row, score in zip(items, map(dataset.__getitem__, range(len(dataset))), scores, strict=True):
            cases.append(
                {
                    "use_task_mask": task_mask,
                    "unified_multitask_encoding": unified,
                    "one_sop": dataset.is_single_token,
                    "max_seq_length": 32,
                    "text": item["inputs"],
                    "choices": item["choices"],
                    "ids": listed(row["token"]),
                    "positions": listed(row["position_id"]),
                    "visible": bits(row["attention_mask"]),
                    "places": listed(row["choice_target_ids"]),
                    "log_probs": score,
                }
            )
    return cases


def window_cases(rng: random.Random, evaluator: Any, folder: Path) -> list[dict[str, Any]]:
    from evaluation.configs import LanguageModelTaskConfig, TaskType
    from evaluation.dataset import LanguageModelTaskDataset
    from evaluation.metrics import calculate_perplexity

    cases = []
    for length, size, step in [
        (5, 16, 4),
        (15, 16, 4),
        (16, 16, 4),
        (17, 16, 5),
        (40, 16, 7),
        (31, 12, 11),
        (29, 9, 1),
    ]:
        for task_mask, unidirectional in [(True, False), (True, True), (False, False)]:
            text = words(rng, length, length)
            path = folder / "text.txt"
            path.write_text(" " + " ".join(map(str, text)) + "\n")
            config = LanguageModelTaskConfig(
                "c",
                TaskType.LANGUAGE_MODEL,
                "p",
                use_task_mask=task_mask,
                unidirectional=unidirectional,
                max_seq_length=size,
                generation_length=step,
            )
            dataset = LanguageModelTaskDataset(str(path), config)
            rows, losses = [], []
            for row in map(dataset.__getitem__, range(len(dataset))):
                batch = {name: torch.tensor(value)[None] for name, value in row.items()}
                losses += evaluator.calculate_loss(batch)
                rows.append(
                    {
                        "ids": listed(row["tokens"]),
                        "positions": listed(row["position_ids"]),
                        "visible": bits(~row["attention_mask"]),
                        "targets": [int(t) for t, kept in zip(row["targets"], row["loss_masks"], strict=True) if kept],
                        "places": [i for i, kept in enumerate(row["loss_masks"]) if kept],
                    }
                )
            cases.append(
                {
                    "use_task_mask": task_mask,
                    "unidirectional": unidirectional,
                    "max_seq_length": size,
                    "generation_length": step,
                    "text": text,
                    "rows": rows if length < 40 else rows[-2:],
                    "losses": losses,
                    "perplexity": calculate_perplexity(losses, dataset.data),
                }
            )
    return cases


def strategies(evaluator: Any, sample: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The original's search for some settings, and the bans it was given: of what it would find without."""
    from generation import BaseStrategy, BeamSearchStrategy
    from tasks.lambada.strategy import BeamSearchStrategyForLAMBADA

    ends = [TOKENS["eop"], TOKENS["eos"]]
    search = dict(settings)
    beams, has_bans = search.pop("num_beams"), search.pop("bans", False)
    if beams == 1:
        return BaseStrategy(batch_size=1, temperature=1.0, top_k=1, end_tokens=ends), {}
    search |= {"consider_end": True, "end_tokens": ends, "deterministic": True}
    free = BeamSearchStrategy(1, beams, **search)
    if not has_bans:
        return free, {}
    best = listed(evaluator.generate_text(sample, free, return_all_beams=True)[0])
    invalid, prefixes = [best[0][-1]], [best[0][:1], best[1][:2]]
    banning = BeamSearchStrategyForLAMBADA(1, beams, invalid_slices=invalid, banned_prefix=prefixes, **search)
    return banning, {"invalid_ids": invalid, "banned_prefixes": prefixes}


def answer_cases(rng: random.Random, evaluator: Any, folder: Path) -> list[dict[str, Any]]:
    from evaluation.configs import GenerationTaskConfig, TaskType
    from evaluation.dataset import GenerationTaskDataset

    searches: list[dict[str, Any]] = [
        {"num_beams": 1},
        {"num_beams": 4, "length_penalty": 1.0, "no_repeat_ngram_size": 2, "min_gen_length": 0},
        {"num_beams": 3, "length_penalty": 20.0, "no_repeat_ngram_size": 0, "min_gen_length": 2},
        {"num_beams": 6, "length_penalty": 1.0, "no_repeat_ngram_size": 3, "min_gen_length": 0, "bans": True},
    ]
    cases = []
    for settings in searches:
        for task_mask, unidirectional, in_text in [(False, False, True), (True, False, False), (True, True, False)]:
            text = words(rng, 3, 36)
            if in_text:
                text.insert(rng.randint(0, len(text)), TOKENS["[MASK]"])
            path = folder / "answers.jsonl"
            path.write_text(json.dumps({"inputs": text, "targets": [[7]]}) + "\n")
            shape = {
                "use_task_mask": task_mask,
                "unidirectional": unidirectional,
                "max_seq_length": 40,
                "max_gen_length": 8,
            }
            dataset = GenerationTaskDataset(str(path), GenerationTaskConfig("c", TaskType.GENERATION, "p", **shape))
            row = dataset[0]
            sample = dataset.collate_fn([row])
            strategy, bans = strategies(evaluator, sample, settings)
            cases.append(
                {name: value for name, value in settings.items() if name != "bans"}
                | shape
                | bans
                | {
                    "text": text,
                    "ids": listed(row["token"]),
                    "positions": listed(row["position_id"]),
                    "visible": bits(row["attention_mask"]),
                    "beams": listed(evaluator.generate_text(sample, strategy, return_all_beams=True)[0]),
                }
            )
    return cases


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repository", type=Path, required=True, help="a checkout of THUDM/GLM-130B")
    options = parser.parse_args()
    state = weights()  # before the original's folders can be taken for packages that transformers looks for
    stand_ins()
    sys.path.insert(0, str(options.repository))
    from evaluation.model import ModelForEvaluation

    torch.manual_seed(0)
    evaluator = ModelForEvaluation(SlowModel(state))
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        result = {
            "tokens": TOKENS,
            "choices": choice_cases(rng, evaluator, folder),
            "windows": window_cases(rng, evaluator, folder),
            "answers": answer_cases(rng, evaluator, folder),
        }
    (HERE / "glm130b_evaluation.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
