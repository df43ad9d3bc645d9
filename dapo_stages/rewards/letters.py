"""Option letters in a text without tags: at the start of a short answer, stated, or standing alone.

Texts are in Unicode's NFKC form, where full-width letters and punctuation are the plain ones. White space is matched
possessively (`\s*+`) where more of it may follow, so that the time is linear in the length of any text.
"""

from __future__ import annotations

import re

from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.tags import open_text_commands, unboxed, without_markup

_BOLD = re.compile(r"(?:\*\*|__)([^*\n]{1,200}?)(?:\*\*|__)")

# A letter on its own: not a part of a word, name, formula or abbreviation.
_OPEN = r"[\s\"'“‘(\[{<$]{0,8}"
_CLOSE = r"[\"'”’)\]}>$]{0,4}"
_ALONE = r"(?![A-Za-z0-9_+^=]|['’][A-Za-z]|-[A-Za-z0-9]|\.[A-Za-z](?![A-Za-z]))"
_LETTER = rf"(?P<letter>[A-Ja-j]){_ALONE}"
_LETTERS = frozenset("ABCDEFGHIJ")
_NAMED = r"(?:option|choice|answer|letter)"

# Words after a capital A that make it the name of an option; before any other word it is the article.
_VERBS = frozenset(
    {"is", "was", "are", "and", "or", "nor", "but", "because", "since", "as", "for", "so", "if", "fits", "matches"}
    | {"looks", "appears", "shows", "says", "describes", "states", "would", "should", "must", "can", "cannot", "has"}
    | {"will", "seems", "had", "does", "did", "not", "due", "which", "that", "then", "therefore", "with"}
)
_WORD_AFTER = re.compile(r"[ \t]+([A-Za-z0-9]+)")
_NAMED_BEFORE = re.compile(rf"(?:\b{_NAMED}|选项|答案|选)\s*[\"'“‘(\[]?$", re.IGNORECASE)

_BETWEEN_LETTERS = re.compile(
    r"[\s,/&;、，.。()\[\]{}$'\"“”‘’]+|和|或者?|与|以及|\bor\b|\band\b|\boption\b|选项", re.IGNORECASE
)
_AND_ANOTHER = re.compile(
    rf"{_CLOSE}\s*(?:,|/|&|、|和|或者|或|与|\bor\b|\band\b)\s*(?:or\s+)?(?:(?:option|选项)\s*)?[(\[]?(?P<other>[A-J])[)\]]?"
    r"(?=\s*(?:$|[.,;!\n。、/&]|or\b|and\b|和|或))",
    re.IGNORECASE,
)

