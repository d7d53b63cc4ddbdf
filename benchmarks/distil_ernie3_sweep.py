"""What pays in online distillation: recipes for the unified student of `examples/distil_ernie3.py`.

`python benchmarks/distil_ernie3_sweep.py --teacher demo-output/ernie3/model --output FOLDER [--seeds 1]`

A recipe says which relations of which teacher are taught, how heavily, in which steps and at which learning rate. A
seed's students start from the same weights and read the same rows; `alone` has no teacher. The teachers are made
once: the pre-training example's as it came, the same after 600 more steps on masked words, one with 1,200 steps of
masked words from the start, and the last after 400 steps of several tasks at once (ERNIE 3.0 Tiny v2, arXiv
2301.03416). They do not train while they teach, so that all recipes have the same.

Two measures: the loss on the masked words of unseen texts (all of them, masked twice), and how many sentences of
unseen texts are classified right by plot after fine-tuning on four labelled sentences of each plot and language. Each
run is a row of `sweep.csv`; what stands there is not run again. `--show` prints the table and draws the curves.
"""

import argparse
import csv
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForPreTraining, DataCollatorForTokenClassification, PreTrainedModel

from hf_glm_ernie import Ernie3Config, Ernie3ForPreTraining, KnowledgeMasking
from hf_glm_ernie.ernie3_training.distillation import (
    add_auxiliary_layer,
    drop_auxiliary_layer,
    has_auxiliary_layer,
    skipped_auxiliary_layer,
)
from hf_glm_ernie.ernie3_training.relations import PROJECTIONS, Relations, relation_divergence, understanding_layers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from distil_ernie3 import ROWS, MaskedTexts, accuracy_of_few_labels, build_students
from ernie3_texts import Story, Texts
from loss_plot import figure_for

