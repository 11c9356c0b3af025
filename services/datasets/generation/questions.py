"""What a sentence answers: questions put to it by patterns of English and French."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

CLAUSE = 110
"""Characters of a clause that a question may repeat."""
SUBJECT = 8
"""Words that a subject may have."""

_MONTHS = (
    "January|February|March|April|May|June|July|August|September|October|November|December"
    "|janvier|février|mars|avril|mai|juin|juillet|août|septembre|octobre|novembre|décembre"
)
_DATE = rf"(?:(?:\d{{1,2}}(?:er)? )?(?:{_MONTHS})(?: \d{{1,2}},?)? )?(?:1[0-9]|20)\d{{2}}"
_NUMBER_EN = r"(?:\d[\d.,]*|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|sixty|a hundred)"
_NUMBER_FR = (
    r"(?:\d[\d.,\u202f\u00a0]*(?: \d{3})*|deux|trois|quatre|cinq|six|sept|huit|neuf|dix|onze|douze|quinze|vingt|trente|quarante|cinquante|soixante|cent)"
)
_ABOUT_EN = r"(?:(?:about|around|nearly|almost|over|more than|less than|at least|at most|up to|exactly|only|some) )?"
_ABOUT_FR = r"(?:(?:environ|près de|presque|plus de|moins de|au moins|au plus|jusqu'à|exactement|seulement) )?"
_BUILT = r"(?:[a-z]+ed|built|begun|held|written|laid|sold|bought|won|lost|born|made|cut|drawn|given|taken|sunk|sent|set up|shut down)"

_UNFIT = {
    "en": "it this these those they he she we you i there here what who which that such one some many most another other others both if when whenever while as since although though "
    "because however but and or so then also in on at for after before during by with from to under over until unless within without between among despite instead thus therefore "
    "otherwise moreover furthermore finally first second third next nothing everything everyone nobody its their his her not no only even never always please note see where how why "
    "once now today let more fewer several few".split(),
    "fr": "il elle ils elles on nous vous je ce c cela ça ceci celui celle ceux celles cet cette ces y en si quand lorsque lorsqu comme puisque bien mais et ou or donc car ni ainsi alors "
    "aussi cependant toutefois dans sur sous pour par avec sans avant après pendant durant depuis dès chez entre vers selon malgré outre grâce afin lors à au aux son sa ses leur leurs "
    "voir tel telle tels telles qui que quoi dont où d certains certaines plusieurs quelques beaucoup d'autres d'abord ensuite enfin puis rien tout personne seul seule notamment "
    "aucun aucune ne n".split(),
}
_CLAUSE = {
    "en": frozenset(
        "that which who whom whose when where while because if unless until and but so then is are was were be has have had must can may should will cannot need does do did not also only".split()
    ),
    "fr": frozenset("qui que qu dont où quand lorsque si parce car mais et puis est sont était a ont avait doit peut".split()),
}
_DETERMINERS = {
    "en": frozenset("the a an each every all its their his her our".split()),
    "fr": frozenset("le la les l un une des du chaque son sa ses leur leurs".split()),
}
_BEFORE_DETERMINER = {
    "en": frozenset("of in at for on to with from by under over between near inside all".split()),
    "fr": frozenset("de à dans pour sur avec par sous entre vers chez en tous toutes".split()),
}


class Asked(NamedTuple):
    rank: int
    """The lower, the more is asked."""
    question: str


Build = Callable[["_Found"], str]


class _Found:
    """A sentence that a pattern fits, its subject as it stands inside a sentence."""

    def __init__(self, match: re.Match[str], subject: str) -> None:
        self.s = subject
        self.of = match.group


def ask(sentence: str, language: str, *, small: frozenset[str] = frozenset(), names: frozenset[str] = frozenset()) -> Asked | None:
    """The question that the sentence answers. `small` and `names`: words that are written so in the middle of other sentences."""
    if language not in _RULES:
        return None
    for rank, (pattern, build) in enumerate(_RULES[language]):
        if match := pattern.match(sentence):
            subject = match.groupdict().get("s") or ""
            if subject and not _is_subject(subject, language):
                continue
            if question := build(_Found(match, inside(subject, language, small, names))):
                return Asked(rank, question)
    return None


def stands_alone(sentence: str, language: str) -> bool:
    """It doesn't begin with a word that points to what was said before."""
    first = re.split(r"[\s'’,]", sentence.lstrip('"“«([ '), maxsplit=1)[0].lower()
    pointing = _POINTING.get(language, frozenset())
    return first not in pointing