_HEDGES = (
    r"(?:(?:therefore|thus|then|hence|clearly|definitely|probably|likely|most|simply|just|indeed|the"
    rf"|{_NAMED})(?:\s*+:)?\s++){{0,4}}"
)
_SO = r"(?:therefore|thus|hence|so|consequently|所以|因此|故)"
_RIGHT = r"(?:correct|best|accurate|answer|true|right(?!\s+(?:of|to|above|below|behind|in|next|before|after)\b))"
_STATEMENTS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:answer|(?:correct|right|best|my|final|chosen)\s+(?:option|choice|letter|one))"
        rf"(?:\s+(?:to|for)\s+(?:the|this|that)\s+(?:question|problem))?\s*"
        rf"(?:is|was|should\s+be|would\s+be|must\s+be|will\s+be|has\s+to\s+be|:|=|-|–|—)\s*+(?::\s*+)?"
        rf"{_HEDGES}{_OPEN}{_LETTER}",
        rf"(?<![A-Za-z0-9'’.\-])(?<!not )[(\[]?{_LETTER}[)\].]?\s+(?:is|was|seems|looks|appears|must\s+be)\s+"
        rf"(?:to\s+be\s+)?(?:clearly\s+|definitely\s+|therefore\s+|indeed\s+)?(?:the\s+)?(?:only\s+|most\s+)?{_RIGHT}\b",
        rf"(?<![A-Za-z0-9'’.\-])(?<!not )[(\[]?{_LETTER}[)\].]?\s+"
        r"(?:is\s+(?:clearly\s+)?(?:the\s+only|what|the\s+one)\b|(?:clearly\s+|best\s+)?(?:fits|matches|works)\b)",
        r"\bI(?:\s+will|['’]ll|\s+would|['’]d)?\s+(?:answer|say|vote\s+for|go\s+for)\s+(?:with\s+)?"
        rf"(?:{_NAMED}\s+)?:?\s*+{_OPEN}{_LETTER}",
        rf"\b(?:it|this|that)\s+(?:must|has\s+to|can\s+only)\s+be\s+(?:{_NAMED}\s+)?{_OPEN}{_LETTER}",
        rf"\b{_SO}\s*[,:，]?\s*+(?:it\s+(?:is|must\s+be)\s+|it['’]s\s+)?{_NAMED}\s*+:?\s*+{_OPEN}{_LETTER}",
        r"(?<!not )(?<!n't )(?<!n’t )(?<!never )(?<!may )(?<!might )(?<!could )"
        rf"\b(?:choose|chose|pick|picked|select|selected|go\s+with|going\s+with"
        rf"|opt\s+for)\s++(?:the\s++)?(?:{_NAMED}\s*+)?:?\s*+{_OPEN}{_LETTER}",
        rf"【答案】\s*+{_OPEN}{_LETTER}",
        r"(?:答案|正确的?选项|正确的是|最佳选项)\s*+(?:应该|应当|应|就|显然|一定|可能)?\s*+(?:是|为|选择|选|:|=){0,3}\s*+"
        rf"(?::\s*+)?(?:选项|选)?\s*+{_OPEN}{_LETTER}",
        r"(?<!不)(?<!不能)(?<!不应)(?<!不应该)(?<!不该)(?<!不会)(?<!不可)(?<!别)(?<!勿)选(?!项)(?:择|的是|了|为)?\s*+(?::\s*+)?"
        rf"(?:选项|答案)?\s*+{_OPEN}{_LETTER}",
        rf"(?<![A-Za-z0-9]){_LETTER}{_CLOSE}\s*+(?:选项|项)?\s*+(?:才是|是|为)?\s*+最?(?:正确|对的|答案)",
    )
)
_SENTENCE_ENDS = re.compile(rf"{_CLOSE}\s*(?:$|[\n.,;:!?。])")
_LEAD = re.compile(
    rf"{_OPEN}(?:(?:the\s+)?(?:correct\s+|final\s+)?(?:{_NAMED}|选项|答案|选)\s*+(?:is|是|为)?\s*+(?::\s*+)?)?"
    rf"{_OPEN}{_LETTER}",
    re.IGNORECASE,
)
_LONE = re.compile(
    r"(?<![A-Za-z0-9_'’°\\+^\-])(?<![A-Za-z]\.)(?P<letter>[A-J])(?!\()"
    + _ALONE
    + r"|(?<![A-Za-z0-9])[(\[](?P<bracketed>[a-j])[)\]]"
)
_RULED_OUT_BEFORE = re.compile(
    rf"(?:\bnot|n['’]t\s+be|\bneither|\bnor|\bexcept|不是|不能?选|不应该?选|不该选|不选择|排除|而非)"
    rf"\s*(?:{_NAMED}\s*|选项\s*)?[\"'“‘(\[]?$",
    re.IGNORECASE,
)
_RULED_OUT_AFTER = re.compile(
    rf"{_CLOSE}\s*+(?:(?:is|was|are|seems|would\s+be|must\s+be|can\s+be)\s+(?:clearly\s+|definitely\s+)?(?:wrong|incorrect|false|not|out)\b"
    r"|(?:is|was)n['’]t\b|(?:选项|项)?\s*+(?:是)?(?:错|不正确|不对|不符))",
    re.IGNORECASE,
)


