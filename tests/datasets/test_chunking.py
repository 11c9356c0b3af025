"""Text becomes chunks: never over the size, nothing lost, cut where a reader would, the same each time."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from libs.tiny import tokenizer as tiny
from services.datasets import chunking, counting
from services.datasets.chunking import Chunk, chunks
from services.datasets.counting import Counting
from services.datasets.documents.blocks import Block, divided

LEARNED = [*tiny.TEXT.splitlines(), "Les élèves étudient l'été. « Déjà vu ? » 東京は大きい。 12 345,67 €\n\n\nif x:\n        y = 1\n"]


def like_gpt() -> Tokenizer:
    """Byte-level words, as most models of today have them: line ends stick to full stops, blanks to words."""
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, alphabet=pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def like_llama_2() -> Tokenizer:
    """No words at all: one long line in which blanks are letters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    _train(tokenizer, alphabet=list("abcdefghijklmnopqrstuvwxyz▁"), special=["<unk>"])
    return tokenizer


def like_t5() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    _train(tokenizer, alphabet=list("abcdefghijklmnopqrstuvwxyz▁"), special=["<unk>"])
    return tokenizer


def _train(tokenizer: Tokenizer, *, alphabet: list[str], special: Sequence[str] = ()) -> None:
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator(LEARNED, trainer)


COUNTINGS = {
    "estimate": counting.estimate(),
    "tiny": Counting(tiny.build(), name="tiny"),
    "gpt": Counting(like_gpt(), name="gpt"),
    "llama-2": Counting(like_llama_2(), name="llama-2"),
    "t5": Counting(like_t5(), name="t5"),
}
ESTIMATE = COUNTINGS["estimate"]


def blocks(*texts: str) -> list[Block]:
    return [block for text in texts for block in divided(text)]


def heading(text: str, *path: str) -> Block:
    return Block(text=text, headings=(*path, text), is_heading=True)


def made(given: list[Block], *, size: int = 16, overlap: int = 0, by: Counting = ESTIMATE) -> list[Chunk]:
    return list(chunks(given, by, size=size, overlap=overlap))


def contents(given: list[Block], *, size: int = 16, overlap: int = 0) -> list[str]:
    return [chunk.content for chunk in made(given, size=size, overlap=overlap)]


# What always holds

WORDS = st.one_of(
    st.sampled_from(
        [
            "word",
            "a",
            "sentence.",
            "Ends here.",
            "Vraiment ?",
            "« Oui. »",
            "3.14",
            "東京は大きい。",
            "été",
            "e\u0301",
            "👩‍🚀",
            "_x_y",
            "12 345",
            "(so)",
            "x" * 300,
        ]
    ),
    st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=12),
)
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", " ", " ", "\n", "  ", "\t", "", "\u00a0"])), min_size=1, max_size=60).map(
    lambda parts: "".join(word + blank for word, blank in parts)
)
BLOCKS = st.lists(
    st.builds(Block, text=TEXTS, before=st.sampled_from(["\n\n", "\n\n", "\n", ""]), page=st.integers(1, 9), is_heading=st.booleans()), min_size=1, max_size=5
)


@pytest.mark.parametrize("name", COUNTINGS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(given=BLOCKS, size=st.integers(16, 120), share=st.floats(0, 0.5), piece=st.sampled_from([200, 5_000]))
@example(given=[Block(text="\u200d" * 40)], size=16, share=0.5, piece=200)
def test_never_over_the_size_nothing_lost_and_counted_as_the_tokenizer_does(name: str, given: list[Block], size: int, share: float, piece: int):
    by, overlap = COUNTINGS[name], int(size * share)
    with pytest.MonkeyPatch.context() as smaller:
        smaller.setattr(chunking, "PIECE", piece)
        smaller.setattr(chunking, "AHEAD", 16)
        found = list(chunks(given, by, size=size, overlap=overlap))
        again = list(chunks(given, by, size=size, overlap=overlap))

    assert again == found
    whole = "".join((block.before if n else "") + block.text for n, block in enumerate(given))
    ends = {0}
    for chunk in found:
        assert chunk.content == chunk.content.strip()
        assert by.count(chunk.content) == chunk.tokens
        assert chunk.tokens <= size or len(chunk.content) == 1
        ends = {end for at in ends for end in _ends(whole, chunk.content, at, overlap, by)}
        assert ends, "it neither goes on where the one before ended, nor repeats only as much of it as it may"
    assert any(not whole[end:].strip() for end in ends)


def _ends(whole: str, content: str, at: int, overlap: int, by: Counting) -> Iterator[int]:
    """Where a chunk after `at` can end. The same words may stand at several places."""
    new = at + len(whole[at:]) - len(whole[at:].lstrip())
    for place in [*range(max(0, at - len(content)), at), new]:
        end = place + len(content)
        if end > new and whole.startswith(content, place) and (place == new or by.count(whole[place:at]) <= overlap):
            yield end


def test_however_much_of_the_text_is_seen_at_once_the_borders_are_those_of_the_text(monkeypatch: pytest.MonkeyPatch):
    text = " ".join(f"This is sentence number {n} of them all." for n in range(400))
    once = contents(blocks(text), size=64, overlap=16)

    monkeypatch.setattr(chunking, "PIECE", 700)

    assert contents(blocks(text), size=64, overlap=16) == once


def test_no_text_gives_no_chunks():
    assert made([]) == []
    assert made([Block(text=" \n\t ")]) == []


# Where it is cut


def test_a_section_begins_a_chunk():
    given = [heading("One"), *blocks("Some words that stand here for text."), heading("Two"), *blocks("More words that stand here for text.")]

    assert contents(given, size=16) == ["One\n\nSome words that stand here for text.", "Two\n\nMore words that stand here for text."]


def test_a_heading_is_never_the_last_line_of_a_chunk():
    given = [*blocks("Seven words are what stands here now."), heading("Title"), *blocks("A b c d e f g h i j k l m n o p q r s t.")]

    assert not any(content.endswith("Title") for content in contents(given, size=16))


def test_paragraphs_stay_whole_where_two_dont_fit():
    assert contents(blocks("One two six ten. And so on it is.", "Red, blue, pink and gray. So is it."), size=16) == [
        "One two six ten. And so on it is.",
        "Red, blue, pink and gray. So is it.",
    ]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One and one are two. Two and two are four. Four and four are eight.", "One and one are two. Two and two are four."),
        ("He met Mr. Smith at 5 p.m. today. Then all of them went home to eat.", "He met Mr. Smith at 5 p.m. today."),
        ("« Où vas-tu ? » Il dit non. « Je vais au lac. » Puis rien du tout ne va.", "« Où vas-tu ? » Il dit non."),
        ("今日は天気です。明日も天気です。昨日は雨でした。", "今日は天気です。明日も天気です。"),
        ("Is it? It is! Well… Yes, that is so for all of us who go on there.", "Is it? It is! Well…"),
        ("Row one\nRow two\nRow six\nRow ten\nRow 4 and so on\nRow", "Row one\nRow two\nRow six\nRow ten"),
    ],
)
def test_sentences_stay_whole(text: str, first: str):
    assert contents(blocks(text), size=16)[0] == first


