"""Examples out of the text itself, without any model: questions that its sentences answer, in their own words."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence, Set
from itertools import islice
from typing import NamedTuple

from .example import Example, Turn, single
from .language import bare, is_telling, tell, telling
from .questions import about_fr, ask, stands_alone
from .text import Listing, Paragraph, Section, is_whole, read

LONGEST = 3
"""Sentences of an answer."""
CONTINUED = 10
"""Words of a sentence whose end can be asked for."""
LEAD = 160
"""Characters of a sentence that may introduce a list in a question."""


class Words(NamedTuple):
    """What is asked in one language."""

    about: str
    heading: str
    listing: str
    listing_under: str
    explain: str
    explain_heading: str
    section: str
    figures: str
    continued: str
    points: tuple[str, ...]
    """By their number: three, four."""
    summary: tuple[str, ...]
    """By number of sentences: one, two, three."""


WORDS = {
    "en": Words(
        about="What does the document say about {topic}?",
        heading="What does the document say under the heading “{heading}”?",
        listing="List what the document names here: “{lead}”",
        listing_under="List the points that the document gives under “{heading}”.",
        explain="Explain what the document says about {topic}.",
        explain_heading="Explain what the document says under the heading “{heading}”.",
        section="Summarise the section “{heading}” of the document.",
        figures="Which dates and figures does the document give about {topic}?",
        continued="How does this statement of the document go on: “{beginning} …”?",
        points=("List the three most important statements of the following text.", "List the four most important statements of the following text."),
        summary=(
            "Summarise the following text in one sentence.",
            "Summarise the following text in two sentences.",
            "Summarise the following text in three sentences.",
        ),
    ),
    "fr": Words(
        about="Que dit le document à propos {of_topic} ?",
        heading="Que dit le document sous le titre « {heading} » ?",
        listing="Énumère ce que le document cite ici : « {lead} »",
        listing_under="Énumère les points que le document donne sous « {heading} ».",
        explain="Explique ce que dit le document à propos {of_topic}.",
        explain_heading="Explique ce que dit le document sous le titre « {heading} ».",
        section="Résume la section « {heading} » du document.",
        figures="Quels chiffres et quelles dates le document donne-t-il à propos {of_topic} ?",
        continued="Comment continue cette phrase du document : « {beginning} … » ?",
        points=(
            "Énumère les trois affirmations les plus importantes du texte suivant.",
            "Énumère les quatre affirmations les plus importantes du texte suivant.",
        ),
        summary=("Résume le texte suivant en une phrase.", "Résume le texte suivant en deux phrases.", "Résume le texte suivant en trois phrases."),
    ),
    "de": Words(
        about="Was sagt das Dokument zum Thema „{topic}“?",
        heading="Was steht im Dokument unter der Überschrift „{heading}“?",
        listing="Zähle auf, was das Dokument hier nennt: „{lead}“",
        listing_under="Zähle die Punkte auf, die das Dokument unter „{heading}“ nennt.",
        explain="Erkläre, was das Dokument zum Thema „{topic}“ sagt.",
        explain_heading="Erkläre, was im Dokument unter der Überschrift „{heading}“ steht.",
        section="Fasse den Abschnitt „{heading}“ des Dokuments zusammen.",
        figures="Welche Zahlen und Daten nennt das Dokument zum Thema „{topic}“?",
        continued="Wie geht dieser Satz des Dokuments weiter: „{beginning} …“?",
        points=("Nenne die drei wichtigsten Aussagen des folgenden Textes.", "Nenne die vier wichtigsten Aussagen des folgenden Textes."),
        summary=(
            "Fasse den folgenden Text in einem Satz zusammen.",
            "Fasse den folgenden Text in zwei Sätzen zusammen.",
            "Fasse den folgenden Text in drei Sätzen zusammen.",
        ),
    ),
    "es": Words(
        about="¿Qué dice el documento sobre «{topic}»?",
        heading="¿Qué dice el documento bajo el título «{heading}»?",
        listing="Enumera lo que el documento nombra aquí: «{lead}»",
        listing_under="Enumera los puntos que el documento da bajo «{heading}».",
        explain="Explica lo que dice el documento sobre «{topic}».",
        explain_heading="Explica lo que dice el documento bajo el título «{heading}».",
        section="Resume la sección «{heading}» del documento.",
        figures="¿Qué cifras y fechas da el documento sobre «{topic}»?",
        continued="¿Cómo sigue esta frase del documento: «{beginning} …»?",
        points=("Enumera las tres afirmaciones más importantes del texto siguiente.", "Enumera las cuatro afirmaciones más importantes del texto siguiente."),
        summary=("Resume el texto siguiente en una frase.", "Resume el texto siguiente en dos frases.", "Resume el texto siguiente en tres frases."),
    ),
}


def examples(text: str, *, task_type: str, headings: Sequence[str] = (), goes_on: bool = False) -> Iterator[Example]:
    """As many as the text gives, the best first; the same for the same text. `goes_on`: its first sentence may have begun before it."""
    chunk = Reading(text, headings, goes_on=goes_on)
    match task_type:
        case "qa":
            yield from chunk.questions()
        case "chat":
            yield from chunk.chats()
        case "instruction":
            yield from chunk.instructions()
        case _:
            yield from chunk.summaries()


class Reading:
    """A chunk, its sentences, and how much each of them says."""

    def __init__(self, text: str, headings: Sequence[str], *, goes_on: bool) -> None:
        self.sections = read(text, headings=headings)
        if goes_on:
            _drop_first(self.sections)
        every = [sentence for section in self.sections for sentence in section.sentences]
        self.language = tell(" ".join(every)) or tell(text) or "en"
        self.whole = [sentence for sentence in every if is_whole(sentence)]
        self.telling = {sentence: telling(sentence) for sentence in every}
        self.weights = _weights([self.telling[sentence] for sentence in every])
        self.small = frozenset(word for word in re.findall(r"\b[^\W\d_]+\b", text) if word.islower())
        self.names = frozenset(re.findall(r"[a-zà-ÿ,;]\s([^\W\d_]+)", text)) - self.small
        self.topics = _topics(self.whole, self.language)
        self.words = WORDS[self.language]

    def questions(self) -> Iterator[Example]:
        """What is asked for in words of our own, then how sentences go on that nothing was asked about."""
        told = list[str]()
        for example in self._asked():
            told.append(example.answered)
            yield example
        for sentence in sorted(self.whole, key=self._weight, reverse=True):
            if not any(sentence in answer for answer in told) and stands_alone(sentence, self.language) and len(sentence.split()) >= CONTINUED:
                yield single(self.words.continued.format(beginning=_beginning(sentence)), sentence)

    def chats(self) -> Iterator[Example]:
        """Two questions each, the second about what stands near the first."""
        asked = [example.turns[0] for example in self._asked()]
        every = [example.turns[0] for example in self.questions()]
        left = yield from self._pairs(list(asked))
        yield from self._pairs([*left, *every[len(asked) :]])

    def _pairs(self, turns: list[Turn]) -> Generator[Example, None, list[Turn]]:
        """Gives back those that found no other."""
        order = {sentence: n for n, sentence in enumerate(self.whole)}
        places = {turn: _place(turn, order) for turn in turns}
        alone: list[Turn] = []
        while turns:
            first = turns.pop(0)
            here = places[first]
            others = [turn for turn in turns if turn.answered not in first.answered and first.answered not in turn.answered]
            if not others:
                alone.append(first)
                continue
            second = min(others, key=lambda turn: (abs(places[turn] - here), turn.asked))
            turns.remove(second)
            yield Example(turns=[first, second] if here <= places[second] else [second, first])
        return alone

    def _asked(self) -> Iterator[Example]:
        """Those that patterns put, what says most first; then headings and topics."""
        answers: dict[str, list[str]] = defaultdict(list)
        ranks: dict[str, tuple[float, int]] = {}
        for place, sentence in enumerate(self.whole):
            if stands_alone(sentence, self.language) and (asked := ask(sentence, self.language, small=self.small, names=self.names)):
                answers[asked.question].append(self._followed(sentence) if not answers[asked.question] else sentence)
                ranks.setdefault(asked.question, (-self._weight(sentence) - (asked.rank < 20), place))
        told = {sentence for found in answers.values() for sentence in found}
        for question in sorted(ranks, key=ranks.__getitem__):
            yield single(question, _joined(answers[question][:LONGEST]))
        for section in self.sections:
            if section.heading and (answer := self._beginning(section, most=2)):
                yield single(self.words.heading.format(heading=section.heading), _joined(answer))
        for topic, sentences in self.topics.items():
            if not set(sentences) <= told:
                yield single(self._about(self.words.about, topic), _joined(sentences[:LONGEST]))

    def instructions(self) -> Iterator[Example]:
        yield from _woven(self._lists(), self._explained(), self._figures(), self._sections_in_short())
        yield from self.questions()

    def summaries(self) -> Iterator[Example]:
        """Of the whole chunk in several lengths, then of its sections."""
        texts = [("\n\n".join(filter(None, (_shown(section) for section in self.sections))), self.whole)]
        if len(self.sections) > 1:
            texts += [(_shown(section), [sentence for sentence in section.sentences if is_whole(sentence)]) for section in self.sections]
        for count in (3, 2, 1):
            for text, sentences in texts:
                if len(sentences) >= 2 * count + 1 and (best := self._best(sentences, count)):
                    yield single(self.words.summary[count - 1], _joined(best), input=text)
        for text, sentences in texts:
            for count in (3, 4):
                if len(sentences) >= 2 * count + 1 and (best := self._best(sentences, count)):
                    yield single(self.words.points[count - 3], "\n".join(f"- {sentence}" for sentence in best), input=text)

    def _lists(self) -> Iterator[Example]:
        for section in self.sections:
            for block in section.blocks:
                if not isinstance(block, Listing) or len(block.items) < 2:
                    continue
                answer = "\n".join(f"- {item}" for item in block.items)
                if block.lead.endswith(":") and len(block.lead) <= LEAD and stands_alone(block.lead, self.language):
                    yield single(self.words.listing.format(lead=block.lead.rstrip(" :")), answer)
                elif section.heading:
                    yield single(self.words.listing_under.format(heading=section.heading), answer)

    def _explained(self) -> Iterator[Example]:
        for section in self.sections:
            if section.heading and len(answer := self._beginning(section, most=4)) > 1:
                yield single(self.words.explain_heading.format(heading=section.heading), _joined(answer))
        for topic, sentences in self.topics.items():
            if len(sentences) > 1:
                yield single(self._about(self.words.explain, topic), _joined(sentences[: LONGEST + 1]))

    def _figures(self) -> Iterator[Example]:
        for topic, sentences in self.topics.items():
            if figures := [sentence for sentence in sentences if re.search(r"\d", sentence)]:
                yield single(self._about(self.words.figures, topic), _joined(figures[:LONGEST]))

    def _sections_in_short(self) -> Iterator[Example]:
        for section in self.sections:
            sentences = [sentence for sentence in section.sentences if is_whole(sentence)]
            if section.heading and len(sentences) >= 5:
                yield single(self.words.section.format(heading=section.heading), _joined(self._best(sentences, 3)))

    def _about(self, question: str, topic: str) -> str:
        of_topic = about_fr(topic).removeprefix("Que dit le document à propos ").removesuffix(" ?") if self.language == "fr" else ""
        return question.format(topic=topic, of_topic=of_topic)

    def _beginning(self, section: Section, *, most: int) -> list[str]:
        """Its first sentences in a row, while they are whole."""
        found: list[str] = []
        for sentence in section.sentences[:most]:
            if not is_whole(sentence) or (not found and not stands_alone(sentence, self.language)):
                break
            found.append(sentence)
        return found

    def _followed(self, sentence: str) -> str:
        """With the next one where that goes on about the same."""
        at = self.whole.index(sentence) + 1
        following = self.whole[at] if at < len(self.whole) else ""
        goes_on = following and not stands_alone(following, self.language) and len(following) <= 200
        return f"{sentence} {following}" if goes_on and self._follows(sentence, following) else sentence

    def _follows(self, sentence: str, following: str) -> bool:
        return any(f"{sentence}\0{following}" in "\0".join(section.sentences) for section in self.sections)

    def _best(self, sentences: Sequence[str], count: int) -> list[str]:
        """Those that say most and not the same, in their order. The first of a text says more than its words."""
        chosen: list[int] = []
        words = [frozenset(self.telling[sentence]) for sentence in sentences]

        def says(n: int) -> tuple[float, int]:
            return self._weight(sentences[n]) * (1.3 if n == 0 else 1) * (1 - _alike(words[n], (words[c] for c in chosen))), -n

        left = [n for n, sentence in enumerate(sentences) if stands_alone(sentence, self.language)]
        while left and len(chosen) < count:
            chosen.append(max(left, key=says))
            left.remove(chosen[-1])
        return [sentences[n] for n in sorted(chosen)] if len(chosen) == count else []

    def _weight(self, sentence: str) -> float:
        words = self.telling[sentence]
        return sum(self.weights[word] for word in words) / math.sqrt(len(words) + 4) if words else 0.0


def _drop_first(sections: list[Section]) -> None:
    """The first sentence, unless a heading or a list stands before it."""
    first = sections[0].blocks[0] if sections and not sections[0].starts else None
    if isinstance(first, Paragraph):
        sections[0].blocks[0] = Paragraph(sentences=first.sentences[1:])


def _weights(sentences: Sequence[Sequence[str]]) -> dict[str, float]:
    """TF-IDF within the chunk, its sentences being the documents."""
    every = [Counter(words) for words in sentences]
    holding = Counter(word for words in every for word in words)
    total = Counter(word for words in sentences for word in words)
    return {word: (1 + math.log(count)) * math.log(1 + len(sentences) / holding[word]) for word, count in total.items()}


def _topics(sentences: Sequence[str], language: str) -> dict[str, list[str]]:
    """What several sentences speak of: words that stand together between small ones. The most spoken of first, none inside another."""
    forms: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    spoken: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for sentence in sentences:
        for article, run, capital in _runs(sentence):
            key = tuple(map(bare, run))
            first = run[0] if capital else run[0][0].lower() + run[0][1:]
            shown = " ".join([first, *run[1:]])
            if article:
                shown = f"{article}{'' if article.endswith(chr(39)) else ' '}{shown}"
            forms[key][shown] += 1
            if sentence not in spoken[key]:
                spoken[key].append(sentence)
    heard = {sentence: _bare_words(sentence) for sentence in sentences}
    holding: dict[str, list[str]] = defaultdict(list)
    for sentence, words in heard.items():
        for word in dict.fromkeys(words):
            holding[word].append(sentence)
    for key in list(spoken):  # a sentence speaks of the harbour master also where others stand around the words
        spoken[key] = [sentence for sentence in holding[key[0]] if _holds(heard[sentence], key)]
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for key in sorted(spoken, key=lambda key: (-len(spoken[key]) * (len(key) + 0.5), key)):
        if len(spoken[key]) < 2 or len(spoken[key]) > max(3, len(sentences) // 2) or not taken.isdisjoint(key) or (len(key) == 1 and len(key[0]) < 4):
            continue
        taken.update(key)
        shown = max(sorted(forms[key]), key=lambda form: forms[key][form])
        found[shown] = spoken[key]
    standing = {topic: [sentence for sentence in about if stands_alone(sentence, language)] for topic, about in found.items()}
    return {topic: about for topic, about in standing.items() if about}


_ARTICLES = frozenset("the le la les l' der die das el los las".split())


def _runs(sentence: str) -> Iterator[tuple[str, list[str], bool]]:
    """The words behind each article, up to the next small one or sign: the article, the words, and whether they are a name."""
    tokens: list[str] = re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*['’]?|\d+|[^\w\s]", sentence)
    for n, token in enumerate(tokens[:-1]):
        if token.lower().replace("’", "'") not in _ARTICLES:
            continue
        run = []
        for word in tokens[n + 1 :]:
            if not (word[0].isalpha() and is_telling(bare(word))) or word.endswith(("'", "’")):
                break
            if run and run[0][0].isupper() and word[0].islower():  # a name, or a German noun, ends before a word that is written small
                break
            run.append(word)
        ended = n + 1 + len(run) < len(tokens)
        if 1 <= len(run) <= 3 and ended:
            yield token.lower().replace("’", "'"), run, run[0][0].isupper()


def _holds(words: Sequence[str], key: tuple[str, ...]) -> bool:
    return any(words[n] == key[0] and tuple(words[n : n + len(key)]) == key for n in range(len(words)))


def _bare_words(sentence: str) -> list[str]:
    return [bare(word) for word in re.findall(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*", sentence)]


def _alike(words: Set[str], others: Iterable[Set[str]]) -> float:
    return max((len(words & other) / max(1, len(words)) for other in others), default=0.0)


def _beginning(sentence: str) -> str:
    """Its first two fifths, without a small word at their end."""
    words = sentence.split()
    words = words[: max(4, len(words) * 2 // 5)]
    while len(words) > 3 and not is_telling(bare(words[-1].strip(",;:"))):
        words.pop()
    return " ".join(words).rstrip(",;:")


def _joined(sentences: Sequence[str]) -> str:
    return " ".join(sentences)


def _place(turn: Turn, order: dict[str, int]) -> int:
    return next((n for sentence, n in order.items() if turn.answered.startswith(sentence)), len(order))


def _shown(section: Section) -> str:
    """As text again."""
    blocks = ["\n".join(f"- {item}" for item in block.items) if isinstance(block, Listing) else _joined(block.sentences) for block in section.blocks]
    return "\n".join([section.heading, *blocks] if section.heading else blocks)


def _woven(*kinds: Iterator[Example]) -> Iterator[Example]:
    """One of each kind in turns."""
    left = list(kinds)
    while left:
        for kind in list(left):
            if example := next(islice(kind, 1), None):
                yield example
            else:
                left.remove(kind)
