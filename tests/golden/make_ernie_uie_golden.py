"""Makes the goldens of `uie` and `utc`: a tiny trained UIE, and what PaddleNLP's own Taskflows answer with it.

    python tests/golden/make_ernie_uie_golden.py fit VOCAB_FILE      # this project's Python
    ORIGINAL_PYTHON tests/golden/make_ernie_uie_golden.py answer     # one with PaddleNLP 2.8.1
    ORIGINAL_PYTHON tests/golden/make_ernie_uie_golden.py classify

`fit` cuts the vocabulary down to what the texts below need and trains a model of a few thousand parameters on their
annotations, stopping early, so that it answers about as a real one does: mostly nothing, sometimes wrongly. Weights
are rounded to fp16 numbers. `answer` runs `paddlenlp.taskflow.information_extraction.UIETask` on every case, its
predictor replaced by the dynamic model: one question to one text at a time (`answers`), and as it runs by itself,
where that gives something else (`together`: there answers depend on the other texts and questions of the call).
Answers are stored sorted by position: the order of the original is that of a hash.
`classify` runs `ZeroShotTextClassificationTask` likewise: the same encoder, with random heads and [O-MASK] as the last
token. Writes `ernie_uie_weights.npz`, `ernie_uie_cases.json` and `ernie_utc_cases.json`.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WEIGHTS, CASES = HERE / "ernie_uie_weights.npz", HERE / "ernie_uie_cases.json"
UTC_CASES = HERE / "ernie_utc_cases.json"

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "type_vocab_size": 4,
    "task_type_vocab_size": 3,
    "use_task_id": True,
    "task_id": 1,
    "pad_token_id": 0,
}
ZH_SENTIMENT, EN_SENTIMENT = "情感倾向[正向,负向]", "Sentiment classification [negative, positive]"

# Texts of our own and, for a prompt, its answers: substrings of the text, or of the prompt where it offers options.
RACE = "3月5日下午，青湖市马拉松比赛结束，选手李明远以2小时19分获得冠军。"
DIVING = "周日晚上，选手王小雨在全国跳水锦标赛中获得银牌，成绩是381分！"
SONG = "《山间的风》是陈一鸣在专辑《远方》里演唱的歌曲。"
SONGS = "歌手林夏发行了新歌《雨后》和《灯火》，收录在专辑《旧城》中。"
QUAKE = "昨天凌晨2点，云山县发生4.6级地震，震源深度12千米，没有人员伤亡。"
SHOP = "这家店的地址不错，服务一般，设施陈旧。"
PHONE = "手机屏幕很好😀，但是电池太差了！"
MIXED = "Bluefin公司在2021年发布了Reed 5 Pro，售价￥1299。"
EMOJI = "😀😀明天上午开会👍🏽在青湖大厅"
ANNA = "In 2021, Anna Reed became the head of Bluefin Labs."
FILM = "I am sorry but this is the WORST film I have ever seen."
CAFE = "The Café is lovely, the waiter was Naïve though."
ANNOTATED: dict[str, dict[str, list[str]]] = {
    RACE: {
        "时间": ["3月5日下午"],
        "选手": ["李明远"],
        "赛事名称": ["青湖市马拉松比赛"],
        "李明远的成绩": ["2小时19分"],
    },
    DIVING: {
        "时间": ["周日晚上"],
        "选手": ["王小雨"],
        "赛事名称": ["全国跳水锦标赛"],
        "王小雨的成绩": ["381分"],
    },
    SONG: {
        "歌曲名称": ["山间的风"],
        "山间的风的歌手": ["陈一鸣"],
        "山间的风的专辑": ["远方"],
        "陈一鸣的专辑": ["远方"],
    },
    SONGS: {
        "歌曲名称": ["雨后", "灯火"],
        "雨后的歌手": ["林夏"],
        "灯火的歌手": ["林夏"],
        "雨后的专辑": ["旧城"],
        "灯火的专辑": ["旧城"],
        "林夏的专辑": ["旧城"],
    },
    QUAKE: {
        "时间": ["昨天凌晨2点"],
        "地震触发词": ["地震"],
        "地震的震级": ["4.6级"],
        "地震的时间": ["昨天凌晨2点"],
        "地震的地点": ["云山县"],
    },
    SHOP: {
        "评价维度": ["地址", "服务", "设施"],
        "地址的观点词": ["不错"],
        "服务的观点词": ["一般"],
        "设施的观点词": ["陈旧"],
        f"地址的{ZH_SENTIMENT}": ["正向"],
        f"服务的{ZH_SENTIMENT}": ["负向"],
        f"设施的{ZH_SENTIMENT}": ["负向"],
        ZH_SENTIMENT: ["负向"],
    },
    PHONE: {
        "评价维度": ["屏幕", "电池"],
        "屏幕的观点词": ["很好"],
        "电池的观点词": ["太差"],
        f"屏幕的{ZH_SENTIMENT}": ["正向"],
        f"电池的{ZH_SENTIMENT}": ["负向"],
        ZH_SENTIMENT: ["正向"],
    },
    MIXED: {"时间": ["2021年"]},
    EMOJI: {"时间": ["明天上午"]},
    ANNA: {
        "Person": ["Anna Reed"],
        "Company of Anna Reed": ["Bluefin Labs"],
        "Position of Anna Reed": ["head"],
        EN_SENTIMENT: ["positive"],
    },
    FILM: {
        EN_SENTIMENT: ["negative"],
        "Aspect": ["film"],
        "Sentiment classification of film [negative, positive]": ["negative"],
    },
    CAFE: {
        EN_SENTIMENT: ["positive"],
        "Aspect": ["Café", "waiter"],
        "Sentiment classification of Café [negative, positive]": ["positive"],
        "Sentiment classification of waiter [negative, positive]": ["negative"],
    },
}
TEXTS = [
    *ANNOTATED,
    "",
    "   ",
    "。",
    "\n" + SONG + "\n\n" + SHOP + "\t\n",
    "𠀀𠀁明天上午，\u200b选手 王小雨 来了\ufeff。",
    "ＢＬＵＥＦＩＮ公司在２０２１年发布了？",
    RACE + DIVING + SONGS + QUAKE + SHOP + PHONE,
    "“" + PHONE + "”" + "……" + EMOJI + "?" + SONG + " " + MIXED,
    ANNA + " " + FILM + " " + CAFE,
]
FLAT = ["时间", "选手", "歌曲名称"]
OPINIONS = [{"评价维度": ["观点词", "情感倾向[正向，负向]"]}]
RELATIONS = {"歌曲名称": ["歌手", "专辑"], "选手": ["成绩"]}
SCHEMAS: dict[str, tuple[Any, dict[str, Any]]] = {
    "entities": (["时间", "选手", "赛事名称"], {}),
    "one": ("时间", {"position_prob": 0.1}),
    "relations": (RELATIONS, {}),
    "event": ([{"地震触发词": ["震级", "时间", "地点"]}], {"position_prob": 0.3}),
    "opinions": (OPINIONS, {}),
    "options": ("情感倾向[正向，负向]", {}),
    "mixed": (["时间", {"歌曲名称": [{"歌手": ["专辑"]}, "专辑"]}, ZH_SENTIMENT], {"batch_size": 3}),
    "windows": (FLAT, {"max_seq_len": 24}),
    "windows_options": (ZH_SENTIMENT, {"max_seq_len": 40}),
    "sentences": (FLAT, {"split_sentence": True}),
    "english": ([{"Person": ["Company", "Position"]}, EN_SENTIMENT], {"schema_lang": "en"}),
    "english_opinions": ({"Aspect": [EN_SENTIMENT]}, {"schema_lang": "en"}),
}


def fit(vocab_file: str) -> None:
    """Trains the tiny model and writes weights, vocabulary and cases without answers."""
    import numpy as np
    import torch

    from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
    from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
    from hf_glm_ernie.tokenization_ernie import ErnieTokenizer

    prompts = sorted({prompt for answers in ANNOTATED.values() for prompt in answers})
    full = ErnieTokenizer(vocab_file)
    needed = {token for text in [*TEXTS, *prompts] for token in full.tokenize(text)}
    lines = [line.split("\t")[0] for line in Path(vocab_file).read_text(encoding="utf-8").splitlines()]
    vocab = list(dict.fromkeys(line for line in lines if line in needed or line in full.all_special_tokens))
    with tempfile.TemporaryDirectory() as folder:
        small_file = Path(folder) / "vocab.txt"
        small_file.write_text("".join(token + "\n" for token in vocab), encoding="utf-8")
        tokenizer = ErnieTokenizer(str(small_file))

    rows = [(prompt, text) for text in ANNOTATED for prompt in prompts if prompt.isascii() == text.isascii()]
    rows += [(prompt, text) for text in TEXTS[len(ANNOTATED) : len(ANNOTATED) + 3] for prompt in prompts[::3]]
    batch = tokenizer(
        [row[0] for row in rows],
        [row[1] for row in rows],
        padding=True,
        return_tensors="pt",
        return_attention_mask=True,
    )
    start, end = torch.zeros(batch["input_ids"].shape), torch.zeros(batch["input_ids"].shape)
    for i, (prompt, text) in enumerate(rows):
        for answer in ANNOTATED.get(text, {}).get(prompt, []):
            segment, whole = (0, prompt) if "[" in prompt else (1, text)
            at = whole.rfind(answer)
            for t, (kind, (a, b)) in enumerate(zip(batch.sequence_ids(i), batch.encodings[i].offsets, strict=True)):
                start[i, t] += kind == segment and a == at
                end[i, t] += kind == segment and b == at + len(answer)

    torch.manual_seed(1)
    settings = CONFIG | {"vocab_size": len(vocab), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = ErnieForUIE(ErnieUIEConfig(**settings, initializer_range=0.2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    weight = torch.tensor(4.0)
    for _ in range(170):
        output = model(**batch)
        loss = sum(
            torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
            for logits, labels in ((output.start_logits, start), (output.end_logits, end))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.savez_compressed(
        WEIGHTS, **{name: value.numpy().astype("float16") for name, value in model.state_dict().items()}
    )
    cases = {name: {"schema": schema, "settings": settings} for name, (schema, settings) in SCHEMAS.items()}
    _write({"vocab": vocab, "config": CONFIG | {"vocab_size": len(vocab)}, "texts": TEXTS, "cases": cases})


def answer() -> None:
    """Adds the original's answers to the cases."""
    import zlib

    zlib.crc32(b"")  # before paddle, which brings a zlib of its own
    import numpy as np
    from paddlenlp.taskflow.information_extraction import UIETask
    from paddlenlp.transformers import UIE

    class DynamicUIETask(UIETask):
        def _check_task_files(self) -> None:
            pass

        def _get_inference_model(self) -> None:
            self._construct_model(self.model)
            self.predictor, self._predictor_type = _predictor(self._model), "dynamic"

        def _single_stage_predict(self, inputs: list[Any]) -> list[Any]:
            if not self.one_by_one:
                return super()._single_stage_predict(inputs)
            return [super(DynamicUIETask, self)._single_stage_predict([one])[0] for one in inputs]

    content = json.loads(CASES.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        _save_original(UIE, folder, content["config"], content["vocab"], dict(np.load(WEIGHTS)))
        for case in content["cases"].values():
            task = DynamicUIETask(
                task="information_extraction",
                model="uie-base",
                schema=case["schema"],
                task_path=folder,
                **({"max_seq_len": CONFIG["max_position_embeddings"]} | case["settings"]),
            )
            task.one_by_one = True
            case["answers"] = _sorted(_extract(task, content["texts"]))
            task.one_by_one = False
            together = _sorted(_extract(task, content["texts"]))
            case["together"] = {i: answer for i, answer in enumerate(together) if _differ(answer, case["answers"][i])}
    _write(content)


CHOICES = {
    "two": ["这是一条差评", "这是一条好评"],
    "many": ["时间", "选手 ", "全国锦标赛的歌曲", "positive film", "不"],
}
UTC_TEXTS: list[Any] = [
    SHOP,
    PHONE,
    [FILM, CAFE],
    ["", SONG],
    [RACE, "好"],
    "。",
    [DIVING, QUAKE],
    ["好", SONGS + RACE],
]
UTC_SETTINGS: dict[str, dict[str, Any]] = {
    "all": {"pred_threshold": 0.0},
    "some": {"pred_threshold": 0.4, "batch_size": 3},
    "single": {"single_label": True, "batch_size": 2},
    "short": {"pred_threshold": 0.0, "max_seq_len": 40},
}


def classify() -> None:
    """Writes the original's inputs and answers of zero-shot classification."""
    import zlib

    zlib.crc32(b"")  # before paddle, which brings a zlib of its own
    import numpy as np
    from paddlenlp.taskflow.zero_shot_text_classification import ZeroShotTextClassificationTask
    from paddlenlp.transformers import UTC

    class DynamicUTCTask(ZeroShotTextClassificationTask):
        def _check_task_files(self) -> None:
            pass

        def _get_inference_model(self) -> None:
            self._construct_model(self.model)
            self.predictor, self._predictor_type = _predictor(self._model), "dynamic"

    content = json.loads(CASES.read_text(encoding="utf-8"))
    config = content["config"] | {"vocab_size": len(content["vocab"]) + 1}
    weights = {name: value for name, value in np.load(WEIGHTS).items() if name.startswith("ernie.")}
    random = np.random.RandomState(7)
    words = "ernie.embeddings.word_embeddings.weight"
    weights[words] = np.concatenate((weights[words], random.standard_normal((1, 32)).astype("float16")))
    for name in ("linear_q", "linear_k"):
        weights[f"{name}.weight"] = random.standard_normal((64, 32)).astype("float16") / 2
        weights[f"{name}.bias"] = random.standard_normal(64).astype("float16")
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        _save_original(UTC, folder, config, [*content["vocab"], "[O-MASK]"], weights)
        for choices in CHOICES.values():
            for settings in UTC_SETTINGS.values():
                task = DynamicUTCTask(
                    task="zero_shot_text_classification",
                    model="utc-base",
                    schema=choices,
                    task_path=folder,
                    **({"max_seq_len": CONFIG["max_position_embeddings"]} | settings),
                )
                prepared = task._preprocess([UTC_TEXTS])
                case = {"choices": choices, "settings": settings, "inputs": []}
                for batch in prepared["batches"]:
                    arrays = {name: value.tolist() for name, value in batch.items() if name not in UNUSED}
                    arrays["attended"] = (batch["attention_mask"] == 0).sum(-1).tolist()
                    case["inputs"].append(arrays)
                answers = task._postprocess(task._run_model(prepared))
                case["predictions"] = [
                    [{"label": p["label"], "score": round(float(p["score"]), 7)} for p in answer["predictions"]]
                    for answer in answers
                ]
                cases.append(case)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    UTC_CASES.write_text(
        f'{{"texts": {json.dumps(UTC_TEXTS, ensure_ascii=False)}, "cases": [\n{lines}\n]}}\n', encoding="utf-8"
    )


UNUSED = ("soft_token_ids", "attention_mask")


def _predictor(model: Any) -> Any:
    """What the tasks take for their inference engine, on the dynamic model."""
    import paddle
    from paddlenlp.taskflow.utils import dygraph_mode_guard

    class Predictor:
        def run(self, _: Any, inputs: dict[str, Any]) -> list[Any]:
            with dygraph_mode_guard(), paddle.no_grad():  # classification is run in static mode
                outputs = model(**{name: paddle.to_tensor(value) for name, value in inputs.items()})
            return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else [outputs])]

    return Predictor()


