r"""A corpus of a few hundred megabytes of Chinese and English, of what is installed: nothing is downloaded.

    python benchmarks/corpus_ernie3.py --output CORPUS [--megabytes 210] [--python FOLDER ..] [--html FOLDER ..] \
        [--services .../botocore/data]

What it is, honestly: technical English (docstrings and comments of Python packages, manual pages, the pages of HTML
manuals, descriptions of web services' programming interfaces) and little real Chinese (translated messages of
programs, manual pages). The rest, most of the Chinese, are stories made up by the examples' writer with names out of
jieba's dictionary and the lists of ISO. Good for a data path and for losses that fall; no language is learned from it.
Every source's megabytes are printed.

What is written, all as shards of JSON lines:

- `texts/`: one document a line: `text`, `source`, `genre`, `topic`. A text seen before (by its MD5) is left out.
- `triples/`: `head`, `relation`, `tail`, `sentence` by distant supervision: places and their countries in the stories;
  parameters, operations and services in the descriptions of programming interfaces.
- `pairs/`: `text`, `credible_labels`: paragraphs, and their first sentences continued by bigrams.
- `tokenizer/`: WordPiece over all of it, Chinese characters apart.
"""

import argparse
import gettext
import gzip
import hashlib
import html
import inspect
import itertools
import json
import os
import random
import re
import sys
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, trainers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
from ernie3_texts import STORIES, StoryWriter  # noqa: E402  # the examples are no package

from hf_glm_ernie import AdversarialTexts, DistantSupervision, Ernie3Tokenizer  # noqa: E402
from hf_glm_ernie.ernie3_training.splitting import split_sentences  # noqa: E402
from hf_glm_ernie.tokenization_ernie_unicode import build_normalizer, build_pre_tokenizer  # noqa: E402

SHARDS = 16
LEAST, MOST = 200, 20_000  # characters of a document
TAG = re.compile(r"<[^>]+>")
PARAGRAPH = re.compile(r"<p>(.*?)</p>", re.DOTALL)
DOCSTRING = re.compile(r'^[ \t]*[rR]?"""(.*?)"""', re.DOTALL | re.MULTILINE)
ROFF = re.compile(r"^[.'].*$|\\f[A-Z]|\\[-&]|\\\(\w\w", re.MULTILINE)
SPACES = re.compile(r"[ \t]+")
TRANSLATED = ("zh_CN", "zh_TW", "zh_HK", "zh_Hans")
LONG_MESSAGE = 12  # characters: shorter ones are labels of buttons
MESSAGES = 25  # of a program in a document
LARGEST_FILE = 400_000  # bytes: larger sources are tables

Document = dict[str, Any]


def document(text: str, source: str, genre: str, topic: str) -> Document:
    """A row of `texts/`."""
    return {"text": text, "source": source, "genre": genre, "topic": topic}


def plain(markup: str) -> str:
    """HTML without its tags."""
    return SPACES.sub(" ", html.unescape(TAG.sub("", markup)).replace("\n", " ")).strip()


def read(path: Path) -> str:
    """A file's text; nothing of one that is too large or no UTF-8."""
    try:
        return path.read_text("utf-8") if path.stat().st_size <= LARGEST_FILE else ""
    except (OSError, UnicodeDecodeError):
        return ""


def python_texts(folders: Iterable[Path]) -> Iterator[Document]:
    """Docstrings of Python files, a document for each file; README, licences and other texts beside them."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            topic = path.relative_to(folder).parts[0].removesuffix(".py")
            if path.suffix in (".md", ".rst", ".txt") and (text := read(path)):
                yield document(text, "files of packages", "Web", topic)
            elif path.suffix == ".py" and (text := docstrings(read(path))):
                yield document(text, "docstrings", "Knowledge", topic)


def docstrings(source: str) -> str:
    """The texts in triple quotes that open a line of a Python file, one below the other."""
    return "\n\n".join(inspect.cleandoc(text) for text in DOCSTRING.findall(source))


def html_texts(folders: Iterable[Path]) -> Iterator[Document]:
    """The paragraphs of HTML pages."""
    for folder in folders:
        for path in sorted(folder.rglob("*.html")):
            text = "\n".join(filter(None, map(plain, PARAGRAPH.findall(read(path)))))
            yield document(text, "HTML manuals", "Web", path.relative_to(folder).parts[0])


def manual_texts(folder: Path) -> Iterator[Document]:
    """Manual pages in English and Chinese."""
    for section in sorted([*folder.glob("man[0-9]"), *folder.glob("zh_*/man[0-9]")]):
        for path in sorted(section.glob("*.gz")):
            if path.is_file():
                with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                    text = SPACES.sub(" ", ROFF.sub("", file.read())).strip()
                yield document(text, f"manual pages, {section.parent.name}", "Knowledge", path.name.split(".")[0])


def message_texts(folder: Path) -> Iterator[Document]:
    """Translated messages of programs."""
    for language in TRANSLATED:
        for path in sorted((folder / language / "LC_MESSAGES").glob("*.mo")):
            try:
                with open(path, "rb") as file:
                    catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]  # no public way lists it
            except (OSError, UnicodeDecodeError):
                continue
            messages = [text for text in catalogue.values() if text and len(text) >= LONG_MESSAGE]
            for start in range(0, len(messages), MESSAGES):
                text = "\n".join(messages[start : start + MESSAGES])
                yield document(text, "messages of programs, Chinese", "Web", path.stem)


def services(folders: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The newest description of each web service in folders like botocore's `data`."""
    for folder in folders:
        for service in sorted(folder.glob("*/")):
            for path in sorted(service.glob("*/service-2.json*"))[-1:]:
                data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                yield json.loads(data)


