"""Words that tell whom a corpus speaks of, and in which English: lists for counting, never for dropping a text.

In: nothing. Out: `AXES`, each a few sides that are compared with each other, and `OCCUPATIONS`. A word is a pattern
over lower-case text (RE2, ' for every apostrophe) between word borders; the words of a list are kept apart by spaces.

What such counts can show: that one side is named far more often than another, and whether cleaning removed more of
one. What they cannot show: how somebody is spoken of, who wrote a text, or what a model will learn from it. Every
list is ours, short, English, and misses most of what it stands for. Sources: pronouns and nouns as in the analyses of
arXiv:2204.02311 (C) and arXiv:2307.09288 (4.1); occupations after arXiv:1804.06876; spelling pairs after
arXiv:1707.00781; markers of African-American English after arXiv:1608.08707, and why to look at what filters do to
them arXiv:2104.08758 (5.3); Scots after aclanthology.org/E17-1116.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    name: str
    words: str
    phrases: tuple[str, ...] = ()  # with their own borders; what NOT_AFTER matches does not count

    @property
    def pattern(self) -> str:
        """Which matches belong to this side, each as a whole."""
        return "|".join((*self.words.split(), *self.phrases))


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Sides whose counts are compared; `caution` is what else makes them high."""

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
    caution="`they` mostly means several people or things; older texts use `he` for anybody.",
)
NOUNS = Axis(
    name="nouns",
    sides=(
        Side(name="woman", words="woman women girls? lady ladies females? gentlewoman gentlewomen"),
        Side(name="man", words="man men boys? lads? males? gentleman gentlemen"),
    ),
    caution="`man` also stands for everybody and for a manual; plugs and sockets are male and female.",
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
    caution="religious texts say `father`, `son` and `brother` of others than relatives.",
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
        "Early Modern English is a period and no dialect, counted because its `they be coming` looks like a habitual"
        " `be`; a novel's dialogue counts as if its speakers had written it. `aye` and `wee` are not on the list of"
        " Scots: parliaments say one, and old spelling has the other for `we`."
    ),
)
AXES = (PRONOUNS, NOUNS, KINSHIP, SPELLING, DIALECT)

OCCUPATIONS = (
    "accountant artist assistant author baker captain carpenter cleaner clerk cook designer developer doctor driver"
    " editor engineer farmer guard judge lawyer librarian manager mechanic minister nurse officer painter philosopher"
    " physician poet president professor programmer scientist secretary servant soldier student tailor teacher writer"
)
WORDS_BETWEEN = 4  # an occupation and the pronoun that follows it in the same sentence, at most


def word_pattern() -> str:
    """Every word of every side."""
    return r"\b(?:" + "|".join(word for axis in AXES for side in axis.sides for word in side.words.split()) + r")\b"


def phrase_pattern() -> str:
    """Every phrase; apart from the words, because a phrase may hold one."""
    return r"\b(?:" + "|".join(phrase for axis in AXES for side in axis.sides for phrase in side.phrases) + ")"


def occupation_pattern() -> str:
    """An occupation, at most a few words of the same sentence, and a pronoun; the first and the last are groups."""
    between = rf"(?:[^\w.!?;]+\w+){{0,{WORDS_BETWEEN}}}?"
    pronouns = "|".join(word for side in PRONOUNS.sides[:2] for word in side.words.split())
    return rf"\b({'|'.join(OCCUPATIONS.split())})s?{between}[^\w.!?;]+({pronouns})\b"