SEED = 3  # of the texts, as in the examples
EVERY = 100  # steps between two points of a curve
QKV = ("query-query", "key-key", "value-value")
TEACHERS = ("example", "example+600", "masked", "masked+tasks")
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a student is trained.

    Attributes:
        name: A line of the table.
        teacher: One of `TEACHERS`; `""`: no teacher.
        student: A name of `build_students`.
        steps: Of training.
        learning_rate: The peak; 10% warm-up, then linearly to 0.
        relations: Names of the package's `RELATIONS`.
        layers: (teacher's, student's) layers that are compared, counted through the universal stack and the branch.
        heads: Relation heads.
        auxiliary: `"skipped"`: the student's own objective does not read it; `"read"`: it does; `""`: there is none.
        weight: Of the relations; the student's own objective has 1.
        taught: The share of the steps with relations.
        silent: The share of the steps, from the first on, without the student's own objective.
        restarted: Whether optimizer and schedule begin anew when the relations end.
    """

    name: str
    teacher: str = "masked"
    student: str = "unified"
    steps: int = 400
    learning_rate: float = 3e-3
    relations: tuple[str, ...] = ("query-key",)
    layers: tuple[tuple[int, int], ...] = ((-1, -1),)
    heads: int = 4
    auxiliary: str = "skipped"
    weight: float = 10.0
    taught: float = 0.5
    silent: float = 0.0
    restarted: bool = False


def recipes() -> list[Recipe]:
    """All of them, in the order of the table."""
    other_teachers = [
        Recipe(f"Q-Q, K-K, V-V, teacher {one}", relations=QKV, teacher=one) for one in TEACHERS if one != "masked"
    ]
    slow = [
        Recipe("alone", teacher=""),
        Recipe(
            "own loss reads the auxiliary layer, weight 1, two schedules", auxiliary="read", weight=1, restarted=True
        ),
        Recipe("the same, one schedule", auxiliary="read", weight=1),
        Recipe("own loss skips the auxiliary layer", weight=1),
        Recipe("weight 10"),
        Recipe("weight 10, taught throughout", taught=1.0),
        Recipe("weight 50, taught throughout", weight=50, taught=1.0),
        Recipe("relations alone in the first quarter, then none", weight=1, taught=0.25, silent=0.25),
        Recipe("no auxiliary layer", auxiliary=""),
        Recipe("16 relation heads", heads=16),
        Recipe("teacher's third of four layers", layers=((2, -1),)),
        Recipe("teacher's last universal layer", layers=((1, -1),)),
        Recipe("last universal layer and last layer, each to its like", layers=((1, 0), (3, -1))),
        Recipe("Q-K and V-V", relations=("query-key", "value-value")),
        Recipe("Q-Q, K-K, V-V", relations=QKV),
        *other_teachers,
        # As many FLOPs as 400 taught steps: the student's and the relations' alone, and with the teacher's forward.
        *(Recipe(f"alone, {steps} steps", teacher="", steps=steps) for steps in (470, 660, 800)),
        Recipe("Q-Q, K-K, V-V, 800 steps", relations=QKV, steps=800),
    ]
    fast = [
        Recipe("alone", teacher=""),
        Recipe("Q-K"),
        Recipe("V-V", relations=("value-value",)),
        Recipe("Q-Q, K-K, V-V", relations=QKV),
        Recipe("Q-Q, K-K, V-V, weight 3", relations=QKV, weight=3),
        Recipe("Q-Q, K-K, V-V, weight 30", relations=QKV, weight=30),
        Recipe("Q-Q, K-K, V-V, a quarter of the steps", relations=QKV, taught=0.25),
        Recipe("Q-Q, K-K, V-V, 0.8 of the steps", relations=QKV, taught=0.8),
        Recipe("Q-Q, K-K, V-V, 16 relation heads", relations=QKV, heads=16),
    ]
    faster = [Recipe("alone", teacher=""), Recipe("Q-Q, K-K, V-V", relations=QKV)]
    rates = ((1.5e-3, faster), (3e-3, slow), (6e-3, fast), (12e-3, faster))
    return [
        dataclasses.replace(one, name=f"{one.name} @ {rate:g}", learning_rate=rate)
        for rate, found in rates
        for one in found
    ]


class Data:
    """The example's texts as batches.

    Args:
        folder: Where the vocabulary is written.
        steps: How many batches to train on.

    Attributes:
        texts: The texts, and the tokenizer on them.
        train: Batches of rows.
        unseen: Batches of unseen texts, each text masked twice.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.texts = Texts(400, SEED, folder)
        self.read = [story.text for document in self.texts.documents for story in document]
        unread = [story.text for document in self.texts.unseen for story in document]
        self.collate = DataCollatorForTokenClassification(self.texts.tokenizer)
        self.train = list(self.batches(self.read, SEED, 0, steps))
        self.unseen = list(self.batches(unread, SEED, 0, 2 * len(unread) // ROWS))

    def batches(self, texts: list[str], seed: int, first: int, count: int) -> Iterator[Batch]:
        """Batches of masked words, counted from batch `first` on."""
        masking = KnowledgeMasking(self.texts.tokenizer, max_length=160, truncation=True, seed=seed)
        rows = MaskedTexts(texts, masking, first * ROWS, count * ROWS)
        for at in range(0, len(rows), ROWS):
            batch = dict(self.collate([rows[at + place] for place in range(ROWS)]))
            yield batch | {"attention_mask": (batch["input_ids"] != self.texts.tokenizer.pad_token_id).long()}


def states_of(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T, W), the last states of the understanding branch."""
    branch = {"branch": "nlu"} if hasattr(model.base_model, "branches") else {}
    return model.base_model(input_ids=input_ids, attention_mask=attention_mask, **branch).last_hidden_state


def scores(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the masked tokens alone."""
    labelled = batch["labels"] != -100
    head = model.nlu_lm_head if hasattr(model.base_model, "branches") else model.cls
    states = states_of(model, batch["input_ids"], batch["attention_mask"])
    return head(states[labelled]), batch["labels"][labelled]


@torch.no_grad()
def held_out(model: PreTrainedModel, batches: list[Batch]) -> float:
    """The mean loss of all masked tokens, without the auxiliary layer."""
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        with skipped_auxiliary_layer(model):
            logits, labels = scores(model, batch)
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        count += len(labels)
    model.train()
    return total / count


def rate_factor(step: int, steps: int) -> float:
    """A tenth of the steps up, then linearly to 0."""
    warmup = max(steps // 10, 1)
    return (step + 1) / warmup if step < warmup else (steps - step) / (steps - warmup)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    """One step at a learning rate, with the gradient's norm clipped to 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss.backward()
    nn.utils.clip_grad_norm_([one for group in optimizer.param_groups for one in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()


# The teachers


def teach_masked_words(model: PreTrainedModel, data: Data, steps: int, peak: float) -> None:
    """Trains on masked words alone; other masks than the students see."""
    optimizer = torch.optim.AdamW(model.parameters(), peak, (0.9, 0.95))
    for step, batch in enumerate(data.batches(data.read, 77, 0, steps)):
        descend(optimizer, F.cross_entropy(*scores(model, batch)), peak * rate_factor(step, steps))


def task_rows(
    stories: list[Story], topics: dict[str, int], rng: random.Random
) -> dict[str, list[tuple[str, str, int]]]:
    """Eight rows (text, second text or "", class) of each of the multi-task stage's tasks."""
    feelings = ("positive", "negative", "neutral")
    found: dict[str, list[tuple[str, str, int]]] = {"plot": [], "next": [], "sentiment": [], "person": []}
    for _ in range(8):
        story, place, true = rng.choice(stories), rng.randrange(3), rng.random() < 0.5
        other = story if true else rng.choice([one for one in stories[:400] if one.language == story.language])
        found["plot"].append((story.sentences[place], "", topics[story.topic]))
        found["next"].append((story.sentences[place], other.sentences[place + 1], int(other is story)))
        found["sentiment"].append((story.text, "", feelings.index(story.sentiment)))
        found["person"].append((story.text, other.names["p"], int(other.names["p"] == story.names["p"])))
    return found


def teach_tasks(model: PreTrainedModel, data: Data, steps: int, peak: float) -> None:
    """Fine-tunes on four tasks at once, each with a linear head on `[CLS]`, beside masked words."""
    tokenizer, rng = data.texts.tokenizer, random.Random(5)
    stories = [story for document in data.texts.documents for story in document]
    heads = nn.ModuleDict(
        {task: nn.Linear(model.config.branch_hidden_size, 4) for task in task_rows(stories, data.texts.topics, rng)}
    )
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], peak)
    for step, batch in enumerate(data.batches(data.read, 78, 0, steps)):
        loss = F.cross_entropy(*scores(model, batch))
        for task, rows in task_rows(stories, data.texts.topics, rng).items():
            texts = [f"{one} {tokenizer.sep_token} {two}" if two else one for one, two, _ in rows]
            inputs = tokenizer(texts, padding=True, return_tensors="pt")
            logits = heads[task](states_of(model, inputs["input_ids"], inputs["attention_mask"])[:, 0])
            loss = loss + F.cross_entropy(logits, torch.tensor([label for *_, label in rows]))
        descend(optimizer, loss, peak * rate_factor(step, steps))


def make_teacher(name: str, example: Path, folder: Path, data: Data) -> PreTrainedModel:
    """The teacher of a name, frozen; made where its folder is not there."""
    path = example if name == "example" else folder / f"teacher-{name}"
    if not path.is_dir():
        torch.manual_seed(0)
        if name == "masked":
            model = Ernie3ForPreTraining(Ernie3Config.from_pretrained(example))
            teach_masked_words(model, data, 1200, 3e-3)
        elif name == "example+600":
            model = AutoModelForPreTraining.from_pretrained(example).train()
            teach_masked_words(model, data, 600, 3e-3)
        else:
            model = make_teacher("masked", example, folder, data).requires_grad_(True).train()
            teach_tasks(model, data, 400, 1e-3)
        model.save_pretrained(path)
    return AutoModelForPreTraining.from_pretrained(path).eval().requires_grad_(False)


# The students


@contextmanager
def recorded(model: PreTrainedModel, at: int) -> Iterator[list[Relations]]:
    """Keeps what any layer's attention makes in the last forward, counted through both stacks."""
    branch, _, heads = understanding_layers(model)
    layer = [*getattr(model.base_model.encoder, "layers", []), *branch][at]
    names = next(names for names in PROJECTIONS if hasattr(layer, names[0].split(".")[0]))
    made: dict[int, torch.Tensor] = {}
    found: list[Relations] = []

    def keep(place: int, output: torch.Tensor) -> None:
        made[place] = output
        if len(made) == len(names):
            found[:] = [Relations(made[0], made[1], made[2], heads)]
            made.clear()

    handles = [
        layer.get_submodule(name).register_forward_hook(lambda _m, _a, output, place=place: keep(place, output))
        for place, name in enumerate(names)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def divergence(teacher: PreTrainedModel, recipe: Recipe, batch: Batch, pairs: list[Any]) -> torch.Tensor:
    """Runs the teacher; the mean divergence over the pairs of layers, of the student's forward just done."""
    with torch.no_grad():
        states_of(teacher, batch["input_ids"], batch["attention_mask"])
    terms = [
        relation_divergence(taught[0], learnt[0], batch["attention_mask"], recipe.heads, recipe.relations)
        for taught, learnt in pairs
    ]
    return torch.stack(terms).mean()


def train(student: PreTrainedModel, teacher: PreTrainedModel | None, recipe: Recipe, data: Data) -> list[Any]:
    """Trains the student in place.

    Returns:
        (step, loss on unseen texts) every `EVERY` steps.
    """
    curve: list[tuple[int, float]] = []
    ends = int(recipe.steps * recipe.taught) if teacher is not None else 0
    if teacher is not None and recipe.auxiliary:
        add_auxiliary_layer(student)
    with ExitStack() as stack:
        pairs = []
        if teacher is not None:
            pairs = [
                (stack.enter_context(recorded(teacher, one)), stack.enter_context(recorded(student, other)))
                for one, other in recipe.layers
            ]
        optimizer = torch.optim.AdamW(student.parameters(), recipe.learning_rate, weight_decay=0.0)
        for step in range(recipe.steps):
            if step == ends and has_auxiliary_layer(student):
                drop_auxiliary_layer(student)
            if step == ends > 0 and recipe.restarted:
                optimizer = torch.optim.AdamW(student.parameters(), recipe.learning_rate, weight_decay=0.0)
            batch = data.train[step % len(data.train)]
            with skipped_auxiliary_layer(student) if recipe.auxiliary == "skipped" else nullcontext():
                own = F.cross_entropy(*scores(student, batch))
            loss = own if step >= recipe.silent * recipe.steps else 0.0 * own
            if step < ends and teacher is not None:
                loss = loss + recipe.weight * divergence(teacher, recipe, batch, pairs)
            if recipe.restarted:
                factor = rate_factor(step, ends) if step < ends else rate_factor(step - ends, recipe.steps - ends)
            else:
                factor = rate_factor(step, recipe.steps)
            descend(optimizer, loss, recipe.learning_rate * factor)
            if (step + 1) % EVERY == 0 or step + 1 == recipe.steps:
                curve.append((step + 1, round(held_out(student, data.unseen), 4)))
    if has_auxiliary_layer(student):
        drop_auxiliary_layer(student)
    return curve


# The table


def read_runs(path: Path) -> list[dict[str, str]]:
    """What has been run."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(
    recipe: Recipe, seed: int, teacher: PreTrainedModel | None, config: Any, data: Data, labels: bool
) -> dict[str, Any]:
    """One student: a row of the CSV."""
    start = time.process_time()
    torch.manual_seed(seed)
    student = build_students(config)[recipe.student].train()
    curve = train(student, teacher, recipe, data)
    seconds = time.process_time() - start
    accuracy = ""
    if labels:
        with tempfile.TemporaryDirectory() as folder:
            student.save_pretrained(folder)
            accuracy = f"{accuracy_of_few_labels(Path(folder), data.texts):.4f}"
    return {
        "recipe": recipe.name,
        "seed": seed,
        "loss": curve[-1][1],
        "accuracy": accuracy,
        "cpu_seconds": round(seconds, 1),
        "curve": json.dumps(curve),
        "settings": json.dumps(dataclasses.asdict(recipe)),
    }


def show(runs: list[dict[str, str]], picture: Path) -> None:
    """Prints the mean and the spread (largest minus smallest) over the seeds, and draws the curves."""
    print("| recipe @ learning rate | seeds | loss | spread | right with few labels | spread |")
    print("|---|---|---|---|---|---|")
    by_recipe = {one["recipe"]: [row for row in runs if row["recipe"] == one["recipe"]] for one in runs}
    for name in [one.name for one in recipes() if one.name in by_recipe]:
        cells = []
        for column, form in (("loss", ".3f"), ("accuracy", ".1%")):
            values = [float(row[column]) for row in by_recipe[name] if row[column]]
            cells += [format(statistics.mean(values), form) if values else ""]
            cells += [format(max(values) - min(values), form) if len(values) > 1 else ""]
        print(f"| {name} | {len(by_recipe[name])} | {' | '.join(cells)} |")
    figure = figure_for(picture, "sweep.csv", (8, 4.5))
    if figure is None:
        return
    axes = figure.subplots()
    for name, rows in by_recipe.items():
        curves = [json.loads(row["curve"]) for row in rows]
        steps = [step for step, _ in curves[0]]
        means = [statistics.mean(curve[place][1] for curve in curves) for place in range(len(steps))]
        if len(rows) > 1:
            axes.plot(
                steps,
                means,
                marker=".",
                label=f"{name} ({len(rows)} seeds)",
                linestyle="--" if "alone" in name else "-",
            )
    axes.set(xlabel="step", ylabel="loss on masked words of unseen texts")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Runs what has not been run, then shows everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--teacher", type=Path, required=True, help="the model that pretrain_ernie3.py made")
    parser.add_argument("--output", type=Path, required=True, help="folder for the teachers, sweep.csv and sweep.png")
    parser.add_argument("--recipes", nargs="*", default=[], help="beginnings of names; all where none is given")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--labels", action="store_true", help="measure classification with few labels too")
    parser.add_argument("--show", action="store_true", help="show what has been run, and run nothing")
    arguments = parser.parse_args()
    table = arguments.output / "sweep.csv"
    if not arguments.show:
        torch.set_num_threads(1)  # such small matrices gain nothing from more
        arguments.output.mkdir(parents=True, exist_ok=True)
        data = Data(arguments.output, max(recipe.steps for recipe in recipes()))
        config = Ernie3Config.from_pretrained(arguments.teacher)
        for seed in arguments.seeds:
            for recipe in recipes():
                chosen = not arguments.recipes or recipe.name.startswith(tuple(arguments.recipes))
                done = {(one["recipe"], one["seed"]) for one in read_runs(table)}
                if not chosen or (recipe.name, str(seed)) in done:
                    continue
                teacher = None
                if recipe.teacher:
                    teacher = make_teacher(recipe.teacher, arguments.teacher, arguments.output, data)
                row = run(recipe, seed, teacher, config, data, arguments.labels)
                new = not table.exists()
                with open(table, "a", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, list(row))
                    if new:
                        writer.writeheader()
                    writer.writerow(row)
                print(f"{recipe.name}, seed {seed}: {row['loss']:.3f} {row['accuracy']}", flush=True)
    show(read_runs(table), arguments.output / "sweep.png")


if __name__ == "__main__":
    main()
