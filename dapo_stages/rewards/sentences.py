"""The answer in a sentence: `There are 4 red balls` says `4 red balls`, `x = 5, so the perimeter is 20` says `20`."""

from __future__ import annotations

import re

_LONGEST = 1000  # characters of an answer in a sentence
_SO = r"(?:therefore|thus|so|hence|consequently|finally|因此|所以|故|综上(?:所述)?|由图可知|答)"
_OPENING = re.compile(
    rf"^(?:(?:since|because|as|according\s+to)\b[^,]*,\s*|{_SO}\s*[,，:：]?\s*)*(?:"
    r"there\s+(?:are|is|was|were|would\s+be|will\s+be)|(?:it|this|that|they|these)\s+(?:is|are|has|was|must\s+be|should\s+be)"
    r"(?:\s+made\s+of)?|it['’]s"
    r"|(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is|:|=)\s*:?|####|[A-Z][A-Za-z]{2,11}(?:\s[a-z]{2,12})?:(?=\s)"
    r"|(?:the|its|each|[A-Za-z]{1,3}|point\s+[A-Z])(?:\s+(?!(?:not|no)\b)[^\s.;:!?,]{1,30}){0,10}\s+"
    r"(?:is|are|was|were|equals?)(?:\s+(?:therefore|thus|equal\s+to|at))?(?=\s)"
    r"|答案\s*(?:是|为|:|：)?\s*[:：]?|(?:(?![不没非未])[\u4e00-\u9fff△∠A-Z,，]){1,16}?(?<![不没])(?:等于|[是为有])(?!没|不)"
    r")\s*|^(?:[\u4e00-\u9fff]{1,8}[,，]\s*)?" + rf"{_SO}\s*[,，:：]\s*",
    re.IGNORECASE,
)
# What follows an answer: a remark in brackets, a reason, what it is not.
_REMARK = re.compile(
    r"\s+\((?=[^()]*[A-Za-z\u4e00-\u9fff]{2})[^()]*\)[.。]?$|,?\s+(?:because|since|given\s+that)\b.*$|,\s*not\s.*$|(?<=.)[，,]?因为.*$",
    re.IGNORECASE | re.DOTALL,
)
_IS_THE_ANSWER = re.compile(r"\s+is\s+the\s+(?:final\s+|correct\s+)?answer[.]?$", re.IGNORECASE)
# What comes before the last of several clauses.
_CLAUSE = re.compile(
    r"[,;]?\s+(?:so|therefore|thus|hence)\s*,?\s+|[,，;；。]\s*(?:所以|因此|故|而是)|[,;]\s+(?=it\s+(?:is|must\s+be|should\s+be)\b)",
    re.IGNORECASE,
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[。！？])(?=\s*\S)")
_CHAIN = re.compile(r"(?:.*\d.*|.*:.*)(?:=|≈|\\approx)\s*(?P<value>[^=≈:]*\S)", re.DOTALL)
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_MATHEMATICS = re.compile(r"\s*(?:\$\$?.*\$|\\[(\[].*\\[)\]]|\*\*[^*]*\*\*)\s*[.。]?\s*")
_CONCLUDES = re.compile(rf"\s*{_SO}(?:[\s,，:：]|(?<=[\u4e00-\u9fff]))", re.IGNORECASE)


def without_sentence(text: str) -> str:
    """`There are 4 red balls` -> `4 red balls`; `The answer is 42.` -> `42.`; a long text as it is."""
    return text if len(text) > _LONGEST else _OPENING.sub("", text, count=1).strip()


def value_in(text: str) -> str:
    """The answer that a sentence, or the last clause of the last one, comes to; a long text as it is."""
    if len(text) > _LONGEST:
        return text
    text = _SENTENCES.split(text.strip())[-1]
    text = _REMARK.sub("", text)
    text = _IS_THE_ANSWER.sub("", _CLAUSE.split(text)[-1])
    text = without_sentence(text)
    chain = _CHAIN.fullmatch(text)
    return chain["value"] if chain is not None else text


def conclusion(text: str) -> str | None:
    """What a text of several lines comes to: a last sentence that concludes, or a last line in bold or of mathematics.

    None if it ends in something else.
    """
    lines = [line for line in text[-_LONGEST:].splitlines() if re.search(r"[^\W_]", line)]
    if not lines:
        return None
    last = lines[-1].strip()
    if text.rstrip().endswith(("\\]", "$$")) or _MATHEMATICS.fullmatch(last):
        return last.strip("*")
    sentence = _SENTENCES.split(last)[-1]
    if (bold := _BOLD.findall(sentence)) and len(bold) == 1:
        return str(bold[0])
    return sentence if _CONCLUDES.match(sentence) else None
