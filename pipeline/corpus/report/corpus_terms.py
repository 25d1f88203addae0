"""Word lists that count the groups of people and the varieties of English in a corpus; they never drop a document.

In: nothing. Out: `AXES`, each with a few sides that are compared with each other, and `OCCUPATIONS`. A word is a
pattern over lower-case text (RE2, ' for every apostrophe) between word boundaries; the words of a list are separated
by spaces.

Such counts can show that one side is named far more often than another, and whether cleaning removed more of one.
They cannot show how people are described, who wrote a text, or what a model will learn from it. All lists are our
own, short and English, and miss most of what they represent. Sources: pronouns and nouns as in the analyses of
arXiv:2204.02311 (C) and arXiv:2307.09288 (4.1); occupations after arXiv:1804.06876; spelling pairs after
arXiv:1707.00781; markers of African-American English after arXiv:1608.08707, and the reason to check the effect of
filters on them in arXiv:2104.08758 (5.3); Scots after aclanthology.org/E17-1116.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    name: str
    words: str
    phrases: tuple[str, ...] = ()  # with their own boundaries; matches of NOT_AFTER are not counted

    @property
    def pattern(self) -> str:
        """A pattern that fully matches the words and phrases of this side."""
        return "|".join((*self.words.split(), *self.phrases))


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Sides whose counts are compared; `caution` names other reasons for high counts."""

    name: str
    sides: tuple[Side, ...]
    caution: str


# "Would they be using it?" and "that they be using it" are standard English everywhere.
BEFORE = r"(?:[a-z']+\s+)?"
NOT_AFTER = (
    r"^(?:will|would|shall|should|can|could|may|might|must|do|did|does|don't|didn't|won't|can't|that|if|lest|let"
    r"|though|unless|until|whether|when|have|has|had|haven't|hasn't|hadn't|is|are|was|were)\s"
)

PRONOUNS = Axis(
    name="pronouns",
    sides=(
        Side(name="she", words="she her hers herself"),
        Side(name="he", words="he him his himself"),
        Side(name="they", words="they them their theirs themself themselves"),
    ),
    caution="`they` usually refers to several people or things; older texts use `he` for anyone.",
)
NOUNS = Axis(
    name="nouns",
    sides=(
        Side(name="woman", words="woman women girls? lady ladies females? gentlewoman gentlewomen"),
        Side(name="man", words="man men boys? lads? males? gentleman gentlemen"),
    ),
    caution="`man` can also mean everyone or a manual; plugs and sockets are called male and female.",
)
KINSHIP = Axis(
    name="kinship",
    sides=(
        Side(
            name="feminine",
            words="mothers? moms? mums? daughters? sisters? wife wives aunts? nieces? grandmothers? granddaughters?"
            " widows? brides?",
        ),
        Side(
            name="masculine",
            words="fathers? dads? sons? brothers? husbands? uncles? nephews? grandfathers? grandsons? widowers?"
            " bridegrooms?",
        ),
    ),
    caution="religious texts use `father`, `son` and `brother` for people who are not relatives.",
)
SPELLING = Axis(
    name="spelling",
    sides=(
        Side(
            name="British",
            words="colours? behaviours? favours? honours? labours? neighbours? flavours? harbours? rumours? centres?"
            " theatres? metres? litres? fibres? defence offence grey travell(?:ed|ing|ers?) cancell(?:ed|ing)"
            " modell(?:ed|ing) labell(?:ed|ing) analys(?:e|ed|ing) catalogues? aluminium jewellery ageing sceptical"
            " tyres? (?:organ|real|recogn|normal|general|special|initial|optim|serial)is(?:e|es|ed|ing|ation)",
        ),
        Side(
            name="American",
            words="colors? behaviors? favors? honors? labors? neighbors? flavors? harbors? rumors? centers?"
            " theaters? meters? liters? fibers? defense offense gray travel(?:ed|ing|ers?) cancel(?:ed|ing)"
            " model(?:ed|ing) label(?:ed|ing) analyz(?:e|ed|ing) catalogs? aluminum jewelry aging skeptical"
            " tires? (?:organ|real|recogn|normal|general|special|initial|optim|serial)iz(?:e|es|ed|ing|ation)",
        ),
    ),
    caution="names in program code are American by convention (`color`, `initialize`); Oxford spelling has -ize too.",
)
DIALECT = Axis(
    name="dialect",
    sides=(
        Side(
            name="African-American English",
            words="finna tryna talm?bout iont sholl sumn",
            phrases=(
                rf"{BEFORE}(?:he|she|they|we|you)\s+be\s+[a-z]+(?:[a-gi-z]ing\b|in')",  # but not `nothing`
                rf"{BEFORE}(?:he|she|they|we|you|i)\s+done\s+[a-z]{{2,}}ed\b",
            ),
        ),
        Side(
            name="several vernaculars",
            words=r"ain't y'all yall fixin'?\s+to",
            phrases=(r"(?:don't|can't|didn't|won't)\s+(?:nobody|nothing)\b",),
        ),
        Side(name="Scots", words="cannae dinnae didnae wisnae isnae wouldnae willnae havnae bairns? lassies? naw"),
        Side(
            name="Early Modern English",
            words="thou thee thy thine hath doth hast dost wherefore tis twas",
        ),
    ),
    caution=(
        "Early Modern English is a period, not a dialect; it is counted because its `they be coming` looks like a"
        " habitual `be`. The dialogue of a novel counts as if its speakers had written it. `aye` and `wee` are not on"
        " the list of Scots, because parliaments use the former and the latter is an old spelling of `we`."
    ),
)
AXES = (PRONOUNS, NOUNS, KINSHIP, SPELLING, DIALECT)

OCCUPATIONS = (
    "accountant artist assistant author baker captain carpenter cleaner clerk cook designer developer doctor driver"
    " editor engineer farmer guard judge lawyer librarian manager mechanic minister nurse officer painter philosopher"
    " physician poet president professor programmer scientist secretary servant soldier student tailor teacher writer"
)
WORDS_BETWEEN = 4  # at most, between an occupation and the pronoun that follows it in the same sentence


def word_pattern() -> str:
    """A pattern for every word of every side."""
    return r"\b(?:" + "|".join(word for axis in AXES for side in axis.sides for word in side.words.split()) + r")\b"


def phrase_pattern() -> str:
    """A pattern for every phrase; separate from the words, because a phrase may contain one."""
    return r"\b(?:" + "|".join(phrase for axis in AXES for side in axis.sides for phrase in side.phrases) + ")"


def occupation_pattern() -> str:
    """A pattern for an occupation, at most WORDS_BETWEEN words of the same sentence, and a pronoun. Two groups."""
    between = rf"(?:[^\w.!?;]+\w+){{0,{WORDS_BETWEEN}}}?"
    pronouns = "|".join(word for side in PRONOUNS.sides[:2] for word in side.words.split())
    return rf"\b({'|'.join(OCCUPATIONS.split())})s?{between}[^\w.!?;]+({pronouns})\b"
