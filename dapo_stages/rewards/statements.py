"""What a text says about its options: which one is the answer, which are ruled out, which stands alone at the end.

Texts are in Unicode's NFKC form, as in letters.py.
"""

from __future__ import annotations

import re

from dapo_stages.rewards.letters import (
    ALONE,
    CLOSE,
    LETTER,
    NAMED,
    NONE,
    OPEN,
    ROW,
    SAID,
    UNDECIDED,
    WITH_TEXT,
    Letters,
    is_ruled_out_after,
    is_word,
    leading,
    run_of,
    several,
)
from dapo_stages.rewards.offered_options import LETTERS
from dapo_stages.rewards.tags import open_text_commands, unboxed, without_markup

_BOLD = re.compile(r"(?:\*\*|__)([^*\n]{1,200}?)(?:\*\*|__)")
_HEDGES = (
    r"(?:(?:therefore|thus|then|hence|clearly|definitely|probably|likely|most|simply|just|indeed|the|both|either"
    rf"|{NAMED})(?:\s*+:)?\s++){{0,4}}"
)
_SO = r"(?:therefore|thus|hence|so|consequently|所以|因此|故)"
_RIGHT = r"(?:correct|best|accurate|answers?|true|right(?!\s+(?:of|to|above|below|behind|in|next|before|after)\b))"
_IS = r"(?:is|are|was|should\s+be|would\s+be|must\s+be|will\s+be|has\s+to\s+be|might\s+be|could\s+be|:|=|-|–|—)"
_NOT_SO = r"(?<!not )(?<!n't )(?<!n’t )(?<!never )(?<!may )(?<!might )(?<!could )"
# The answer itself.
_ANSWERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?<!incorrect )(?<!wrong )(?<!false )"
        r"\b(?:answers?|(?:correct|true|right|best|my|final|chosen)\s+(?:options?|choices?|letters?|ones?|statements?))"
        rf"(?:\s+(?:to|for)\s+(?:the|this|that)\s+(?:question|problem))?\s*{_IS}\s*+(?::\s*+)?{_HEDGES}{OPEN}{LETTER}",
        rf"\b{_SO}\s*+[,:，]?\s*+(?:it\s+(?:is|must\s+be)\s+|it['’]s\s+)?(?:option|choice|answer)\s*+:?\s*+{OPEN}{LETTER}",
        r"(?<!who )\bI(?:\s+will|['’]ll|\s+would|['’]d)?\s+(?:answer|say|vote\s+for|go\s+(?:for|with)|choose|chose"
        rf"|pick|select)\s+(?:with\s+)?(?:{NAMED}\s+)?:?\s*+{OPEN}{LETTER}",
        rf"\b(?:chang\w+|switch\w*)\s+(?:my\s+(?:answer|choice)\s+)?to\s+(?:{NAMED}\s+)?{OPEN}{LETTER}",
        rf"【答案】\s*+{OPEN}{LETTER}",
        rf"(?<![A-Za-z])correct\s*:\s*+{OPEN}{LETTER}",
        r"(?:答案|(?<!不)(?:正确|符合题意)的?选项|(?<!不)正确的[是有]|最佳选项)\s*+(?:应该|应当|应|就|显然|一定|可能)?\s*+"
        rf"(?:是|为|选择|选|:|=){{0,3}}\s*+(?::\s*+)?(?:选项|选)?\s*+{OPEN}{LETTER}",
        r"(?<!不)(?<!不能)(?<!不应)(?<!不应该)(?<!不该)(?<!不会)(?<!不可)(?<!别)(?<!勿)选(?!项)(?:择|的是|了|为)?\s*+(?::\s*+)?"
        rf"(?:选项|答案)?\s*+{OPEN}{LETTER}",
    )
)
# The one that is wrong, where the question asks for that.
_ODD_ONES = (
    re.compile(rf"(?:错误|不正确|不符合题意)的(?:选项)?(?:应)?(?:是|为|有|:)\s*+{OPEN}{LETTER}"),
    re.compile(
        rf"\b(?:incorrect|false|wrong|odd)\s+(?:one|option|statement)\s+is\s+(?:{NAMED}\s+)?{OPEN}{LETTER}", re.I
    ),
)
# What is said of an option that makes it the answer, unless the text names another answer.
_BEFORE = r"(?<![A-Za-z0-9'’.\-])(?<!not )[(\[]?"
_STATEMENTS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_BEFORE}{ROW}[)\].]?\s+(?:is|was|are|seems?|looks?|appears?|must\s+be)\s+(?:to\s+be\s+)?"
        rf"(?:all\s+|both\s+|clearly\s+|definitely\s+|therefore\s+|indeed\s+)*+(?:the\s+)?(?:only\s+|most\s+)?{_RIGHT}\b",
        rf"{_BEFORE}{ROW}[)\].]?\s+(?:is\s+(?:clearly\s+)?(?:the\s+only|what|the\s+one)\b|(?:clearly\s+|best\s+)?"
        r"(?:fits?|matches|works|satisf(?:y|ies)|describes)\b|best\s+[a-z]+s\b|is\s+better\s+than\b)",
        rf"\b(?:it|this|that)\s+(?:must|has\s+to|can\s+only)\s+be\s+(?:{NAMED}\s+)?{OPEN}{LETTER}",
        rf"\b(?:correspond(?:s|ing)\s+to|match(?:es|ing)(?:\s+with)?|which\s+is)\s+(?:the\s+)?{NAMED}\s+{OPEN}{LETTER}",
        rf"(?<!vertex )(?<!point )(?<!center )\bis\s+(?:{NAMED}\s+)?{OPEN}{LETTER}(?={CLOSE}\s*(?:$|[\n.,;:!(]))",
        rf"(?:^|(?<=[.!?\n,]))[ \t]*+{_SO}\s*+[,:]?\s*+{OPEN}{ROW}(?={CLOSE}\s*(?:$|[\n.,;:!(]))",
        rf"\b(?:corresponds?\s+to|leads(?:\s+us)?\s+to|come\s+to)\s+{OPEN}{LETTER}(?={CLOSE}\s*(?:$|[\n.,;:!(]))",
        rf"(?:而是|应该?是)\s*+(?:选项)?{OPEN}{LETTER}",
        rf"{_NOT_SO}\b(?:choose|chose|pick|picked|select|selected|go\s+with|going\s+with"
        rf"|opt\s+for)\s++(?:the\s++)?(?:{NAMED}\s*+)?:?\s*+{OPEN}{LETTER}",
        rf"(?<![A-Za-z0-9]){ROW}{CLOSE}\s*+{SAID}(?:才是|为|最)?(?:正确|对的|答案|符合)",
    )
)
_SENTENCE_ENDS = re.compile(rf"{CLOSE}\s*(?:$|[\n.,;:!?。])")
_LONE = re.compile(
    rf"(?<![A-Za-z0-9_'’°\\+^\-])(?<![A-Za-z]\.)(?<!cos )(?<!sin )(?<!tan )(?P<letter>[A-J])(?!\(|\s*[=≈²³]){ALONE}"
    rf"|(?<![A-Za-z0-9])[(\[](?P<bracketed>[a-j])[)\]]"
)
_RULED_OUT_BEFORE = re.compile(
    rf"(?:\bnot|n['’]t|\bneither|\bnor|\bexcept|\bcannot\s+be|n['’]t\s+be|\b(?:eliminate|exclude|unlike|whereas|while|than|doubt\s+that)"
    r"|\brule\s+out|\bunlikely\s+to\s+be|\b(?:not|never)\s+(?:be|choose|pick|select)|n['’]t\s+(?:choose|pick|select|think)(?:\s+that)?"
    r"|\bnone\s+of(?:\s+the)?|\bfalse\s+that|不是|并非|不可能是?|不能?选|不应该?选|不该选|不选择?|排除了?|而非|无法(?:判断|确定)|是否|就是|要么是?)"
    rf"\s*(?:{NAMED}\s*,?\s*|选项\s*)?[\"'“‘(\[]?$|\bnone\s+of\b[^.;\n]{{0,30}}$",
    re.IGNORECASE,
)
# A letter after these is part of a name, or with a number before it a unit: "Angle B", "Plan B", "3 A".
_NAME_BEFORE = re.compile(
    r"(?:\b(?:angle|point|plan|line|vitamin|hepatitis|team|player|group|type|class|row|column|box|vertex|side|segment|"
    r"triangle|circle|part|section|step|room|route|terminals?|from|to|at|between)\s+|\d\s+"
    r"|(?<!only )(?<!\bis )(?<!correct )\b(?:figure|graph|diagram|panel)\s+"
    r"|(?:∠|△|图|点|线段|直线|垂足为|垂足是|于|角)\s*)$",
    re.IGNORECASE,
)
_CORNER_BEFORE = re.compile(r"(?:\b(?:angle|point|vertex|side|segment|triangle)\s+|[∠△]\s*)$", re.IGNORECASE)
_IF_BEFORE = re.compile(
    r"(?:\b(?:if|suppose|assuming|whether|unless)|如果|假如|若|假设)(?:(?!\bbut\b|\bso\b)[^.;:!?\n。；]){0,60}$",
    re.IGNORECASE,
)
_IF_AFTER = re.compile(r"[^.;:!?\n。；]{0,60}\b(?:if|unless|were)\b", re.IGNORECASE)
_WOULD = re.compile(r"\b(?:would|could|might)\b", re.IGNORECASE)
_UNREAL_BEFORE = re.compile(
    r"\b(?:if|unless)\b[^.;!?\n]{0,60}\b(?:were|had|would|could)\b[^.;!?\n]{0,40}$|(?:如果|假如|若|假设)[^。；\n,]{0,8}$",
    re.IGNORECASE,
)
# The text takes back what it said before.
_CORRECTION = re.compile(
    r"\b(?:wait|actually|correction|sorry|hmm|oops|re-?check|reconsider(?:ing)?|on\s+second\s+thought)\b|不对|等等|更正",
    re.IGNORECASE,
)
_INSTEAD = re.compile(
    rf"(?:\b(?:it|this|that|so)(?:['’]s|\s+(?:is|should\s+be|must\s+be))\s+(?:{NAMED}\s+)?|应该?是|(?:^|[.!?:;…-]\s)(?:[\s,.:;…-]|no\b){{0,12}}){OPEN}{LETTER}"
    rf"(?={CLOSE}\s*(?:$|[\n.,;:!。，]))",
    re.IGNORECASE,
)
# What is said about one option: "- B: correct", "B. green - yes", "(B) ✓", "| B | Yes |", "Option B: true."
_PIECES = re.compile(
    r"\n|[;；]|(?<=[.。])\s*(?=(?:option|choice|statement)\s+[A-J]\b|\([A-J]\)|[A-J](?:的|项|选项)?(?:说法|表述|正确|错误))"
    r"|[,，](?=\s*(?:选项)?[A-J](?:的|项|选项)?(?:说法|表述|正确|错误|不正确))",
    re.IGNORECASE,
)
_LETTER_NEXT = r"[ \t]*[A-J](?![A-Za-z])"
_OPTION = re.compile(
    r"[ \t]*+(?:[-*•][ \t]*+)?(?:\d{1,3}[.)][ \t]*+)?(?P<named>\|[ \t]*+|(?:option|choice|statement|选项)\s*+)?[(\[]?"
    rf"(?P<letter>[A-J])(?:[)\].、](?!{_LETTER_NEXT})|(?P<colon>:)|[ \t]*+\||\s+(?=is\b)|(?={SAID}(?:正确|错|不)))"
    r"[ \t]*+(?P<said>.*)$",
    re.IGNORECASE,
)
_OPTION_LINE = re.compile(
    r"^[ \t]*+(?:[-*•][ \t]*+)?(?:\d{1,3}[.)][ \t]*+)?(?:(?:[Oo]ption|[Cc]hoice|选项)[ \t]*+)?"
    rf"[(\[]?(?P<letter>[A-J])[)\].:、](?!{_LETTER_NEXT})[ \t]*(?P<said>[^\n]*)$",
    re.MULTILINE,
)
# Yes, no, true and false are options themselves; they are verdicts only after what they judge.
_TRUE = r"(?:correct|✓|✔|✅|√|正确|符合题意)"
_FALSE = r"(?:incorrect|wrong|not\s+correct|✗|✘|❌|×|错误?|不正确|不对|不符合题意)"
_VERDICT = re.compile(
    rf"(?:^{SAID}|[-–—:,，(（]\s*|[A-J]{SAID}|\bis\s+|\s(?=[✓✔✅√✗✘❌×]))(?:(?P<right>{_TRUE})|{_FALSE})[\ufe0e\ufe0f]?[.)）!。]*$"
    rf"|^(?:(?P<first>{_TRUE})|{_FALSE})[\ufe0e\ufe0f]?(?:\s*[,:(，]|\s+(?:since|because|as)\b|(?<=[✓✔✅√✗✘❌×\ufe0f])\s)"
    r"|(?:[-–—:(（]\s*|\bis\s+)(?:(?P<yes>yes|true)|no|false)[.)）!。| ]*$",
    re.IGNORECASE,
)
_TO_END = re.compile(r"[^.;\n]*[.;]?")  # of an option's text in a line