def service_pages(service: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Each operation's description and those of its parameters, with the triples that may be said there."""
    name = service["metadata"].get("serviceAbbreviation") or service["metadata"]["serviceFullName"]
    shapes = service["shapes"]
    for operation, about in service["operations"].items():
        members = shapes.get(about.get("input", {}).get("shape"), {}).get("members", {})
        parts = [about.get("documentation", ""), *(member.get("documentation", "") for member in members.values())]
        triples = [{"head": operation, "relation": "operation of", "tail": name}]
        triples += [{"head": member, "relation": "parameter of", "tail": operation} for member in members]
        yield "\n".join(filter(None, map(plain, parts))), triples


def service_texts(service: dict[str, Any]) -> Iterator[Document]:
    """All descriptions of a service in documents of the length of a page."""
    name = service["metadata"]["serviceFullName"]
    texts = [page for page, _ in service_pages(service)]
    texts += [
        plain(part.get("documentation", ""))
        for shape in service["shapes"].values()
        for part in (shape, *shape.get("members", {}).values())
    ]
    page = ""
    for text in filter(None, dict.fromkeys(texts)):
        page += text + "\n"
        if len(page) > MOST // 2:
            yield document(page, "descriptions of web services", "QA", name)
            page = ""
    yield document(page, "descriptions of web services", "QA", name)


class Names:
    """Names for made-up stories: jieba's nouns, countries and their parts in both languages."""

    def __init__(self, iso: Path, locale: Path) -> None:
        import jieba

        words: dict[str, list[str]] = {"nr": [], "ns": [], "n": []}
        with jieba.get_dict_file() as file:
            for line in file:
                word, _, kind = line.decode("utf-8").split()
                if kind in words and 2 <= len(word) <= 4:
                    words[kind].append(word)
        self.chinese = {"p": words["nr"], "l": words["ns"], "o": words["n"]}
        countries = json.loads((iso / "iso_3166-1.json").read_text("utf-8"))["3166-1"]
        parts = json.loads((iso / "iso_3166-2.json").read_text("utf-8"))["3166-2"]
        named = {country["alpha_2"]: country.get("common_name", country["name"]) for country in countries}
        self.places = [(part["name"], named[part["code"][:2]]) for part in parts]
        self.translations = {}
        for domain in ("iso_3166-1", "iso_3166-2"):
            with open(locale / "zh_CN" / "LC_MESSAGES" / f"{domain}.mo", "rb") as file:
                self.translations[domain] = gettext.GNUTranslations(file).gettext

    def place(self, rng: random.Random) -> tuple[str, str, str, str]:
        """A part of a country and the country, in English and in Chinese."""
        part, country = rng.choice(self.places)
        return part, country, self.translations["iso_3166-2"](part), self.translations["iso_3166-1"](country)


class Stories:
    """Made-up documents of both languages, and triples of what they say.

    There is no list of English names on a machine: people are called by words out of names of places.

    Args:
        names: Of people, places and things.
        seed: Decides everything.

    Attributes:
        pages: What each document says of its place, and the triple that it says.
    """

    def __init__(self, names: Names, seed: int) -> None:
        self.names, self.rng = names, random.Random(seed)
        self.writers = {one: StoryWriter(STORIES, one, False, self.rng) for one in ("zh", "en")}
        self.things = self.writers["en"].names["o"]
        self.pages: list[tuple[str, list[dict[str, str]]]] = []

    def document(self, language: str) -> Document:
        """Eight stories of a person, a place and things, and where the place lies."""
        writer, rng = self.writers[language], self.rng
        part, country, part_zh, country_zh = self.names.place(rng)
        if language == "zh":
            writer.names = {slot: rng.sample(words, 8) for slot, words in self.names.chinese.items()}
            head, tail, relation, told = part_zh, country_zh, "所在国家", f"{part_zh}是{country_zh}的一个地方。"
        else:
            called = [rng.choice(self.names.places)[0].split(" ")[0] for _ in range(8)]
            writer.names = {"p": called, "o": self.things}
            head, tail, relation, told = part, country, "country", f"{part} is a place in {country}. "
        writer.names["l"] = [head]
        stories = writer.document()
        text = told + " ".join(story.text for story in stories)
        if head != tail:
            self.pages.append((told, [{"head": head, "relation": relation, "tail": tail}]))
        return document(text, f"made-up stories, {language}", stories[0].genre, stories[0].topic)


class Bigrams:
    """A weak generator, against which the credible head learns: every token follows from the one before.

    In the paper the generator is the 10B model. `ModelContinuations` makes one of any causal model, at the speed of
    its `generate`: thousands of texts take hours on a CPU.

    Args:
        texts: What it has read.
        tokenizer: Cuts words.
        length: Tokens it writes.
        seed: Decides its draws.
    """

    def __init__(self, texts: list[str], tokenizer: Any, length: int, seed: int) -> None:
        self.tokenizer, self.length, self.rng = tokenizer, length, random.Random(seed)
        self.followers: dict[int, list[int]] = defaultdict(list)
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            for token, following in itertools.pairwise(ids):
                self.followers[token].append(following)

    def __call__(self, prompts: list[str]) -> list[str]:
        """A continuation of each prompt."""
        written = []
        for ids in self.tokenizer(prompts, add_special_tokens=False)["input_ids"]:
            made = ids[-1:]
            while len(made) <= self.length and self.followers[made[-1]]:
                made.append(self.rng.choice(self.followers[made[-1]]))
            written.append(self.tokenizer.decode(made[1:], skip_special_tokens=True))
        return written


class Shards:
    """JSON lines, each in one of several files drawn at random and shuffled there: every stretch is a mixture.

    A reader's own shuffle buffer is small beside a source, so without this it would read one source after the other.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True)
        self.files = [open(folder / f"part-{at:02}.jsonl", "w", encoding="utf-8") for at in range(SHARDS)]  # noqa: SIM115  # see close()
        self.rng = random.Random(seed)
        self.bytes: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()

    def write(self, row: dict[str, Any], source: str) -> None:
        """One row."""
        self.rng.choice(self.files).write(json.dumps(row, ensure_ascii=False) + "\n")
        self.bytes[source] += len(row.get("text", row.get("sentence", "")).encode())
        self.rows[source] += 1

    def close(self) -> None:
        """Ends all files and shuffles their lines."""
        for file in self.files:
            file.close()
            path = Path(file.name)
            with open(path, encoding="utf-8") as written:
                lines = written.readlines()  # not splitlines(), which ends lines at more than \n
            self.rng.shuffle(lines)
            path.write_text("".join(lines), "utf-8")


def pieces(text: str) -> Iterator[str]:
    """A long text in documents that end with a line."""
    while len(text) > MOST:
        cut = text.rfind("\n", LEAST, MOST) + 1 or MOST
        yield text[:cut].strip()
        text = text[cut:]
    yield text.strip()


def write_texts(arguments: argparse.Namespace, stories: Stories, most: int) -> Iterator[Document]:
    """All documents, real ones first; stories fill up to `most` bytes, two of three Chinese."""
    seen: set[bytes] = set()
    shards = Shards(arguments.output / "texts", arguments.seed)
    real = [
        python_texts(arguments.python),
        html_texts(arguments.html),
        manual_texts(arguments.share / "man"),
        message_texts(arguments.share / "locale"),
        (text for service in services(arguments.services) for text in service_texts(service)),
    ]
    for source in real:
        taken = 0
        for whole in source:
            for text in pieces(whole["text"]):
                digest = hashlib.md5(text.encode()).digest()
                if len(text) < LEAST or digest in seen:
                    continue
                seen.add(digest)
                shards.write(whole | {"text": text}, whole["source"])
                taken += len(text.encode())
                yield whole | {"text": text}
            if taken > most * arguments.share_of_a_source:
                break
    while sum(shards.bytes.values()) < most:
        row = stories.document(stories.rng.choice(("zh", "zh", "en")))
        shards.write(row, row["source"])
        yield row
    shards.close()
    for name, count in shards.bytes.most_common():
        print(f"| {name} | {count / 1e6:.1f} MB | {shards.rows[name]:,} documents |", flush=True)
    print(f"| together | {sum(shards.bytes.values()) / 1e6:.1f} MB | {sum(shards.rows.values()):,} documents |")


def train_tokenizer(texts: list[str], size: int, folder: Path) -> Ernie3Tokenizer:
    """WordPiece of so many entries, in the released order of a vocabulary."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = build_normalizer(do_lower_case=True)
    tokenizer.pre_tokenizer = build_pre_tokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, limit_alphabet=4000, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    folder.mkdir()
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[CLS]", "[SEP]", "[MASK]", *words, "[UNK]"]) + "\n", "utf-8")
    made: Any = Ernie3Tokenizer.from_released_vocabulary(path, num_pieces=None)
    made.save_pretrained(folder)
    return made


def write_triples(stories: Stories, folders: list[Path], output: Path, seed: int) -> None:
    """What pages say of their triples."""
    shards = Shards(output / "triples", seed)
    described = (page for service in services(folders) for page in service_pages(service))
    supervise = DistantSupervision()
    for source, pages in (("stories", iter(stories.pages)), ("web services", described)):
        for text, triples in pages:
            if not text.strip():
                continue
            found = supervise({"text": [text], "triples": [triples]})
            for row in zip(*found.values(), strict=True):
                shards.write(dict(zip(found, row, strict=True)), source)
    shards.close()
    for source, count in shards.rows.items():
        print(f"| triples, {source} | {shards.bytes[source] / 1e6:.1f} MB | {count:,} rows |", flush=True)


def write_pairs(texts: list[str], tokenizer: Any, output: Path, seed: int) -> None:
    """Paragraphs and what bigrams make of their beginning."""
    shards = Shards(output / "pairs", seed)
    paragraphs = ["".join(split_sentences(text)[:6]).strip() for text in texts]
    paragraphs = [text for text in paragraphs if text and len(split_sentences(text)) > 2]
    bigrams = Bigrams(paragraphs, tokenizer, 96, seed)
    made = AdversarialTexts(bigrams, tokenizer, max_length=128, seed=seed)
    for start in range(0, len(paragraphs), 500):
        some = paragraphs[start : start + 500]
        rows = made({"text": some}, range(start, start + len(some)))
        for row in zip(*rows.values(), strict=True):
            shards.write(dict(zip(rows, row, strict=True)), "credible pairs")
    shards.close()
    print(f"| credible | {shards.bytes['credible pairs'] / 1e6:.1f} MB | {shards.rows['credible pairs']:,} rows |")


def main() -> None:
    """Writes the corpus and prints what it is made of."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    paths = sysconfig.get_paths()
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--python", type=Path, nargs="*", default=[Path(paths["stdlib"]), Path(paths["purelib"])])
    parser.add_argument("--html", type=Path, nargs="*", default=[], help="folders of HTML manuals")
    parser.add_argument("--services", type=Path, nargs="*", default=[], help="folders like botocore/data")
    parser.add_argument("--share", type=Path, default=Path("/usr/share"), help="with man/, locale/, iso-codes/")
    parser.add_argument("--megabytes", type=float, default=210)
    parser.add_argument("--share-of-a-source", type=float, default=0.25, help="of all bytes, at most")
    parser.add_argument("--vocabulary", type=int, default=12_000)
    parser.add_argument("--sample", type=int, default=5_000, help="documents for the tokenizer and for pairs")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    names = Names(arguments.share / "iso-codes" / "json", arguments.share / "locale")
    stories = Stories(names, arguments.seed)
    sample: list[str] = []
    rng = random.Random(arguments.seed)
    for number, row in enumerate(write_texts(arguments, stories, int(arguments.megabytes * 1e6))):
        if len(sample) < arguments.sample:  # reservoir: every document is as likely
            sample.append(row["text"][:3000])
        elif (place := rng.randrange(number + 1)) < arguments.sample:
            sample[place] = row["text"][:3000]
    tokenizer = train_tokenizer(sample, arguments.vocabulary, arguments.output / "tokenizer")
    print(f"| tokenizer | {len(tokenizer):,} entries | of {sum(map(len, sample)) / 1e6:.1f} M characters |")
    write_triples(stories, arguments.services, arguments.output, arguments.seed)
    write_pairs(sample, tokenizer, arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
