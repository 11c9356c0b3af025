"""What is known of languages: which one a text is in, its words, its sentences."""

import re
import unicodedata
from collections.abc import Iterator

CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{CJK}]|[^\W\d_{CJK}]+(?:[-'’][^\W\d_{CJK}]+)*|\d+(?:[.,:]\d+)*")
_NUMBER = re.compile(r"\d+(?:[.,:\u202f\u00a0 ]\d{3}(?!\d)|[.,:]\d+)*")
_ELISION = re.compile(r"^(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu)['’]", re.IGNORECASE)
ABBREVIATION = 12
"""Characters before a full stop in which one is looked for."""
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*(?=\s+[\"'“‘«(\[]?\s?[^\W_])|[。！？]+")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[«\"'“])(?:[^\W\d_]|[^\W\d_]\.[^\W\d_]|Mr|Mrs|Ms|Dr|Prof|St|Ste|MM|Mme|Mlle|Me|No|Nos|Nr|Fig|figs?|Sec|Eq|Vol|vol|pp?|art|Art|chap|Chap|cf|Cf|vs|etc|approx|ca"
    r"|env|ex|min|max|éd|Inc|Ltd|Co|Corp|bzw|usw|Abs|Bd|Sr|Sra|Ud|pág)\.$"
)

STOPWORDS = {
    "en": "the a an and or but nor of to in on at by for with from into onto over under about between through during before after above below as is are was were be been being am "
    "it its this that these those he she they them his her their we you your our i me my who whom whose which what when where why how not no do does did done has have had having "
    "will would can could may might must shall should if then than so such there here also only very more most less least each every all any both some one other another same too "
    "up down out off again once because while until against within without per via",
    "fr": "le la les l un une des du de d à au aux et ou mais ni car donc or que qui quoi dont où quand comment pourquoi ce c cet cette ces cela ça il elle ils elles on nous vous je tu "
    "me te se s lui leur leurs y en ne n pas plus moins très aussi est sont était étaient être été ai as a avons avez ont avait avaient avoir eu fait faire peut peuvent doit doivent "
    "dans sur sous par pour avec sans entre vers chez avant après pendant depuis jusque jusqu si comme ainsi alors son sa ses mon ma mes ton ta tes notre nos votre vos même tout tous "
    "toute toutes chaque autre autres qu lorsque lorsqu puisque",
    "de": "der die das den dem des ein eine einen einem einer eines und oder aber nicht kein keine ist sind war waren wird werden wurde wurden sein hat haben hatte hatten von zu zum zur "
    "im in an am auf aus bei mit nach für über unter durch gegen ohne um als wie wenn dass daß weil ob auch nur noch schon sich er sie es wir ihr ich man dieser diese dieses jede jeder "
    "kann können muss müssen soll sollen darf vom beim seine seinen ihre ihren",
    "es": "el la los las un una unos unas de del al a y e o u pero ni que quien cual cuyo donde cuando como por para con sin sobre entre hasta desde en es son era eran ser sido está están "
    "estar ha han había haber se su sus lo le les me te nos yo tú él ella ellos ellas este esta estos estas ese esa no sí más menos muy también si porque debe deben puede pueden cada",
}
_STOPWORDS = {language: frozenset(words.split()) for language, words in STOPWORDS.items()}
_ALL = frozenset().union(*_STOPWORDS.values())
_TELLING = {
    language: words - frozenset().union(*(others for other, others in _STOPWORDS.items() if other != language)) for language, words in _STOPWORDS.items()
}


def tell(text: str, *, least: int = 3) -> str:
    """`en`, `fr`, `de`, `es`, or nothing where it can't be told."""
    heard = [word.lower() for word in _WORD.findall(_ELISIONS.sub(" ", text[:20_000]))]
    counts = sorted(((sum(word in telling for word in heard), language) for language, telling in _TELLING.items()), reverse=True)
    (most, language), (second, _) = counts[:2]
    return language if most >= least and most >= 1.5 * second else ""


_ELISIONS = re.compile(r"(?<=\s)[dlnscjm]['’]", re.IGNORECASE)


def words(text: str) -> list[str]:
    """In small letters, without what French puts before them."""
    return [bare(word) for word in _WORD.findall(text)]


def bare(word: str) -> str:
    return _ELISION.sub("", unicodedata.normalize("NFC", word).lower().replace("’", "'"))


def telling(text: str) -> list[str]:
    """Its words that carry meaning, in any of the languages."""
    return [word for word in words(text) if word not in _ALL and (len(word) > 1 or not word.isascii()) and not word[0].isdigit()]


def is_telling(word: str) -> bool:
    return len(word) > 1 and word not in _ALL and not word[0].isdigit()


def numbers(text: str) -> list[str]:
    """As they are however they are grouped: 1,200 and 1 200 are 1200."""
    return [re.sub(r"[.,:\u202f\u00a0 ](?=\d{3}(?!\d))", "", number) for number in _NUMBER.findall(text)]


def sentences(text: str) -> list[str]:
    """Of one paragraph, whatever is broken into lines in it."""
    return list(_sentences(" ".join(text.split())))


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(text):
        sentence = text[start : end.end()]
        if text[end.start()] == "." and (
            _ABBREVIATION.search(text[max(start, end.start() - ABBREVIATION) : end.start() + 1]) or text[end.end() :].lstrip()[:1].islower()
        ):
            continue
        if sentence.strip():
            yield sentence.strip()
        start = end.end()
    if rest := text[start:].strip():
        yield rest
