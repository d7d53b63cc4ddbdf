"""Where the rows of pre-training come from: orders that are computed, streams of the datasets library, weights."""

import itertools
import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from hf_glm_ernie.ernie3_training.documents import DocumentStreams
from hf_glm_ernie.ernie3_training.masking import KnowledgeMasking
from hf_glm_ernie.ernie3_training.mixture import Ernie3PretrainingMixture
from hf_glm_ernie.ernie3_training.orders import Permutation
from hf_glm_ernie.ernie3_training.sources import WeightedSources, source_of
from hf_glm_ernie.ernie3_training.streams import Shard
from tests.support.ernie3_pretraining_tiny import documents
from tests.support.ernie3_rows import small_tokenizer

datasets = pytest.importorskip("datasets", reason="needs the datasets library, whose streams are read")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


# Orders


@pytest.mark.parametrize("count", [1, 2, 3, 17, 4096, 4097, 16384, 16385, 20000])
def test_an_order_has_every_number_once(count):
    order = Permutation(count, 3, "x", 1)
    assert len(order) == count
    assert sorted(order[place] for place in range(count)) == list(range(count))
    with pytest.raises(IndexError, match=f"place {count} is outside an order of {count}"):
        order[count]


@pytest.mark.parametrize("count", [1000, 10_000])
def test_orders_differ_and_look_random(count):
    first = [Permutation(count, 0, "x", 0)[place] for place in range(count)]
    for other in (Permutation(count, 1, "x", 0), Permutation(count, 0, "y", 0), Permutation(count, 0, "x", 1)):
        same = sum(other[place] == number for place, number in enumerate(first))
        assert same < 10  # 1 is expected, and 10 in one of ten million orders
    # Numbers at neighbouring places are independent, and so are place and number: correlations of N(0, 1 / count).
    for pairs in (np.corrcoef(first[:-1], first[1:]), np.corrcoef(first, range(count))):
        assert abs(pairs[0, 1]) < 4 / np.sqrt(count)


