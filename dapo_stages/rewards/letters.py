"""Option letters as they are written: one or a row of them, and at the start of a short answer.

Texts are in Unicode's NFKC form, where full-width letters and punctuation are the plain ones. White space is matched
possessively (`\s*+`) where more of it may follow, so that the time is linear in the length of any text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.offered_options import LETTERS
from dapo_stages.rewards.tags import without_markup

Letters = frozenset[str]
NONE: Letters = frozenset()
UNDECIDED = "?"  # beside the letters of "A or B"
_LETTERS = frozenset(LETTERS)

# A letter on its own: not a part of a word, name, formula or abbreviation.
OPEN = r"[\s\"'“‘(\[{<$]{0,8}"
CLOSE = r"[\"'”’)\]}>$]{0,4}"
ALONE = r"(?![A-Za-z0-9_+^=]|['’][A-Za-z]|-[A-Za-z0-9]|\.[A-Za-z](?![A-Za-z]))"
# One letter, or several without anything between them ("BD"), which are then in the order of the alphabet.
LETTER = rf"(?P<letter>(?-i:[A-J]{{2,10}})|[A-Ja-j]){ALONE}"
NAMED = r"(?:options?|choices?|answers?|letters?)"

# Words after a capital A that make it the name of an option; before any other word it is the article.
_VERBS = frozenset(
    {"is", "was", "are", "and", "or", "nor", "but", "because", "since", "as", "for", "so", "if", "fits", "matches"}
    | {"looks", "appears", "shows", "says", "describes", "states", "would", "should", "must", "can", "cannot", "has"}
    | {"will", "seems", "had", "does", "did", "not", "due", "which", "that", "then", "therefore", "with", "both"}
    | {"satisfies", "best", "corresponds", "represents", "contains"}
)
_WORD_AFTER = re.compile(r"[ \t]+([A-Za-z0-9]+)")
_NAMED_BEFORE = re.compile(rf"(?:\b{NAMED}|选项|答案|选)\s*[\"'“‘(\[]?$", re.IGNORECASE)

_BETWEEN_LETTERS = re.compile(
    r"[\s,/&;、，.。()\[\]{}$'\"“”‘’]+|和|或者?|与|以及|可能是?|选项"
    r"|\b(?:or|and|options?|either|both|maybe|perhaps|possibly|probably)\b",
    re.IGNORECASE,
)
# What may be said of letters in Chinese before the verdict: A、C的说法都正确.
SAID = r"(?:的?(?:说法|表述|描述|判断|叙述|结论|选项|两项|三项|项)?(?:都|均|显然|一定|是|也)*)"
_AND_ANOTHER = re.compile(
    rf"(?:\s*\([^()]{{1,40}}\)|{CLOSE})\s*+\(?(?:[,，、/&]|和|与|以及|及|或者?|(?P<word>\bor\b|\band\b))\s*+"
    rf"(?:(?P<also>or|and|和|或)\s*+)?(?:(?:maybe|perhaps|possibly|also|either)\s++)?(?:也?可能是?)?"
    rf"(?:{NAMED}\s++|(?:figure|graph|statement)s?\s++|选项\s*+)?[(\[]?(?P<letter>[A-J])[)\]]?"
    r"(?=\s*(?:$|[.,;:!?\n。、，/&()]|(?:or|and|are|both|all|were|do|as|fit|because|since|while|but)\b"
    r"|[和或都均是之正错不选项符的描两三]|中(?!的)|与)"
    r"|(?(word)\s+[a-z]|(?(also)\s+[a-z]|$)))",
    re.IGNORECASE,
)
# Letters of which something is said next: "B and C are right".
ROW = (
    rf"(?P<row>{LETTER}(?:{CLOSE}\s*+(?:[,，、/&]\s*+(?:(?:and|or)\b|[和或])?|(?:and|or)\b|和|与|以及|及|或者?)\s*+"
    r"(?:(?:options?|choices?)\s++|选项\s*+)?[(\[]?(?-i:[A-J])(?![A-Za-z0-9])){0,9}+)"
)
# Options with their texts: "A. red B. green", "(A) 10 or (B) 12".
WITH_TEXT = re.compile(r"(?:^|(?<=[\s,;，、(]))\(?([A-J])[.):、](?=\s*[^\s.,)])(?!\s*[A-J](?![A-Za-z]))")
# One option whose text names others: "D. Both A and B", "C. A or B", "D (both A and B)", "D. A和B都对".
_ABOUT_OTHERS = re.compile(
    r"""\(?[A-J](?:
        \)?[.):]\)?\s*(?:(?:both|either|neither|none|all|only|options?|choices?)\b|(?<=\s)\(?[A-J](?![A-Za-z.]))
        |[).]?,?\s*\(?(?:both|either|neither|none|all)\b
        |[.、]\s*[A-J][^A-J，。\n]{1,3}[A-J][^A-J，。\n]{0,3}[都均两]
        |、[^，。\n]{1,12}都对
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_INITIALS = re.compile(r"[A-Z]\.\s*[A-Z]\.\s*[A-Z][a-z]")  # of a person
_ASIDE = re.compile(r"(?<!\s)\s*+\([^()]*(?:\bnot\b|incorrect|wrong|false|错|不)[^()]*\)\s*$", re.IGNORECASE)
_OR_LETTERS = re.compile(r"\s*+(?:,\s*+)?(?:\bor\b|或者?|也?可能)")
_EITHER = re.compile(r"\b(?:or|either|maybe|perhaps|possibly|probably)\b|或|可能", re.IGNORECASE)
_PREDICATE = re.compile(
    rf"{CLOSE}\s*(?:(?!(?:because|since|as|for|but|while|which|so|when|if|in|on|at|with|together|only|both|and|or)\b)"
    r"[a-z]+\b|[都均正错不])"
)
_LEAD = re.compile(
    rf"{OPEN}(?:(?:both|either)\s++)?(?:(?:the\s+)?(?:correct\s+|final\s+)?(?:{NAMED}|选项|答案|选)\s*+(?:is|are|是|为)?"
    rf"\s*+(?::\s*+)?)?(?:(?:both|either)\s++)?{OPEN}{LETTER}",
    re.IGNORECASE,
)
_RULED_OUT_AFTER = re.compile(
    rf"{CLOSE}\s*+{SAID}(?:"
    r"(?:(?:is|was|are|were|seems?|would\s+be|must\s+be|can\s+be)\s++(?:both\s+|all\s+|also\s+|clearly\s+|definitely\s+)?"
    r"(?:wrong|incorrect|false|not|out|too|unlikely|impossible|excluded|eliminated|ruled)\b)"
    r"|(?:isn|wasn|aren|doesn|don|can|couldn|won|wouldn)['’]t\b|(?:cannot|does\s+not|do\s+not|fails?|breaks?|lacks?)\b"
    r"|would\s+(?:need|require|mean|give|make|have)\b|would\s+(?:only\s+)?be\b[^.;\n]{0,40}\bif\b"
    r"|错|不正确|不对|不符|不成立|有误|与[^，。\n]{1,6}(?:不符|相反|不一致))",
    re.IGNORECASE,
)


def run_of(text: str, match: re.Match[str]) -> tuple[Letters, int]:
    """The letters in a row that begin with a match of LETTER, and where they end: B, C in "B and C are right".

    No letters for a word in capitals (`BAD`).
    """
    if (row := match.groupdict().get("row")) is not None:
        found = "".join(re.findall(r"(?<![A-Za-z])(?:[A-J]+|[a-j])(?![A-Za-z])", row)).upper()
        return (_all(found, row) if len(found) == len(set(found)) else NONE), match.end("row")
    written, end = match["letter"], match.end("letter")
    if len(written) > 1:
        either = {UNDECIDED} if _OR_LETTERS.match(text, end) else set()
        return (frozenset({*written, *either}) if list(written) == sorted(set(written)) else NONE), end
    letters, start = {written.upper()}, end
    while len(letters) < len(_LETTERS) and (other := _AND_ANOTHER.match(text, end)) is not None:
        letters.add(other["letter"].upper())
        end = other.end("letter")
    if len(letters) > 1 and match.start() < match.start("letter") and _PREDICATE.match(text, end):
        return frozenset(written.upper()), match.end("letter")  # the others are those of the next clause
    return _all(letters, text[start:end]), end


def _all(letters: Iterable[str], said: str) -> Letters:
    """Letters in a row, with UNDECIDED if it is one or the other."""
    found = frozenset(letters)
    return found | {UNDECIDED} if len(found) > 1 and _EITHER.search(said) else found


def letter_set(text: str) -> Letters | None:
    """Several options that a short answer names, all of them meant: `A, C`, `AC`, `A and C`, `['A', 'C']`, `A、C`.

    None for a single letter and for everything else: `A or C` is no choice, and letters in a row count in the order of
    the alphabet only (`AC`, not `CAB`).
    """
    plain = without_markup(text).strip()
    if _ABOUT_OTHERS.match(plain):
        return None
    if re.fullmatch(r"[A-J]{2,10}", plain):
        return frozenset(plain) if list(plain) == sorted(set(plain)) else None
    pieces = {piece for piece in _BETWEEN_LETTERS.split(plain) if piece}
    return frozenset(pieces) if len(pieces) > 1 and pieces <= _LETTERS and not _EITHER.search(plain) else None


def letters_in(solution: str) -> Letters:
    """The letters of a solution that is one or a set of them; empty for any other."""
    return frozenset(solution) if solution in _LETTERS else letter_set(nfkc(solution)) or NONE


def only_letters(content: str) -> Letters:
    """The letters of a short answer that only consists of different ones: "A or B", "选项 A 和 B"; else empty."""
    plain = _ASIDE.sub("", without_markup(content)).strip()
    pieces = {piece.upper() for piece in _BETWEEN_LETTERS.split(plain) if piece}
    if len(pieces) < 2 or not pieces <= _LETTERS or _ABOUT_OTHERS.match(plain):
        return NONE
    return _all(pieces, plain)


def several(content: str) -> Letters:
    """The same, also of options with their texts: "A. red, C. blue". A list of all is no choice of any."""
    if letters := only_letters(content):
        return letters
    plain = without_markup(content).strip()
    if _ABOUT_OTHERS.match(plain) or not WITH_TEXT.match(plain):
        return NONE
    named = frozenset(WITH_TEXT.findall(plain))
    if len(named) > 2 and sorted(named) == list(LETTERS[: len(named)]):
        return named | {UNDECIDED}
    return _all(named, plain) if len(named) > 1 else NONE


def leading(content: str) -> Letters:
    """The letters that a short answer begins with: `B`, `(b)`, `B. green`, `Option B`, `B 绿色`, `A and C are`."""
    content = _ASIDE.sub("", without_markup(content)).strip()
    match = _LEAD.match(content)
    if match is None or _INITIALS.match(content):
        return NONE
    letters, end = run_of(content, match)
    if _ABOUT_OTHERS.match(content):
        return frozenset(content.lstrip("(")[0].upper())
    if is_ruled_out_after(content, end):
        return NONE
    if len(letters) != 1:
        return letters
    rest = re.sub(rf"^{CLOSE}", "", content[end:])
    enclosed = rest != content[end:]
    if not rest.strip() or rest[0] in ".,:;!?、。-–—)" or enclosed or "\u4e00" <= rest[0] <= "\u9fff":
        chosen = True
    else:
        follows = rest.lstrip()[0]
        names_text = follows.isalnum() or follows in "([:." or re.match(r"\s*[-–—]\s*[A-Za-z]{2}", rest) is not None
        chosen = rest[0].isspace() and match["letter"].isupper() and names_text
    return letters if chosen and (enclosed or not is_word(content, match.start("letter"))) else NONE


def is_ruled_out_after(text: str, end: int) -> bool:
    """Whether what follows the letters that end here says that they are wrong: "B is wrong", "C does not fit"."""
    return _RULED_OUT_AFTER.match(text, end) is not None


def is_word(text: str, at: int) -> bool:
    """Whether the capital A or I at `at` is the article or the pronoun, not the name of an option."""
    letter, before, after = text[at], text[max(0, at - 24) : at], text[at + 1 : at + 25]
    if letter not in "AI" or _NAMED_BEFORE.search(before) or re.match(r"[)\]}\"”]", after):
        return False
    word = _WORD_AFTER.match(after)
    if letter == "A":
        return word is not None and word[1].lower() not in _VERBS
    begins_line = not before.rpartition("\n")[2].strip(" \t([:：-")
    return not (begins_line and re.match(r"\s*(?:$|[.):、])", after))