def test_a_long_sentence_is_cut_between_words():
    found = contents(blocks("word " * 100), size=16)

    assert all(content == " ".join(["word"] * len(content.split())) for content in found)
    assert sum(len(content.split()) for content in found) == 100


def test_an_enormous_word_is_cut_all_the_same():
    found = made(blocks("x" * 100_000), size=64, overlap=8)

    assert max(chunk.tokens for chunk in found) == 64


def test_characters_that_look_like_one_stay_together():
    found = contents(blocks("e\u0301" * 200), size=16)

    assert all(not content.startswith("\u0301") for content in found)


def test_blanks_without_end_are_not_one_enormous_chunk():
    found = contents([Block(text=("a" + " " * 60) * 5_000)], size=64)

    assert max(map(len, found)) <= 64 * chunking.PER_TOKEN


# What is repeated


def test_an_overlap_is_made_of_whole_sentences():
    text = " ".join(f"Here is no. {n}." for n in range(10, 40))

    for before, after in pairwise(contents(blocks(text), size=32, overlap=12)):
        shared = after[: after.index(".", after.index("no.") + 3) + 1]
        assert shared.startswith("Here is")
        assert before.endswith(shared)


def test_a_sentence_too_long_to_repeat_is_repeated_in_words():
    before, after, *_ = contents(blocks(" ".join(f"w{n}" for n in range(200))), size=32, overlap=8)

    assert before.split()[-1] in after.split()
    assert after.split()[0] in before.split()


def test_nothing_is_repeated_across_a_heading():
    given = [heading("One"), *blocks("Some words. They stand here for text."), heading("Two"), *blocks("More words. They stand here for text.")]

    assert contents(given, size=16, overlap=8)[1].startswith("Two")


# What is told of a chunk


def test_pages_and_headings_are_those_of_its_text():
    given = [
        Block(text="Title", page=1, headings=("Title",), is_heading=True),
        Block(text="Words on the first page go on", page=1, headings=("Title",)),
        Block(text="to the second page and end. " * 2, before="\n", page=2, headings=("Title",)),
        Block(text="Next", page=3, headings=("Title", "Next"), is_heading=True),
        Block(text="Words on the third page.", page=3, headings=("Title", "Next")),
    ]

    first, *_, last = made(given, size=32)

    assert (first.page_start, first.page_end, first.headings) == (1, 2, ("Title",))
    assert (last.page_start, last.page_end, last.headings) == (3, 3, ("Title", "Next"))


# Tokenizers


@pytest.mark.parametrize(("name", "local"), [("estimate", True), ("tiny", True), ("gpt", True), ("t5", True), ("llama-2", False)])
def test_only_a_tokenizer_that_looks_at_words_one_by_one_is_trusted_to_count_by_places(name: str, local: bool):
    assert COUNTINGS[name].local is local


def test_a_tokenizer_that_would_cut_fill_or_roll_dice_doesnt():
    tokenizer = like_gpt()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    told = json.loads(tokenizer.to_str())
    told["model"]["dropout"] = 0.5

    by = counting.read(json.dumps(told).encode(), name="x")

    assert by.count("one two six ten " * 20) == COUNTINGS["gpt"].count("one two six ten " * 20) > 64


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"model": {"type": "BPE"}}', b"\xff", b'{"model": null}'])
def test_what_is_no_tokenizer_is_said_to_be_none(data: bytes):
    with pytest.raises(counting.Unfit):
        counting.read(data, name="x")


def test_the_estimate_is_near_what_tokenizers_of_today_count():
    """They make a token of four characters or more of English; the tiny model's, which knows few words, of two."""
    assert 3.0 < len(tiny.TEXT) / ESTIMATE.count(tiny.TEXT) < 4.2
    assert ESTIMATE.count(tiny.TEXT) < COUNTINGS["tiny"].count(tiny.TEXT)
