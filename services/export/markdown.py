"""Foreign text in Markdown: people's and models' words stay words, whatever they look like."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
_SPECIAL = re.compile(r"""[\\`*_\[\]#~$]|:(?=\S)|(?<=www)\.|@""", re.IGNORECASE)
_TURNING = {"\u200e", "\u200f", "\u061c"}


def text(foreign: str, *, most: int = 200) -> str:
    """On one line, to stand behind words of ours or in a table's cell."""
    return _escaped(" ".join(_shortened(foreign, most).split()))


def lines(foreign: str, *, most: int = 2000) -> str:
    """For a table's cell, with its line breaks."""
    shown = _shortened(foreign, most).replace("\r\n", "\n").replace("\r", "\n").strip("\n")
    return "<br>".join(_escaped(line.replace("\t", "    ").rstrip()) for line in shown.split("\n"))


def code(ours: str) -> str:
    """Ids, hashes, names of settings: nothing that somebody else has written."""
    return f"`{ours}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells come escaped."""
    ruled = ["---"] * len(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ruled, *rows))


def _shortened(foreign: str, most: int) -> str:
    return foreign if len(foreign) <= most else foreign[:most] + " …"


def _escaped(line: str) -> str:
    """Entities where a backslash would not do everywhere; links that need no brackets are broken up too."""
    visible = "".join(_visible(character) for character in line)
    return re.sub(r"[&<>|]", lambda found: _ENTITIES[found[0]], _SPECIAL.sub(r"\\\g<0>", visible))


def _visible(character: str) -> str:
    """Control characters, and those that turn the text around, would hide what is there."""
    hidden = character in _TURNING or unicodedata.category(character) in {"Cc", "Cs", "Co", "Zl", "Zp"} or unicodedata.bidirectional(character) in _BIDI
    return "\ufffd" if hidden else character


_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
