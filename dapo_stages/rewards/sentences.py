"""The answer in a sentence: `There are 4 red balls` says `4 red balls`, `x = 5, so the perimeter is 20` says `20`."""

from __future__ import annotations

import re

_LONGEST = 1000  # characters of an answer in a sentence
_SO = r"(?:therefore|thus|so|hence|consequently|finally|因此|所以|故|综上(?:所述)?|由图可知|答)"
_IS = r"(?:is|are|was|were)"
_OPENING = re.compile(
    rf"""^(?:
      (?:  # since …, | 当…时, | therefore,
        (?:since|because|as|according\s+to|using|by|with|from|after)\b[^,]*,\s*
        |(?:如图|当|由|设)[^,，]{{0,20}}[,，]\s*
        |{_SO}\s*[,，:：]?\s*
      )*
      (?:
        there\s+(?:{_IS}|(?:would|will)\s+be)
        |(?:it|this|that|they|these)\s+(?:{_IS}|has|(?:must|should)\s+be)(?:\s+made\s+of)?|it['’]s
        |(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is|(?:should|would|must)\s+be|:|=)\s*:?
        |\#\#\#\#
        |[A-Z][A-Za-z]{{2,11}}(?:\s[a-z]{{2,12}})?:(?=\s)  # Total number:
        |(?:the|its|each|[A-Za-z]{{1,3}}|point\s+[A-Z])  # the sum of what is shown is
          (?:\s+(?:(?:that|which|who)\s+{_IS}|(?!(?:not|no|if|{_IS})\b)[^\s.;:!?]{{1,30}})){{0,12}}
          \s+(?:{_IS}|equals?)(?:\s+(?:therefore|thus|equal\s+to|at))?(?=\s)
        |答案\s*(?:是|为|:|：)?\s*[:：]?
        |(?:(?![不没非未])[\u4e00-\u9fff△∠A-Z,，]){{1,16}}?(?<![不没])(?:等于|[是为有])(?!没|不)
      )\s*
      |(?:[\u4e00-\u9fff]{{1,8}}[,，]\s*)?{_SO}\s*[,，:：]\s*
    )""",
    re.IGNORECASE | re.VERBOSE,
)
# What follows an answer: a remark in brackets, a reason, what it is not.
_REMARK = re.compile(
    r"""(?:\s+\(|（)
        (?=[^()（）]*(?:[A-Za-z]{2}|[\u4e00-\u9fff]|\d\s*[×x*·+/%-]\s*\d?|[<>≠]|\d\.\d))
        [^()（）]*[)）][.。]?$
      |,\s+as\s.*$
      |,?\s+(?:because|since|given\s+that)\b.*$
      |,\s*not\s.*$
      |(?<=.)[，,]?因为.*$""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_IS_THE_ANSWER = re.compile(r"\s+is\s+the\s+(?:final\s+|correct\s+)?answer[.]?$", re.IGNORECASE)
# What comes before the last of several clauses.
_CLAUSE = re.compile(
    r"""\s*(?:→|⇒|∴|\\[Rr]ightarrow|\\therefore)\s*
      |[,;]?\s+(?:and\s+)?(?:so|therefore|thus|hence|then|gives|we\s+(?:get|find|have|obtain)(?:\s+that)?)\s*,?\s+
      |[,，]?\s*(?:可得|解得|得到?)(?=[∠△A-Za-z\\])\s*
      |[,，;；。]\s*(?:所以|因此|故|而是)
      |[,;]\s+(?=it\s+(?:is|(?:must|should)\s+be)\b)""",
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[。！？])(?=\s*\S)")
_SEVERAL = re.compile(r"[,;，；、\n](?!\d{3}\b)|\b(?:or|and|if)\b|[或和]", re.IGNORECASE)
# x = -3 (rejected) or
_REJECTED = re.compile(
    r"""[^,;，；]*?\((?:rejected|extraneous|not\s+valid|舍去?)[^()]*\)\s*(?:,|or\b|and\b|或)?\s*
      |\s*(?:,|or\b|and\b|或)\s*[^,;，；]*?\((?:rejected|extraneous|舍去?)[^()]*\)\s*$""",
    re.IGNORECASE | re.VERBOSE,
)
_ARITHMETIC = re.compile(
    r"(?:\\(?:log|ln|frac|dfrac|times|cdot|div|sqrt|sin|cos|tan|circ|pi|left|right|,|%)"
    r"|[\d\s.,+\-−–*/×÷·^(){}°%π²³√$_]|(?:sin|cos|tan|log|ln)(?![a-z]))+"
)
_CHECK = re.compile(
    r"(?:note|check|verif|indeed|because|since|recall|remember|i\s+hope|let\s+me|验证|注意)", re.IGNORECASE
)
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_MATHEMATICS = re.compile(r"\s*(?:\$\$?.*\$|\\[(\[].*\\[)\]]|\*\*[^*]*\*\*)\s*[.。]?\s*")
# x = 20, AC = 12 cm, Total: 12, The length of AC is 10.
_VALUE_LINE = re.compile(
    r"(?:(?:the|its)\s+[^=.;:!?]{1,80}\s(?:is|are|equals)\s+\S.{0,60}|[A-Za-z∠△\s]{1,20}(?:=|:)\s*[^=:\n]{1,40})",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(rf"\s*{_SO}(?:[\s,，:：]|(?<=[\u4e00-\u9fff]))", re.IGNORECASE)


def without_sentence(text: str) -> str:
    """`There are 4 red balls` -> `4 red balls`; `The answer is 42.` -> `42.`; a long text as it is."""
    return text if len(text) > _LONGEST else _OPENING.sub("", text, count=1).strip()


def without_remark(text: str) -> str:
    """`red (the car)` -> `red`; `12, because …` -> `12`."""
    return text if len(text) > _LONGEST else _REMARK.sub("", text).strip()


def value_in(text: str) -> str:
    """The answer that a sentence, or the last clause of the last one, comes to; a long text as it is."""
    if len(text) > _LONGEST:
        return text
    text = _REMARK.sub("", _REJECTED.sub("", _last_sentence(text)))
    *before, last = text.strip().split("\n")
    if before and re.match(r"[^=]*\d[^=]*=", last):  # Step 2: 40 / 2 = 20
        return _right_side(last)
    text = _IS_THE_ANSWER.sub("", _CLAUSE.split(text)[-1])
    return _right_side(without_sentence(text))


def _last_sentence(text: str) -> str:
    """The last sentence that is not a check of what was said before."""
    sentences = _SENTENCES.split(text.strip())
    return next((one for one in reversed(sentences) if not _CHECK.match(one)), sentences[-1])


def _right_side(text: str) -> str:
    """`∠C = 180° - 130° = 50°` -> `50°`, `6 + 6 = 12` -> `12`; an equation with an unknown stays as it is."""
    if _SEVERAL.search(text):
        *derived, last = re.split(r"[,;，；]\s*", text)
        is_derivation = (
            derived
            and "=" in last
            and all("=" in one for one in derived)
            and all(re.search(r"\d", _without_numbers(one.partition("=")[0])) for one in derived)
        )
        return last if is_derivation and not _SEVERAL.search(last) else text
    first, *others = (part.strip() for part in re.split(r"=|≈|\\approx", text))
    calculated = all(map(_ARITHMETIC.fullmatch, [re.sub(r"^[^=:]*:\s", "", first), *others[:-1]]))
    is_name = not re.search(r"[\d²³]", _without_numbers(first))
    if len(others) == 1 and re.fullmatch(r"[A-Za-z]{1,3}'?", first):
        return text  # its name counts
    in_a_row = any(re.fullmatch(r"[\d.]+\s+[A-Za-z]", part) for part in others[:-1])  # a=2 b=3
    return others[-1] if others and not in_a_row and (calculated or is_name) else text


def _without_numbers(name: str) -> str:
    """`∠1` -> `∠`, `x_1` -> `x`, `f(2)` -> `f`: numbers of a name are none of a formula."""
    return re.sub(r"(?<=[a-zA-Z])\([\d.-]+\)|(?:∠|\\angle)\s*\d|_\{?\d\}?|[₀-₉]", "", name)


def last_line(text: str) -> str:
    """The last line with a letter or a digit; empty if there is none."""
    return next((line for line in reversed(text.splitlines()) if re.search(r"[^\W_]", line)), "")


def conclusion(text: str) -> str | None:
    """What a text of several lines comes to: a last sentence that concludes, or a last line in bold or of mathematics.

    None if it ends in something else.
    """
    last = last_line(text[-_LONGEST:]).strip()
    if not last:
        return None
    if text.rstrip().endswith(("\\]", "$$")) or _MATHEMATICS.fullmatch(last):
        return last.strip("*")
    sentence = _last_sentence(last)
    if (bold := _BOLD.findall(sentence)) and len(bold) == 1:
        return str(bold[0])
    concludes = _CONCLUDES.match(sentence) or _VALUE_LINE.fullmatch(last)
    return sentence if concludes else None