def inside(text: str, language: str, small: frozenset[str], names: frozenset[str] = frozenset()) -> str:
    """As it is written in the middle of a sentence: names keep their capitals."""
    first, *others = re.split(r"[\s'’]", text)
    if first.lower() in _DETERMINERS.get(language, ()):
        return text[:1].lower() + text[1:]
    named = first in names or first[1:] != first[1:].lower() or any(word[:1].isupper() for word in others)
    common = others or first.lower() in small or _COMMON.search(first)
    return text[:1].lower() + text[1:] if common and not named else text


_COMMON = re.compile(r"(?:[a-z]s|ing|ed|ic|ive|ous|able|ful|less|tion|ment|ity|ness)$")

_POINTING = {
    "en": frozenset(
        "it this these those they he she such its their his her but and or so then however also therefore thus otherwise moreover furthermore instead both finally that there here "
        "yet nor still another others".split()
    ),
    "fr": frozenset(
        "il elle ils elles ce c cela ça ceci celui celle ceux celles cet cette ces son sa ses leur leurs mais et ou or donc car ni ainsi alors aussi cependant toutefois ensuite enfin puis "
        "lui y tel telle".split()
    ),
    "de": frozenset("er sie es dies diese dieser dieses das aber und oder doch jedoch dann also deshalb daher dadurch sein seine ihr ihre dort da".split()),
    "es": frozenset("él ella ellos ellas esto este esta estos estas eso ese esa pero y o entonces además también así su sus sin embargo allí".split()),
}


def _is_subject(text: str, language: str) -> bool:
    words = [word.lower() for word in re.split(r"[\s'’]+", text) if word]
    if not words or len(words) > SUBJECT or words[0] in _UNFIT[language] or re.search(r"[,;:()]", text):
        return False
    if any(word in _CLAUSE[language] for word in words):
        return False
    return all(word not in _DETERMINERS[language] or words[n] in _BEFORE_DETERMINER[language] for n, word in enumerate(words[1:]))


_BASES = {
    "has": "have",
    "had": "have",
    "carries": "carry",
    "does": "do",
    "provides": "provide",
    "requires": "require",
    "includes": "include",
    "comprises": "comprise",
}


def _base(verb: str) -> str:
    return _BASES.get(verb, verb.removesuffix("s"))


def _does(found: _Found, verb: str = "verb") -> str:
    if found.of(verb) == "had":
        return "did"
    return "does" if found.of(verb).endswith("s") else "do"


def _definition_en(found: _Found) -> str:
    named = found.s[0].isupper() and len(found.s.split()) > 1
    who = "Who or what" if named and all(word[0].isupper() or word in ("of", "the", "and", "de") for word in found.s.split()) else "What"
    return f"{who} {found.of('be')} {found.s}?"


def _how_many_en(found: _Found) -> str:
    noun = found.of("noun")
    return f"How many {noun} {_does(found)} {found.s} {_base(found.of('verb'))}?" if noun.endswith("s") else ""


def _why_en(found: _Found) -> str:
    clause = found.of("clause")
    return f"Why is it that {clause[0].lower() + clause[1:]}?" if _is_clause(clause, "en") else ""


def _why_fr(found: _Found) -> str:
    clause = found.of("clause")
    return f"Pourquoi {clause[0].lower() + clause[1:]} ?" if _is_clause(clause, "fr") else ""