def _save_original(model_class: Any, folder: str, config: Any, vocab: list[str], weights: dict[str, Any]) -> None:
    """Writes a checkpoint as PaddleNLP does, from weights under our names."""
    from paddlenlp.transformers import ErnieConfig, ErnieTokenizer

    vocab_file = Path(folder) / "vocab.txt"
    vocab_file.write_text("".join(token + "\n" for token in vocab), encoding="utf-8")
    model = model_class(ErnieConfig(**config))
    state = {_paddle_name(name): value.astype("float32") for name, value in weights.items()}
    for name, value in state.items():
        if value.ndim == 2 and "_embeddings" not in name:
            state[name] = value.T
    missing, unexpected = model.set_state_dict(state)
    assert not missing, missing
    assert not unexpected, unexpected
    model.save_pretrained(folder)
    ErnieTokenizer(str(vocab_file), model_max_length=2048).save_pretrained(folder)


def _extract(task: Any, texts: list[str]) -> list[dict[str, Any]]:
    return task._postprocess(task._run_model(task._preprocess([texts])))


def _sorted(answers: Any) -> Any:
    """Answers in the order of the text, probabilities to seven digits."""
    if isinstance(answers, list) and answers and "probability" in answers[0]:
        answers = sorted(answers, key=lambda a: (a.get("start", -1), a.get("end", -1), -a["probability"]))
    if isinstance(answers, list):
        return [_sorted(answer) for answer in answers]
    if isinstance(answers, dict):
        return {key: round(value, 7) if key == "probability" else _sorted(value) for key, value in answers.items()}
    return answers


