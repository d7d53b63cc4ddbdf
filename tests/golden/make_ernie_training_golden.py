"""Cuts small pieces of PaddleNLP's training loop from the full set, `../shared/goldens/ernie_workflows`.

    python tests/golden/make_ernie_training_golden.py

What made the full set: PaddleNLP 2.8.1 and its published scripts, see the README there. Of the reader, the rows of
max_seq_len 64 with their pieces and the places of their labels; the vocabulary holds only the tokens of these rows,
which are cut from it as from the released one.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "goldens"
FULL = SHARED / "ernie_workflows"


def lines_of(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FULL / file).read_text(encoding="utf-8").splitlines()]


def reader() -> dict[str, Any]:
    rows = lines_of("reader/reader.64.jsonl")
    ids = {token for row in rows for piece in row["encoded"] for token in piece["input_ids"]}
    released = (SHARED / "ernie" / "tokenizer" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    kept = [released[i] for i in sorted(ids | {0, 3})]
    return {
        "vocabulary": kept,
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


def main() -> None:
    folder = HERE / "ernie_training"
    folder.mkdir(exist_ok=True)
    made = {"reader": reader()}
    for name, data in made.items():
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