def _is_clause(clause: str, language: str) -> bool:
    """One that stands alone and begins with a common word, so that it can go on in the middle of a question."""
    first = re.split(r"[\s'’]", clause, maxsplit=1)[0].lower()
    return len(clause) <= CLAUSE and first in _DETERMINERS[language] and "," not in clause


def _elided(before: str, text: str) -> str:
    return f"{before[:-1]}'{text}" if re.match(r"[aeiouyhâàéèêëîïôûœAEIOUYHÂÀÉÈÊÎÔÛ]", text) else f"{before} {text}"


def _of_fr(text: str) -> str:
    for article, contracted in (("le ", "du "), ("les ", "des ")):
        if text.startswith(article):
            return contracted + text.removeprefix(article)
    return _elided("de", text)


def _to_fr(text: str) -> str:
    for article, contracted in (("le ", "au "), ("les ", "aux ")):
        if text.startswith(article):
            return contracted + text.removeprefix(article)
    return f"à {text}"


def _definition_fr(found: _Found) -> str:
    match found.of("be"):
        case "est":
            return f"Qu'est-ce {_elided('que', found.s)} ?"
        case "sont":
            return f"Que sont {found.s} ?"
        case be:
            return f"Qu'{be} {found.s} ?"


def _when_fr(found: _Found) -> str:
    participle = found.of("participle")
    plural, feminine = participle.endswith("s"), participle.rstrip("s").endswith("ée")
    if plural != (found.of("have") == "ont"):
        return ""
    pronoun = ("elle" if feminine else "il") + ("s" if plural else "")
    return f"Quand {found.s} {'ont' if plural else 'a-t'}-{pronoun} été {participle} ?"


def _how_many_fr(found: _Found) -> str:
    verb = {"a": "possède", "ont": "possèdent"}.get(found.of("verb"), found.of("verb"))
    return f"Combien {_elided('de', found.of('noun'))} {verb} {found.s} ?"


def about_fr(text: str) -> str:
    return f"Que dit le document à propos {_of_fr(text)} ?"


def _rules(*rules: tuple[str, Build]) -> Sequence[tuple[re.Pattern[str], Build]]:
    return [(re.compile(pattern.replace("{S}", r"(?P<s>[A-ZÀ-ÖØ-Þ][^.!?;:,]{1,70}?)")), build) for pattern, build in rules]