# A letter after these is part of a name, or with a number before it a unit: "Angle B", "Plan B", "3 A".
_NAME_BEFORE = re.compile(
    r"(?:\b(?:angle|point|plan|figure|line|vitamin|hepatitis|team|player|graph|group|type|class|row|column|box|vertex|side|"
    r"segment|triangle|circle|diagram|panel|part|section|step|room|route)|∠|△|\d|图|点|角)\s+$",
    re.IGNORECASE,
)
_IF_BEFORE = re.compile(
    r"(?:\b(?:if|suppose|assuming|whether|unless)|如果|假如|若|假设)[^.;:!?\n。；]{0,60}$", re.IGNORECASE
)
# A line about one option: "- B: correct", "B. green - yes", "(B) ✓".
_OPTION_LINE = re.compile(
    r"^[ \t]*(?:[-*•][ \t]*)?[(\[]?(?P<letter>[A-J])[)\].:、][ \t]*(?P<said>[^\n]*)$", re.MULTILINE
)
# Yes, no, true and false are options themselves; they are verdicts only after what they judge.
_VERDICT = re.compile(
    r"(?:^|[-–—:,，(（]\s*|\bis\s+)"
    r"(?:(?P<right>correct|✓|✔|✅|√|正确)|(?:incorrect|wrong|not\s+correct|✗|✘|❌|×|错误?|不正确|不对))[.)）!。]*$"
    r"|[-–—:(（]\s*(?:(?P<yes>yes|true)|no|false)[.)）!。]*$",
    re.IGNORECASE,
)
_EITHER = re.compile(r"\bor\b|或", re.IGNORECASE)


def letter_set(text: str) -> frozenset[str] | None:
    """Several options that a short answer names, all of them meant: `A, C`, `AC`, `A and C`, `['A', 'C']`, `A、C`.

    None for a single letter and for everything else: `A or C` is no choice, and letters in a row count in the order of
    the alphabet only (`AC`, not `CAB`).
    """
    plain = without_markup(text).strip()
    if re.fullmatch(r"[A-J]{2,10}", plain):
        return frozenset(plain) if list(plain) == sorted(set(plain)) else None
    pieces = _pieces(plain)
    return frozenset(pieces) if len(pieces) > 1 and pieces <= _LETTERS and not _EITHER.search(plain) else None


def letters_in(solution: str) -> frozenset[str]:
    """The letters of a solution that is one or a set of them; empty for any other."""
    return frozenset(solution) if solution in _LETTERS else letter_set(nfkc(solution)) or frozenset()


def judged(text: str) -> str | None:
    """The one option that a list of all of them calls right: "- A: incorrect", "- B: correct"."""
    said: dict[str, bool] = {}
    for line in _OPTION_LINE.finditer(without_markup(text)):
        if verdict := _VERDICT.search(line["said"].rstrip()):
            said[line["letter"]] = bool(verdict["right"] or verdict["yes"])
    right = [letter for letter, is_right in said.items() if is_right]
    return right[0] if len(said) > 1 and len(right) == 1 else None


def begun_with(text: str) -> str | None:
    """The letter of `B. The green circle …`, if no other line begins with another one, as a list of options does."""
    plain = without_markup(text).lstrip()
    first, letters = _OPTION_LINE.match(plain), {letter for letter, _ in _OPTION_LINE.findall(plain)}
    return first["letter"] if first is not None and len(letters) == 1 else None


def without_options(text: str) -> str:
    """The text without a list that only repeats the options: A. red / B. green / C. blue."""
    letters = [match["letter"] for match in _OPTION_LINE.finditer(text)]
    return _OPTION_LINE.sub("", text) if len(letters) > 1 and letters == sorted(set(letters)) else text


def names_several(content: str) -> bool:
    """Whether a short answer only consists of several different letters: "A or B", "A, C", "选项 A 和 B"."""
    pieces = {piece.upper() for piece in _pieces(without_markup(content))}
    return len(pieces) > 1 and pieces <= _LETTERS