def _differ(one: Any, other: Any) -> bool:
    """Whether answers differ in more than the last digits of a probability, which depend a little on the batch."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(_differ(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) != len(other) or any(map(_differ, one, other))
    return abs(one - other) > 1e-5 if isinstance(one, float) else one != other


def _paddle_name(name: str) -> str:
    for ours, original in (
        ("encoder.layer.", "encoder.layers."),
        ("attention.output.dense", "self_attn.out_proj"),
        ("attention.self.query", "self_attn.q_proj"),
        ("attention.self.key", "self_attn.k_proj"),
        ("attention.self.value", "self_attn.v_proj"),
        ("attention.output.LayerNorm", "norm1"),
        ("output.LayerNorm", "norm2"),
        ("intermediate.dense", "linear1"),
        ("output.dense", "linear2"),
        ("embeddings.LayerNorm", "embeddings.layer_norm"),
    ):
        name = name.replace(ours, original)
    return name


def _write(content: dict[str, Any]) -> None:
    cases = content.pop("cases")
    parts = [json.dumps(content, ensure_ascii=False)[:-1] + ',\n"cases": {']
    parts += [
        ",\n".join(f"{json.dumps(name)}: {json.dumps(case, ensure_ascii=False)}" for name, case in cases.items())
    ]
    CASES.write_text("\n".join([*parts, "}}\n"]), encoding="utf-8")


if __name__ == "__main__":
    {"fit": fit, "answer": answer, "classify": classify}[sys.argv[1]](*sys.argv[2:])
