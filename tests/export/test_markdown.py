"""Foreign text in a report: a reader's program must show it, and never obey it."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from services.export.markdown import lines, table, text

HOSTILE = [
    "| a | b |\n|---|---|\n| c | d |",
    "```\nrm -rf /\n```",
    "``x`` `y`",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![pixel](https://evil.example/track.png)",
    "[click](javascript:alert(1))",
    "<https://evil.example>",
    "https://evil.example and www.evil.example",
    "# Heading\n## Another\n---\n> quote",
    "- item\n1. first\n* star",
    "&lt;b&gt; &amp; &#60;",
    "ends with a backslash \\",
    "\\| not | a \\\\| cell",
    "**bold** _under_ ~~gone~~ $x$",
    "[^1]: note",
    "<!-- hidden",
    "<br>",
    "a | b \\",
]
ALLOWED = {"p", "table", "thead", "tbody", "tr", "th", "td", "br"}


class Seen(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.cells = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.cells += tag in {"td", "th"}
        if tag == "br":
            self.words.append("\n")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def shown(markdown: str) -> Seen:
    """With raw HTML let through, as the worst of programs does."""
    return Seen(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))


def assert_shown_as_words(foreign: str) -> None:
    sentence = shown(f"Words of ours: {text(foreign, most=10_000)}")
    assert set(sentence.tags) == {"p"}
    assert "".join(sentence.words).split() == ["Words", "of", "ours:", *foreign.split()]

    page = shown(table(["Prompt", lines(foreign)], [["Before", lines(foreign)], ["After", "x"]]))
    assert set(page.tags) <= ALLOWED
    assert page.cells == 6


@pytest.mark.parametrize("foreign", HOSTILE)
def test_hostile_text_is_shown_as_it_is_and_does_nothing(foreign: str):
    assert_shown_as_words(foreign)


@given(st.text(alphabet=st.sampled_from("ab1 \\`*_{}[]()#+-.!|<>~&:@$/\n\"'="), max_size=60))
def test_no_text_becomes_anything_but_words(foreign: str):
    assert_shown_as_words(foreign)


@pytest.mark.parametrize("foreign", ["https://evil.example", "www.evil.example", "http://x.example/y"])
def test_addresses_dont_become_links_of_themselves(foreign: str):
    escaped = text(foreign)

    assert not any(start in escaped for start in ("https:", "http:", "www."))


def test_characters_that_hide_what_is_there_become_visible():
    assert text("a\u202eb\x1b[0mc\0d") == "a\ufffdb\ufffd\\[0mc\ufffdd"


def test_lines_stay_lines_in_a_cell():
    assert lines("one\r\ntwo\n\n  three\n") == "one<br>two<br><br>  three"


def test_long_text_is_cut():
    assert text("x" * 500, most=10) == "xxxxxxxxxx …"