def _pieces(text: str) -> set[str]:
    return {piece for piece in _BETWEEN_LETTERS.split(text) if piece}


def leading(content: str) -> str | None:
    """The letter that a short answer begins with: `B`, `(b)`, `B. green`, `Option B`, `B 绿色`."""
    content = without_markup(content).strip()
    match = _LEAD.match(content)
    if match is None or _another(content, match.end(), match["letter"]):
        return None
    letter, rest = match["letter"], re.sub(rf"^{_CLOSE}", "", content[match.end() :])
    enclosed = rest != content[match.end() :]
    if not rest.strip() or rest[0] in ".,:;!?、。-–—)" or enclosed or "\u4e00" <= rest[0] <= "\u9fff":
        chosen = True
    else:
        follows = rest.lstrip()[0]
        names_text = follows.isalnum() or follows in "([:." or re.match(r"\s*[-–—]\s*[A-Za-z]{2}", rest) is not None
        chosen = rest[0].isspace() and letter.isupper() and names_text
    return letter.upper() if chosen and (enclosed or not _is_word(content, match.start("letter"))) else None


def stated(text: str) -> str | None:
    """The last stated answer; "" if it names several letters; None if nothing is stated."""
    plain = open_text_commands(without_markup(text))
    found: list[tuple[int, str]] = []
    for pattern in _STATEMENTS:
        for match in pattern.finditer(plain):
            start, end = match.span("letter")
            if _is_statement(plain, start, end) and not _IF_BEFORE.search(
                plain[max(0, match.start() - 80) : match.start()]
            ):
                several = _another(plain, end, match["letter"])
                found.append((start, "" if several else match["letter"].upper()))
    for start, content in unboxed(plain):
        if (letter := leading(content)) or names_several(content):
            found.append((start, letter if letter and not names_several(content) else ""))
    if found:
        return max(found)[1]
    bold = [letter for content in _BOLD.findall(text) if (letter := leading(content))]
    return bold[-1] if bold else judged(text) or begun_with(text)


def _another(text: str, end: int, letter: str) -> bool:
    """Whether a different letter is joined to the one that ends at `end`: "A or B"."""
    other = _AND_ANOTHER.match(text, end)
    return other is not None and other["other"].upper() != letter.upper()


def _is_statement(text: str, start: int, end: int) -> bool:
    """Whether it is an option's letter: not the article of "the answer is a red circle", nor the I of "I think"."""
    if text[start].islower():
        return text[end : end + 1] in (")", "]", "}") or _SENTENCE_ENDS.match(text, end) is not None
    after_colon = re.search(r"[:：]\s*$", text[max(0, start - 8) : start]) is not None
    return not (_is_word(text, start) and (after_colon or text[start] == "I"))


def lone(text: str) -> str | None:
    """The last letter that stands alone, neither a word nor ruled out by the words around it."""
    plain = without_options(open_text_commands(without_markup(text)))
    chosen: str | None = None
    for match in _LONE.finditer(plain):
        start, end = match.span("letter") if match["letter"] else match.span("bracketed")
        before = plain[max(0, start - 24) : start]
        if _NAME_BEFORE.search(before) or _RULED_OUT_BEFORE.search(before) or _RULED_OUT_AFTER.match(plain, end):
            continue
        if not _is_word(plain, start):
            chosen = plain[start].upper()
    return chosen


def _is_word(text: str, at: int) -> bool:
    """Whether the capital A or I at `at` is the article or the pronoun, not the name of an option."""
    letter, before, after = text[at], text[max(0, at - 24) : at], text[at + 1 : at + 25]
    if letter not in "AI" or _NAMED_BEFORE.search(before) or re.match(r"[)\]}\"”]", after):
        return False
    word = _WORD_AFTER.match(after)
    if letter == "A":
        return word is not None and word[1].lower() not in _VERBS
    begins_line = not before.rpartition("\n")[2].strip(" \t([:：-")
    return not (begins_line and re.match(r"\s*(?:$|\n|[.):、])", after))
