"""Document language modelling: nothing is lost, repeated or leaked, whoever reads it."""

import itertools
import json
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from hf_glm_ernie.ernie3_training.documents import DocumentReader, DocumentStreams, DocumentTokens
from hf_glm_ernie.ernie3_training.sources import source_of
from hf_glm_ernie.ernie3_training.streams import Shard
from tests.support.ernie3_rows import small_tokenizer

# Documents whose tokens tell where they come from: 1000 * document + place.
LENGTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 40, 23, 5, 8]
DOCUMENTS = [{"input_ids": [1000 * (at + 1) + place for place in range(n)]} for at, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def read_back(batches):
    """Follows every stream and checks each row against the one before; counts documents and predictions."""
    last: dict[int, int] = {}
    seen, predicted, finished = Counter(), Counter(), Counter()
    for batch in batches:
        streams = batch["stream_ids"].tolist()
        assert len(set(streams)) == len(streams)
        for row, stream in enumerate(streams):
            ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
            real = batch["attention_mask"][row].bool().tolist()
            count = sum(real)
            assert real == [True] * count + [False] * (len(real) - count)
            tokens = ids[:count]
            assert len({token // 1000 for token in tokens}) == 1, "one document in a row"
            assert tokens == list(range(tokens[0], tokens[0] + count))
            if batch["memory_reset"][row]:
                assert tokens[0] % 1000 == 0
                if stream in last:
                    finished[last[stream] // 1000 - 1] += 1
                    assert last[stream] % 1000 == LENGTHS[last[stream] // 1000 - 1] - 1, "the one before was read out"
            else:
                assert tokens[0] == last[stream] + 1
            last[stream] = tokens[-1]
            seen.update(tokens)
            # What the model does: column i predicts the label of column i + 1.
            for token, label in zip(ids[:-1], labels[1:], strict=True):
                if label != -100:
                    assert label == token + 1
                    assert token in tokens
                    predicted[label] += 1
    return seen, predicted


def every_token(times=1):
    return Counter({token: times for document in DOCUMENTS for token in document["input_ids"]})


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("rows", [1, 4])
def test_every_token_is_read_once_and_predicted_once(tokenizer, workers, rows):
    stream = DocumentStreams(DOCUMENTS, tokenizer, rows=rows, length=8, epochs=1)
    batches = list(DataLoader(stream, batch_size=None, num_workers=workers))
    assert all(batch["input_ids"].shape[1] <= 8 for batch in batches)
    seen, predicted = read_back(batches)
    assert seen == every_token()
    assert predicted == Counter({token: 1 for token in every_token() if token % 1000})


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (2, 3), (3, 1)])
def test_ranks_and_workers_share_the_documents(tokenizer, ranks, workers):
    seen, predicted = Counter(), Counter()
    for rank in range(ranks):
        stream = DocumentStreams(DOCUMENTS, tokenizer, rows=2, length=6, epochs=2, rank=rank, world_size=ranks)
        mine = read_back(DataLoader(stream, batch_size=None, num_workers=workers))
        assert mine[0], "every rank has something to read"
        seen.update(mine[0])
        predicted.update(mine[1])
    assert seen == every_token(2)
    assert predicted == Counter({token: 2 for token in every_token() if token % 1000})


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("taken", [1, 5, 7])
def test_a_stream_resumes_exactly(tokenizer, workers, taken):
    def loader():
        return StatefulDataLoader(
            DocumentStreams(DOCUMENTS, tokenizer, rows=3, length=7), batch_size=None, num_workers=workers
        )

    whole = loader()
    batches = iter(whole)
    for _ in range(taken):
        next(batches)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = loader()
    resumed.load_state_dict(state)
    for first, second in zip(itertools.islice(batches, 16 - taken), resumed, strict=False):
        assert equal(first, second)


def test_the_stream_knows_where_it_is(tokenizer):
    stream = DocumentStreams(DOCUMENTS, tokenizer, rows=2, length=6)
    batches = iter(stream)
    assert stream.state_dict() == {}
    for _ in range(5):
        next(batches)
    state = stream.state_dict()
    assert (state["batch"], state["shard"], state["shards"]) == (5, 0, 1)
    other = DocumentStreams(DOCUMENTS, tokenizer, rows=2, length=6)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert equal(next(iter(other)), next(batches))
    with pytest.raises(ValueError, match=r"The state has \['batches'\]; state_dict\(\) of a stream gives"):
        other.load_state_dict({"batches": 1})
    elsewhere = DocumentStreams(DOCUMENTS, tokenizer, rows=2, length=6, rank=1, world_size=2)
    elsewhere.load_state_dict(state)
    with pytest.raises(ValueError, match="The state is of shard 0 of 1, this is shard 1 of 2"):
        next(iter(elsewhere))
    fewer = DocumentStreams(DOCUMENTS[:12], tokenizer, rows=2, length=6)
    fewer.load_state_dict(state)
    with pytest.raises(ValueError, match="the state is of 13 rows, but there are 12"):
        next(iter(fewer))


def test_seeds_and_epochs_order_the_documents(tokenizer):
    def order(seed):
        stream = DocumentStreams(DOCUMENTS, tokenizer, rows=1, length=100, epochs=2, seed=seed)
        return [batch["input_ids"][0, 0].item() // 1000 for batch in stream]

    first = order(0)
    assert first == order(0)
    assert first != order(1)
    assert first[:13] != first[13:]
    assert sorted(first[:13]) == sorted(first[13:]) == list(range(1, 14))


def test_rows_and_lengths_may_grow(tokenizer):
    stream = DocumentStreams(DOCUMENTS, tokenizer, rows=lambda n: 1 + n // 3, length=lambda n: 4 + n, epochs=1)
    batches = list(stream)
    assert [len(batch["stream_ids"]) for batch in batches[:7]] == [1, 1, 1, 2, 2, 2, 3]
    assert max(batch["input_ids"].shape[1] - number for number, batch in enumerate(batches)) == 4
    assert read_back(batches)[0] == every_token()


def test_texts_become_documents(tokenizer):
    datasets = pytest.importorskip("datasets", reason="needs the datasets library, whose map the builders are for")
    texts = ["今天。", "hello我们"]
    data = datasets.Dataset.from_dict({"text": texts})
    ids = data.map(DocumentTokens(tokenizer), batched=True, remove_columns=["text"], num_proc=2)
    expected = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    assert ids["input_ids"][:] == expected
    assert expected[0][0] == tokenizer.cls_token_id
    by_stream = [batch["input_ids"].tolist() for batch in DocumentStreams(ids, tokenizer, rows=1, epochs=1)]
    assert by_stream == [batch["input_ids"].tolist() for batch in DocumentStreams(data, tokenizer, rows=1, epochs=1)]
    assert sorted(rows[0] for rows in by_stream) == sorted(expected)


def test_padding_is_masked_and_ignored(tokenizer):
    (batch,) = DocumentStreams(
        [{"input_ids": [1, 5, 6]}, {"input_ids": [1, 7]}], tokenizer, rows=2, epochs=1, pad_to_multiple_of=4
    )
    order = batch["input_ids"][:, 1].argsort()
    assert batch["input_ids"][order].tolist() == [[1, 5, 6, 0], [1, 7, 0, 0]]
    assert batch["attention_mask"][order].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch["labels"][order].tolist() == [[-100, 5, 6, -100], [-100, 7, -100, -100]]


def test_bad_documents_and_settings(tokenizer):
    with pytest.raises(ValueError, match="13 rows cannot be shared by 14 shards"):
        next(iter(DocumentStreams(DOCUMENTS, tokenizer, rank=13, world_size=14)))
    with pytest.raises(ValueError, match="rank=2 must be at least 0 and less than world_size=2"):
        DocumentStreams(DOCUMENTS, tokenizer, rank=2, world_size=2)
    with pytest.raises(ValueError, match="document 0: input_ids is empty"):
        next(iter(DocumentStreams([{"input_ids": []}], tokenizer)))
    with pytest.raises(ValueError, match="document 0: column 'text' is an empty text"):
        next(iter(DocumentStreams([{"text": " "}], tokenizer)))
    source = source_of([{"text": "今"}], Shard(0, 1, 0, 1), seed=0, task="document_lm")
    with pytest.raises(ValueError, match=r"no input_ids but \['text'\], and no tokenizer"):
        DocumentReader(source, None).read(1, 8)
    with pytest.raises(ValueError, match="length=1 must be at least 2"):
        next(iter(DocumentStreams(DOCUMENTS, tokenizer, length=1)))
    with pytest.raises(ValueError, match="rows=0 at batch 0"):
        next(iter(DocumentStreams(DOCUMENTS, tokenizer, rows=0)))