def stated(text: str, *, begun: bool = True) -> Letters | None:
    """The letters of the answer that a text states last; None if it states none.

    What the text calls its answer goes before what it calls correct, unless it takes that answer back. With `begun`, a
    text that begins with one option states it.
    """
    plain = open_text_commands(without_markup(text))
    answers = _found(plain, _ANSWERS)
    for start, content in unboxed(plain):
        if letters := several(content) or leading(content):
            answers.append((start, letters))
    if answers:
        start, letters = max(answers, key=lambda found: found[0])
        return _corrected(plain[start:]) or letters
    if odd := _found(plain, _ODD_ONES):
        return odd[-1][1]
    if letters := judged(text):
        return letters
    if statements := [found for found in _found(plain, _STATEMENTS) if UNDECIDED not in found[1]]:
        return max(statements, key=lambda found: found[0])[1]
    return _in_bold(text) or (begun_with(text) if begun else NONE) or None


def _in_bold(text: str) -> Letters:
    """The option in bold, if no other is, or the last line is."""
    bold = [letters for content in _BOLD.findall(text) if (letters := several(content) or leading(content))]
    last = text.rstrip().rpartition("\n")[2].strip()
    return bold[-1] if bold and (len(set(bold)) == 1 or _BOLD.fullmatch(last)) else NONE