_MODAL_EN = r"(?P<modal>must|should|shall|has to|have to)"
_RULES: dict[str, Sequence[tuple[re.Pattern[str], Build]]] = {
    "en": _rules(
        (rf"In (?P<date>{_DATE}),? (?P<rest>[^\W\d].+)", lambda f: f"What happened in {f.of('date')}?"),
        (rf"On (?P<date>(?:\d{{1,2}} )?(?:{_MONTHS})[\d, ]*\d{{4}}),? (?P<rest>[^\W\d].+)", lambda f: f"What happened on {f.of('date')}?"),
        (rf"{{S}} (?P<be>was|were) (?P<verb>{_BUILT})(?: [^,;.]{{1,50}})? (?:in|on|since) {_DATE}\b", lambda f: f"When {f.of('be')} {f.s} {f.of('verb')}?"),
        (
            rf"{{S}} (?P<verb>takes?|lasts?) {_ABOUT_EN}{_NUMBER_EN}[ -](?:seconds?|minutes?|hours?|days?|weeks?|months?|years?)",
            lambda f: f"How long {_does(f)} {f.s} {_base(f.of('verb'))}?",
        ),
        (rf"{{S}} (?P<verb>weighs?|costs?) {_ABOUT_EN}\W?{_NUMBER_EN}", lambda f: f"How much {_does(f)} {f.s} {_base(f.of('verb'))}?"),
        (
            rf"{{S}} (?P<verb>has|have|had|contains?|includes?|holds?|employs?|carries|carry|needs?|requires?|offers?|serves?) {_ABOUT_EN}{_NUMBER_EN} (?P<noun>[a-z]+)\b",
            _how_many_en,
        ),
        (r"{S} (?P<be>is|are|was|were) (?:a|an|one of|any|the) ", _definition_en),
        (r"{S} (?:means|refers to|denotes|stands for) ", lambda f: f"What is meant by {f.s}?"),
        (r"{S} (?P<verb>consists?) of ", lambda f: f"What {_does(f)} {f.s} consist of?"),
        (r"{S} (?P<be>is|are) (?:called|known as) ", lambda f: f"What {f.of('be')} {f.s} called?"),
        (r"{S} (?P<be>is|are|was|were) used (?:to|for|in|as) ", lambda f: f"What {f.of('be')} {f.s} used for?"),
        (r"{S} (?P<be>is|are) (?:located|situated) ", lambda f: f"Where {f.of('be')} {f.s}?"),
        (r"{S} (?P<verb>depends?) on ", lambda f: f"What {_does(f)} {f.s} depend on?"),
        (r"{S} (?P<be>is|are) caused by ", lambda f: f"What causes {f.s}?"),
        (r"(?P<clause>[A-Z][^.;:]{10,}?),? because ", _why_en),
        (rf"{{S}} {_MODAL_EN} not be ", lambda f: f"What rule applies to {f.s}?"),
        (rf"{{S}} {_MODAL_EN} be ", lambda f: f"What rule applies to {f.s}?"),
        (r"{S} (?:must|should|shall) not ", lambda f: f"What must {f.s} not do?"),
        (r"{S} (?P<modal>must|should|shall) ", lambda f: f"What {f.of('modal')} {f.s} do?"),
        (r"{S} (?:cannot|can not|may not) (?!be)", lambda f: f"What can {f.s} not do?"),
        (r"{S} (?P<modal>can|may) (?!be|not)", lambda f: f"What {f.of('modal')} {f.s} do?"),
        (
            r"{S} (?P<verb>contains?|includes?|comprises?|allows?|enables?|prevents?|provides?|requires?|protects?|measures?|controls?|covers?|describes?|stores?|shows?) "
            r"(?!that|to|on|under|in|with|and|for|by|from)",
            lambda f: f"What {_does(f)} {f.s} {_base(f.of('verb'))}?",
        ),
        (rf"{{S}} (?P<verb>[a-z]+[^s\W]s) (?:an?|the|its|their|each|every|all|no|how|whether|{_NUMBER_EN})\b", lambda f: f"What does {f.s} do?"),
        (
            r"(?P<s>(?!Each|Every|An? |One|No )[A-Z][a-z]+(?: [a-z]+){0,2}s) (?P<verb>(?!of|in|on|at|for|with|from|and|or|to|near|inside|by|as|is|are|was|were|has|have|had|will|can|may|when|if|because|while|that|which|who|where|since|until|than|so|but|before|after|during|into|over|under|through|not)[a-z]+) (?:an?|the|its|their|each)\b",
            lambda f: f"What do {f.s} do?",
        ),
        (r"{S} (?:is|are|was|were|has|have|had|will|can|may|cannot|does|do) ", lambda f: f"What does the document say about {f.s}?"),
    ),
    "fr": _rules(
        (rf"En (?P<date>{_DATE}),? (?P<rest>[^\W\d].+)", lambda f: f"Que s'est-il passé en {f.of('date')} ?"),
        (rf"Le (?P<date>\d{{1,2}}(?:er)? (?:{_MONTHS}) \d{{4}}),? (?P<rest>[^\W\d].+)", lambda f: f"Que s'est-il passé le {f.of('date')} ?"),
        (rf"{{S}} (?P<have>a|ont) été (?P<participle>[a-zà-ÿ]+ée?s?)(?: [^,;.]{{1,50}})? (?:en|le|depuis) {_DATE}\b", _when_fr),
        (rf"{{S}} (?P<verb>durent?) {_ABOUT_FR}(?:{_NUMBER_FR}|une?) ", lambda f: f"Combien de temps {f.of('verb')} {f.s} ?"),
        (rf"{{S}} (?P<verb>pèsent|pèse|coûtent|coûte|mesurent|mesure) {_ABOUT_FR}{_NUMBER_FR}", lambda f: f"Combien {f.of('verb')} {f.s} ?"),
        (
            rf"{{S}} (?P<verb>comptent|compte|contiennent|contient|comprennent|comprend|possèdent|possède|emploient|emploie|abritent|abrite|accueillent|accueille|reçoivent|reçoit|ont|a)"
            rf" {_ABOUT_FR}{_NUMBER_FR} (?P<noun>(?!pour)[a-zà-ÿ]+[sx])\b",
            _how_many_fr,
        ),
        (r"{S} (?P<be>est|sont|était|étaient) (?:une?|des|les?|la|l['’]une?|l['’]ensemble) ", _definition_fr),
        (r"{S} (?P<verb>consistent|consiste) (?:en|à) ", lambda f: f"En quoi {f.of('verb')} {f.s} ?"),
        (r"{S} (?P<verb>servent|sert) (?:à|de) ", lambda f: f"À quoi {f.of('verb')} {f.s} ?"),
        (r"{S} (?P<verb>dépendent|dépend) (?:de|du|des|d['’])", lambda f: f"De quoi {f.of('verb')} {f.s} ?"),
        (r"{S} se (?P<verb>composent|compose) (?:de|du|des|d['’])", lambda f: f"De quoi se {f.of('verb')} {f.s} ?"),
        (r"{S} (?P<verb>reposent|repose) sur ", lambda f: f"Sur quoi {f.of('verb')} {f.s} ?"),
        (r"{S} se (?P<verb>trouvent|trouve|situent|situe) ", lambda f: f"Où se {f.of('verb')} {f.s} ?"),
        (r"{S} (?P<be>est|sont) (?:situé|installé|implanté)e?s? ", lambda f: f"Où se {'trouve' if f.of('be') == 'est' else 'trouvent'} {f.s} ?"),
        (r"{S} s['’](?P<verb>appellent|appelle) ", lambda f: f"Comment s'{f.of('verb')} {f.s} ?"),
        (r"(?P<clause>[A-ZÀ-Þ][^.;:]{10,}?),? (?:parce qu[e'’]|car|puisqu[e'’])", _why_fr),
        (r"{S} (?:doit|doivent) (?:toujours |impérativement )?être ", lambda f: f"Quelle règle s'applique {_to_fr(f.s)} ?"),
        (r"{S} ne (?P<modal>doit|doivent|peut|peuvent) pas être ", lambda f: f"Quelle règle s'applique {_to_fr(f.s)} ?"),
        (r"{S} ne (?P<modal>doit|doivent|peut|peuvent) (?:pas|jamais) ", lambda f: f"Que ne {f.of('modal')} pas faire {f.s} ?"),
        (r"{S} (?P<modal>doit|doivent|peut|peuvent) (?!être)", lambda f: f"Que {f.of('modal')} faire {f.s} ?"),
        (
            r"{S} (?P<verb>désignent|désigne|signifient|signifie|contiennent|contient|comprennent|comprend|permettent|permet|protègent|protège|mesurent|mesure|indiquent|indique|exigent"
            r"|exige|prévoient|prévoit|garantissent|garantit|imposent|impose|fournissent|fournit|produisent|produit|contrôlent|contrôle|couvrent|couvre|regroupent|regroupe|assurent|assure) "
            r"(?!que|qu['’])",
            lambda f: f"Que {f.of('verb')} {f.s} ?",
        ),
        (
            r"{S} (?P<verb>[a-zà-ÿ]{2,}(?:e|it|d|t)) (?:les?|la|l['’]|une?|des|du|tou[ts]) ?",
            lambda f: f"Que fait {f.s} ?" if 2 <= len(re.split(r"[\s'’]", f.s)) <= 3 else "",
        ),
        (r"{S} (?:est|sont|était|étaient|a|ont|avait|n['’]est|ne) ", lambda f: about_fr(f.s)),
    ),
}
