"""Cuts small pieces of PaddleNLP's training loop from the full set, `../shared/goldens/ernie_workflows`.

    python tests/golden/make_ernie_training_golden.py

What made the full set: PaddleNLP 2.8.1 and its published scripts, see the README there. Of the reader, the rows of
max_seq_len 64 with their pieces and the places of their labels; the vocabulary holds only the tokens of these rows,
which are cut from it as from the released one. Of the metrics everything; of UTC the templates of length 64, all
losses and metrics; of the answers to questions all windows and two candidates each.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "goldens"
FULL = SHARED / "ernie_workflows"


def lines_of(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FULL / file).read_text(encoding="utf-8").splitlines()]


def tokens_of(ids: set[int]) -> list[str]:
    """A vocabulary that cuts texts of these ids, and no others, as the released one does."""
    released = (SHARED / "ernie" / "tokenizer" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    return [released[i] for i in sorted(ids | {0, 3}) if i < len(released)]


def reader() -> dict[str, Any]:
    rows = lines_of("reader/reader.64.jsonl")
    return {
        "vocabulary": tokens_of({token for row in rows for piece in row["encoded"] for token in piece["input_ids"]}),
        "rows": [
            {
                "i": row["i"],
                "row": row["row"],
                "pieces": row["cut_rows"],
                "labels": [
                    [len(one["input_ids"]), one["start_positions"], one["end_positions"]] for one in row["encoded"]
                ],
            }
            for row in rows
        ],
    }


def metrics() -> dict[str, Any]:
    evaluations = lines_of("metrics/evaluate_by_class.jsonl")
    chunks = lines_of("metrics/chunk_evaluator.jsonl")
    return {
        "get_span": lines_of("metrics/get_span.jsonl"),
        "span_evaluator": lines_of("metrics/span_evaluator.jsonl"),
        "prompt_names": json.loads((FULL / "metrics" / "prompt_names.json").read_text(encoding="utf-8")),
        "by_class": [
            [one["schema_lang"], one["debug"], one["result_precision_recall_f1"]]
            for one in evaluations
            if "result_precision_recall_f1" in one
        ],
        "rows": {
            one["schema_lang"]: [
                [row["prompt"], row["content"], row["result_list"], row["pred_start"], row["pred_end"]]
                for row in one["rows_after_reader"]
            ]
            for one in evaluations
            if "rows_after_reader" in one
        },
        "tags": chunks[0]["label_list"],
        "chunks": chunks[1:],
    }


def utc() -> dict[str, Any]:
    kept = ("attention_mask_shape", "attention_mask_runs", "omask_positions", "cls_positions")
    rows = [row for row in lines_of("utc/template.jsonl") if row["max_seq_length"] == 64]
    return {
        "vocabulary": tokens_of({token for row in rows for token in row.get("input_ids", ())}),
        "rows": [
            {name: row[name] for name in ("example", "token_type_ids", "position_ids", *kept, "error") if name in row}
            for row in rows
        ],
        "loss": lines_of("utc/loss.jsonl"),
        "metrics": json.loads((FULL / "utc" / "metrics.json").read_text(encoding="utf-8")),
    }


def qa() -> dict[str, Any]:
    first, *features = lines_of("qa/features.jsonl")
    words = lines_of("qa/token_convert_example.jsonl")
    ids = {token for one in features for token in one["eval"]["input_ids"]}
    return first | {
        "vocabulary": tokens_of(ids | {token for one in words for token in one["out"]["input_ids"]}),
        "features": [
            {
                "length": len(one["eval"]["input_ids"]),
                "positions": [one["train"]["start_position"], one["train"]["end_position"]],
                "offsets": one["eval"]["offset_mapping"],
                "logits": [one["start_logits"], one["end_logits"]],
            }
            for one in features
        ],
        "predictions": [
            one | {"nbest": {name: found[:2] for name, found in one["nbest"].items()}}
            for one in lines_of("qa/predictions.jsonl")
        ],
        "words": words,
    }


def main() -> None:
    folder = HERE / "ernie_training"
    folder.mkdir(exist_ok=True)
    for make in (reader, metrics, utc, qa):
        text = json.dumps(make(), ensure_ascii=False, separators=(",", ":"))
        (folder / f"{make.__name__}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