def _found(plain: str, patterns: tuple[re.Pattern[str], ...]) -> list[tuple[int, Letters]]:
    """Where patterns state letters, and which. A statement under a condition is none."""
    found: list[tuple[int, Letters]] = []
    for pattern in patterns:
        for match in pattern.finditer(plain):
            start = match.start("letter")
            before = plain[max(0, match.start() - 80) : match.start()]
            letters, end = run_of(plain, match)
            would = _WOULD.search(plain, max(0, match.start() - 16), match.end())
            conditional = _IF_BEFORE.search(before) or (would and _IF_AFTER.match(plain, end))
            if match.start() >= start - 1:  # it begins with the letters
                near = plain[max(0, start - 40) : start]
                conditional = conditional or _CORNER_BEFORE.search(near) or _RULED_OUT_BEFORE.search(near)
            if letters and not conditional and _is_statement(plain, start, end):
                found.append((start, letters))
    return found


def _corrected(rest: str) -> Letters | None:
    """The answer that replaces one which the text takes back: "The answer is A. Wait, … so it is C"."""
    marker = _CORRECTION.search(rest)
    if marker is None:
        return None
    after = rest[marker.end() :]
    if instead := list(_INSTEAD.finditer(after)):
        return frozenset(instead[-1]["letter"].upper())
    return stated(after, begun=False)


