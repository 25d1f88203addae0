"""Removes from extracted text, by rules, the lines that a site adds to every page.

In: text with structure (html_structure.py). Out: the text without such lines, and their number. A line is removed
only if the whole line is such a phrase, or if it is short and begins like a notice; a sentence about cookies or
copyright is kept, and so is a heading such as "Sign in". Listings are never changed. Each rule is tested with a near
miss.

Every pattern is matched at the beginning of a line of at most MAX_CHARACTERS, so the cost is linear.
"""

import re

MAX_CHARACTERS = 400  # per line; longer lines are prose
MAX_SHORT_WORDS = 10  # of a line that is only a button; DCLM's limit for "sign-in" lines
FENCE = re.compile(r"\s{0,64}(`{3,})")
MARKS = re.compile(r"^\s{0,64}(?:#{1,6} |[-*\u2022] |\d{1,6}\. |\| ?)?")
ENDS = " \t|.!:;>\u00bb\u2026\u2192\u203a-"

# The whole line, without marks, case and final punctuation, must match one of these.
BUTTONS: dict[str, tuple[str, ...]] = {
    "cookie": (
        r"(?:accept|reject|decline|allow|deny|manage|customi[sz]e)(?: (?:all|only|necessary|essential|my))*"
        r"(?: (?:cookies?|cookie (?:settings|preferences)|consent))",
        r"(?:cookie|consent|privacy) (?:settings|preferences)",
        r"(?:accept|reject|allow) all",
    ),
    "share": (
        r"(?:share|tweet|pin)(?: (?:this|it))?(?: (?:article|page|post|story|on|to|via|with|by))*"
        r"(?: (?:facebook|twitter|linkedin|pinterest|whatsapp|reddit|email|e-mail|telegram|tumblr|friends))?",
        r"click to share on [a-z]+(?: \(opens in new window\))?",
        r"copy (?:the )?link(?: to clipboard)?",
        r"follow us(?: on [a-z]+)?",
    ),
    "read_more": (
        r"(?:read|show|see|load|view|learn)(?: (?:more|less|all|full (?:article|story|post)))",
        r"continue reading",
        r"click here(?: to (?:read|see|learn|view) more)?",
    ),
    "sign_in": (
        r"(?:sign|log)[ -]?(?:in|out|up|on)(?: (?:or|/|\|) (?:sign|log)[ -]?(?:in|up)|"
        r" (?:to (?:comment|reply|continue|your account|view|vote|follow)|with (?:google|facebook|apple)))?",
        r"(?:sign|log)[ -]?in (?:or|/) (?:register|join|create (?:an )?account)",
        r"(?:forgot|lost)(?: your)? password\??",
        r"create (?:an|your) account",
        r"my account",
        r"you must be logged in to (?:post a comment|reply|comment|vote)(?: here)?",
        r"(?:leave a reply|leave a comment|post a comment)",
        r"cancel reply",
    ),
    "cart": (
        r"(?:\d{1,4} )?items? in (?:your )?(?:cart|basket|bag)",
        r"(?:your )?(?:shopping )?(?:cart|basket|bag)(?: is (?:currently )?empty| ?\(\d{1,4}\))",
        r"(?:add|added) to (?:cart|basket|bag|wish ?list|compare|favou?rites)",
        r"(?:view|go to) (?:cart|basket|bag)",
        r"proceed to checkout",
        r"continue shopping",
    ),
    "skip": (
        r"(?:skip|jump) to (?:the )?(?:main |page |primary )?(?:content|navigation|menu|search|footer)",
        r"(?:back|return|scroll) to (?:the )?top(?: of (?:the )?page)?",
        r"toggle (?:navigation|menu|search|sidebar)",
        r"(?:open|close)(?: the)? (?:menu|navigation|search)",
    ),
    "newsletter": (
        r"(?:subscribe|sign up)(?: now| here| today)?"
        r"(?: (?:to|for) (?:our|the|my) (?:\w+ )?(?:newsletter|mailing list))?(?: (?:now|here|today))?",
        r"(?:enter )?your e-?mail(?: address)?",
        r"join (?:our|the) (?:newsletter|mailing list)",
        r"unsubscribe(?: at any ?time)?",
    ),
    "advertisement": (
        r"(?:advertisements?|sponsored(?: content)?)",
        r"(?:article|story) continues below(?: advertisement)?",
    ),
    "javascript": (r"(?:please )?(?:enable|turn on|activate) javascript(?: in your browser)?",),
}
# The line must have at most this many words and begin like this.
NOTICES: dict[str, tuple[int, tuple[str, ...]]] = {
    "cookie": (
        60,
        (
            r"(?:this|our) (?:web ?)?site uses cookies\b",
            r"we (?:and our (?:\w+ ){0,2}partners )?use cookies (?:to|on|and|for|in order)\b",
            r"by (?:continuing|using|browsing|clicking)\b[^.]{0,120}\bcookies\b",
            r"we value your privacy\b",
        ),
    ),
    "copyright": (
        25,
        (
            r"(?:copyright )?(?:\u00a9|\(c\)|&copy;) ?(?:copyright )?(?:\d{4}|[^.]{1,60}\b\d{4}\b)",
            r"copyright (?:\d{4}|[^.]{1,40}\ball rights reserved)",
            r"all rights reserved\b",
        ),
    ),
    "newsletter": (
        30,
        (
            r"(?:subscribe|sign up)(?: now)? (?:to|for) (?:our|the) (?:\w+ ){0,2}newsletter\b",
            r"get (?:the|our) (?:latest|best) [^.]{1,60} (?:delivered )?(?:to|in) your inbox\b",
        ),
    ),
    "captcha": (30, (r"this site is protected by recaptcha\b",)),
    "javascript": (
        30,
        (
            r"(?:you need to|please) enable javascript\b",
            r"javascript (?:is|must be|seems to be) (?:disabled|enabled|required)\b",
            r"(?:your browser does not|this (?:site|page) requires) (?:support )?javascript\b",
        ),
    ),
}
_BUTTON = re.compile("|".join(f"(?:{p})" for patterns in BUTTONS.values() for p in patterns), re.IGNORECASE)
_NOTICES = tuple(
    (n_words, re.compile("|".join(f"(?:{p})" for p in patterns), re.IGNORECASE))
    for n_words, patterns in NOTICES.values()
)


def without_boilerplate(text: str) -> tuple[str, int]:
    """The text without its boilerplate lines, and their number; the unchanged text if there are none."""
    kept, n_removed, fence = [], 0, ""
    for line in text.split("\n"):
        if match := FENCE.match(line):
            if not fence:
                fence = match[1]
            elif len(match[1]) >= len(fence):
                fence = ""
        elif not fence and is_boilerplate(line):
            n_removed += 1
            continue
        kept.append(line)
    return ("\n".join(kept), n_removed) if n_removed else (text, 0)


def is_boilerplate(line: str) -> bool:
    if not 3 < len(line) <= MAX_CHARACTERS:
        return False
    mark = MARKS.match(line)
    phrase = line[mark.end() if mark else 0 :].strip(ENDS)
    n_words = phrase.count(" ") + 1
    if n_words <= MAX_SHORT_WORDS and _BUTTON.fullmatch(phrase) and not line.startswith("#"):
        return True
    return any(n_words <= most and pattern.match(phrase) for most, pattern in _NOTICES)