def test_every_number_is_as_likely_at_every_place():
    """Tenths of 5,000 numbers at eight places, over 2,000 orders: chi squared with 9 degrees of freedom."""
    places = (0, 1, 63, 64, 1234, 2500, 4095, 4999)
    numbers = np.array([[Permutation(5000, seed, "x", 0)[place] for place in places] for seed in range(2000)])
    for place, found in zip(places, numbers.T, strict=True):
        counts = np.bincount(found // 500, minlength=10)
        assert ((counts - 200) ** 2 / 200).sum() < 34, place  # exceeded by chance once in ten thousand


def test_an_order_of_many_needs_no_memory():
    tracemalloc.start()
    order = Permutation(10**12, 0, "x", 0)
    numbers = {order[place] for place in (0, 1, 10**12 - 1, 10**6)}
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert len(numbers) == 4
    assert max(numbers) < 10**12


def test_bad_orders():
    for arguments, message in (((0, 0, "x", 0), "count=0"), ((3, -1, "x", 0), "seed=-1"), ((3, 0, "x", -1), "epoch")):
        with pytest.raises(ValueError, match=message):
            Permutation(*arguments)


# Streams


def stream_of(folder, sizes, kind="parquet"):
    """A stream of as many files as there are sizes; each row tells its file and place."""
    folder.mkdir()
    for file, size in enumerate(sizes):
        part = datasets.Dataset.from_dict({"text": [f"{file}/{row}" for row in range(size)]})
        path = str(folder / f"{file}.{kind}")
        part.to_parquet(path) if kind == "parquet" else part.to_json(path)
    files = [str(folder / f"{file}.{kind}") for file in range(len(sizes))]
    kind = "json" if kind == "jsonl" else kind
    return datasets.load_dataset(
        kind, data_files=files, split="train", streaming=True, cache_dir=str(folder / "cache")
    )


def shards(count):
    return [Shard(index, count, 0, 1) for index in range(count)]


def all_of(data, shard, epochs=1, **options):
    source, drawn = source_of(data, shard, seed=5, task="x", epochs=epochs, **options), []
    while True:
        try:
            drawn.append(next(source))
        except StopIteration:
            return drawn


SIZES = [7, 1, 12, 5]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize(("count", "buffer"), [(1, 1), (1, 4), (2, 4), (4, 3), (3, 4), (8, 100)])
def test_every_row_of_a_stream_is_read_once(tmp_path, kind, count, buffer):
    """4 files: on 2 and 4 shards the files are dealt out, on 3 and 8 the rows."""
    data = stream_of(tmp_path / "data", SIZES, kind)
    drawn = [all_of(data, shard, epochs=2, shuffle_buffer_size=buffer) for shard in shards(count)]
    expected = Counter(f"{file}/{row}" for file, size in enumerate(SIZES) for row in range(size))
    for epoch in range(2):
        rows = [one for part in drawn for one in part if one.epoch == epoch]
        assert Counter(one.row["text"] for one in rows) == expected
        assert len({one.place for one in rows}) == len(rows), "builders draw from other numbers for every row"
    texts = [[one.row["text"] for one in drawn[0] if one.epoch == epoch] for epoch in range(2)]
    if buffer == 1:
        assert texts[0] == texts[1], "the files' order"
    elif count < 8:
        assert texts[0] != texts[1], "each epoch has another order"


def test_a_block_is_shuffled_and_one_row_is_not(tmp_path):
    data = stream_of(tmp_path / "data", [40])
    plain = [one.row["text"] for one in all_of(data, Shard(0, 1, 0, 1), shuffle_buffer_size=1)]
    assert plain == [f"0/{row}" for row in range(40)]
    blocks = [one.row["text"] for one in all_of(data, Shard(0, 1, 0, 1), shuffle_buffer_size=20)]
    assert blocks != plain
    assert sorted(blocks[:20]) == sorted(plain[:20])
    assert [plain.index(text) for text in blocks[20:]] != [20 + plain.index(text) for text in blocks[:20]]


def variants(folder):
    stream = stream_of(folder / "one", [9, 9, 4])
    other = stream_of(folder / "two", [5, 6], "jsonl")
    rows = [{"text": f"list/{at}"} for at in range(11)]
    return {
        "stream": stream,
        "mapped": stream.map(lambda row: {"length": len(row["text"])}).filter(lambda row: "/3" not in row["text"]),
        "batched": stream.map(
            lambda rows: {"text": [half for text in rows["text"] for half in (text, text + "'")]}, batched=True
        ),
        "generated": datasets.IterableDataset.from_generator(lambda: ({"text": str(at)} for at in range(23))),
        "list": rows,
        "weighted": WeightedSources([stream, rows, other], [3, 2, 1]),
    }


@pytest.mark.parametrize("kind", ["stream", "mapped", "batched", "generated", "list", "weighted"])
@pytest.mark.parametrize("buffer", [1, 5])
def test_a_source_goes_on_anywhere_bit_for_bit(tmp_path, kind, buffer):
    data = variants(tmp_path)[kind]
    for shard in shards(2):

        def begun(shard=shard):
            return source_of(data, shard, seed=1, task="x", shuffle_buffer_size=buffer)

        source, states = begun(), []
        for _ in range(40):
            states.append(json.loads(json.dumps(source.state_dict())))
            next(source)
        whole = begun()
        expected = [next(whole) for _ in range(60)]
        for taken in (0, 1, 4, 5, 6, 11, 25, 39):
            resumed = begun()
            resumed.load_state_dict(states[taken])
            assert [next(resumed) for _ in range(60 - taken)] == expected[taken:], taken


def test_weights_are_shares_of_the_rows():
    sources = [[{"text": f"{name}{at}"} for at in range(size)] for name, size in (("a", 10), ("b", 3), ("c", 50))]
    source = source_of(WeightedSources(sources, [2, 1, 1]), Shard(0, 1, 0, 1), seed=0, task="x")
    drawn = [next(source) for _ in range(80)]
    for taken in range(1, 81):
        counts = Counter(one.row["text"][0] for one in drawn[:taken])
        for name, share in (("a", 0.5), ("b", 0.25), ("c", 0.25)):
            assert abs(counts[name] - share * taken) <= 1
    again = Counter(one.row["text"] for one in drawn)
    assert {again[f"a{at}"] for at in range(10)} == {4}, "each source goes through epochs of its own"
    assert len({(one.place, one.epoch) for one in drawn}) == 80
    assert all(source.row_at(one.place) == one.row for one in drawn)


def test_what_cannot_be_read_is_refused(tmp_path):
    shard = Shard(0, 1, 0, 1)
    with pytest.raises(TypeError, match="x: data are a generator; pass a sequence of rows"):
        source_of((row for row in ()), shard, seed=0, task="x")
    with pytest.raises(ValueError, match="shuffle_buffer_size=0"):
        source_of([1], shard, seed=0, task="x", shuffle_buffer_size=0)
    with pytest.raises(ValueError, match="x: 1 rows cannot be shared by 2 shards"):
        source_of([1], Shard(0, 2, 0, 1), seed=0, task="x")
    for weights, message in (([1], "2 sources came with 1 weights"), ([1, 0], r"weights\[1\]=0 must be more than 0")):
        with pytest.raises(ValueError, match=message):
            WeightedSources([[1], [2]], weights)
    data = stream_of(tmp_path / "data", [2])
    with pytest.raises(ValueError, match="x: the stream has no row for shard 2"):
        next(source_of(data, Shard(2, 3, 0, 1), seed=0, task="x"))
    source = source_of(data, shard, seed=0, task="x")
    next(source)
    state = source.state_dict()
    empty = source_of(stream_of(tmp_path / "less", [2]).filter(lambda row: False), shard, seed=0, task="x")
    with pytest.raises(ValueError, match="the stream has fewer rows than the state says"):
        empty.load_state_dict(state)
    two = source_of(WeightedSources([[1], [2]], [1, 1]), shard, seed=0, task="x")
    one = source_of(WeightedSources([[1]], [1]), shard, seed=0, task="x")
    with pytest.raises(ValueError, match="The state is of 2 sources, but there are 1"):
        one.load_state_dict(two.state_dict())


# Streams under the mixture


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (1, 2), (2, 2)])
def test_ranks_and_workers_share_a_stream(tokenizer, tmp_path, ranks, workers):
    characters = "今天气真好我们去公园玩吧百度飞桨是"
    texts = [first + second for first in characters for second in characters][:48]
    folder = tmp_path / "data"
    folder.mkdir()
    for file in range(4):
        datasets.Dataset.from_dict({"text": texts[file * 12 : file * 12 + 12]}).to_parquet(
            str(folder / f"{file}.parquet")
        )
    data = datasets.load_dataset(
        "parquet",
        data_files=[str(folder / f"{file}.parquet") for file in range(4)],
        split="train",
        streaming=True,
        cache_dir=str(tmp_path / "cache"),
    )

    def loader(rank, batches):
        stream = Ernie3PretrainingMixture(
            tokenizer,
            [(data, KnowledgeMasking(tokenizer))],
            documents(),
            batch_size=4,
            length=16,
            ratios={"knowledge_masked_lm": 3},
            num_batches=batches,
            rank=rank,
            world_size=ranks,
            shuffle_buffer_size=5,
        )
        return StatefulDataLoader(stream, batch_size=None, num_workers=workers)

    read = Counter()
    for rank in range(ranks):
        for batch in loader(rank, 48 // 3 // ranks):
            inputs = batch["batches"]["knowledge_masked_lm"]
            restored = np.where(inputs["labels"] == -100, inputs["input_ids"], inputs["labels"])
            read.update(map(tuple, restored.tolist()))
    assert read == Counter(tuple(tokenizer(text)["input_ids"]) for text in texts)
    first = loader(0, 12)
    batches = iter(first)
    for _ in range(5):
        next(batches)
    resumed = loader(0, 12)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    pairs = list(itertools.zip_longest(batches, resumed))
    assert len(pairs) == 7
    for before, after in pairs:
        for task, inputs in before["batches"].items():
            assert all(
                (value == after["batches"][task][name]).all() if name != "branch" else True
                for name, value in inputs.items()
            ), task


def test_streamed_documents_resume_inside_a_document(tokenizer, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for file in range(2):
        datasets.Dataset.from_list(documents()[file::2]).to_parquet(str(folder / f"{file}.parquet"))
    data = datasets.load_dataset(
        "parquet",
        data_files=[str(folder / f"{file}.parquet") for file in range(2)],
        split="train",
        streaming=True,
        cache_dir=str(tmp_path / "cache"),
    )

    def begun(**options):
        return DocumentStreams(data, tokenizer, rows=2, length=6, shuffle_buffer_size=2, **options)

    stream = begun()
    batches = iter(stream)
    for taken in range(12):
        state = json.loads(json.dumps(stream.state_dict()))
        resumed = begun()
        resumed.load_state_dict(state)
        following = next(batches)
        for name, value in next(iter(resumed)).items():
            assert (value == following[name]).all(), (taken, name)
    ids = [tuple(tokenizer(one["text"])["input_ids"]) for one in documents()]
    tokens = sum(len(one) + 1 for one in ids)
    assert sum(int(batch["attention_mask"].sum()) for batch in begun(epochs=1)) == tokens