def _is_statement(text: str, start: int, end: int) -> bool:
    """Whether it is an option's letter: not the article of "the answer is a red circle", nor the I of "I think"."""
    if text[start].islower():
        return text[end : end + 1] in (")", "]", "}") or _SENTENCE_ENDS.match(text, end) is not None
    if end > start + 1 or _SENTENCE_ENDS.match(text, end):
        return True
    after_colon = re.search(r"[:：]\s*$", text[max(0, start - 8) : start]) is not None
    return not (is_word(text, start) and (after_colon or text[start] == "I"))


def judged(text: str) -> Letters:
    """The options that a list of all of them calls right: "- A: incorrect", "- B: correct"."""
    said: dict[str, bool] = {}
    for piece in _PIECES.split(without_markup(text)):
        option = _OPTION.match(piece)
        if option is None:
            continue
        after = option["said"].rstrip()
        names_it = option["named"] or option["colon"]
        if verdict := _VERDICT.search(after) or (names_it and _VERDICT.search(f": {after}")):
            said[option["letter"].upper()] = bool(verdict["right"] or verdict["first"] or verdict["yes"])
    return frozenset(letter for letter, is_right in said.items() if is_right) if len(said) > 1 else NONE


def begun_with(text: str) -> Letters:
    """The letter of `B. The green circle …`, if no other line begins with another one, as a list of options does."""
    plain = without_markup(text).lstrip()
    first, letters = _OPTION_LINE.match(plain), {letter for letter, _ in _OPTION_LINE.findall(plain)}
    if first is None or len(letters) > 1 or is_ruled_out_after(plain, first.end("letter")):
        return NONE
    return frozenset(letters)


def last_option_line(text: str) -> str | None:
    """The last line if it is an option, `D. rabbit`, and does not belong to a list of them."""
    lines = [line for line in without_markup(text).splitlines() if line.strip()][-2:]
    options = [_OPTION_LINE.match(line) for line in lines]
    return lines[-1].strip() if options and options[-1] and not any(options[:-1]) else None


def last_option(text: str) -> Letters:
    """The letter of such a last line; none without one."""
    line = last_option_line(text)
    return leading(line) if line else NONE


def lone(text: str) -> str | None:
    """The last letter that stands alone: no word, no part of a name, not in a row with others, not ruled out."""
    plain = _without_options(open_text_commands(without_markup(text)))
    chosen: str | None = None
    end = 0
    for match in _LONE.finditer(plain):
        start = match.start("letter") if match["letter"] else match.start("bracketed")
        if start < end or is_word(plain, start):
            continue
        letters, end = run_of(plain, match) if match["letter"] else (frozenset(plain[start].upper()), start + 1)
        before = plain[max(0, start - 110) : start]
        near = before[-40:]
        if len(letters) != 1 or _NAME_BEFORE.search(near) or _RULED_OUT_BEFORE.search(near):
            continue
        if not _UNREAL_BEFORE.search(before) and not is_ruled_out_after(plain, end):
            (chosen,) = letters
    return chosen


def _without_options(text: str) -> str:
    """The text without a list that only repeats the options: A. red / B. green / C. blue, in lines or in one."""
    letters = [match["letter"] for match in _OPTION_LINE.finditer(text)]
    if len(letters) > 1 and letters == sorted(set(letters)):
        text = _OPTION_LINE.sub("", text)
    lines = text.split("\n")
    for number, line in enumerate(lines):
        found = list(WITH_TEXT.finditer(line))
        if len(found) > 2 and [match[1] for match in found] == list(LETTERS[: len(found)]):
            lines[number] = line[: found[0].start()] + _TO_END.sub("", line[found[-1].end() :], count=1)
    return "\n".join(lines)
