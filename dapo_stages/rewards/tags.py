"""The markup of a completion: thoughts, answer blocks, boxes and text commands."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

_MARKS = re.compile("[\ufdd0-\ufdef]")  # noncharacters, in prompts where a tag is plain text (data/control.py)
_FLAGS = re.IGNORECASE | re.DOTALL
_THINK_TAG = re.compile(r"<(/?)think>", _FLAGS)
_ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_BRACE = re.compile(r"\\\\|\\[{}]|(?P<box>\\(?:boxed|fbox)\s*\{)|(?P<open>\{)|(?P<close>\})")
_LONGEST_BOX = 1000  # characters
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|rm|it|sf)?|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_JSON = re.compile(r'\s*\{\s*"(?:final_)?answer"\s*:\s*"?(?P<answer>[^"{}]*)"?\s*\}\s*', re.IGNORECASE)
_MARKUP = re.compile(r"[*`]|__")
_ITALIC_LETTER = re.compile(r"(?<![\w_])_([A-Ja-j])_(?![\w_])")


def opens_thought(prompt: str) -> bool:
    """Whether the chat template opened a thought at the end of the prompt, as Qwen3-VL-Thinking's does."""
    return _MARKS.sub("", prompt[-100:]).rstrip().lower().endswith("<think>")


def continued_thought(prompt: str, text: str) -> str:
    """A completion with the tag that its prompt opened, if it did; unchanged if the model opens one again."""
    return text if not opens_thought(prompt) or _opened(text) else f"<think>{text}"


def thought_to_continue(prompt: str, text: str) -> str:
    """A completion to learn, without the tag that its prompt opened, if it did."""
    return text.lstrip()[len("<think>") :] if opens_thought(prompt) and _opened(text) else text


def _opened(text: str) -> bool:
    return text.lstrip()[: len("<think>")].lower() == "<think>"


def unclosed_thought(text: str) -> str | None:
    """What follows a `<think>` that is never closed; None if there is none."""
    last = _last(_THINK_TAG.finditer(text))
    return None if last is None or last[1] else text[last.end() :]


def unclosed_answer(text: str) -> str | None:
    """The first line of an `<answer>` that is never closed, or what an `</answer>` closes that was never opened: the
    line before it. None if there is neither."""
    last = _last(_ANSWER_TAG.finditer(text))
    if last is None:
        return None
    if not last[0].startswith("</"):
        return text[last.end() :].strip().partition("\n")[0]
    alone = _ANSWER_TAG.search(text, 0, last.start()) is None
    return text[: last.start()].rstrip().rpartition("\n")[2].strip() if alone else None


def _last(matches: Iterator[re.Match[str]]) -> re.Match[str] | None:
    return next(iter(deque(matches, maxlen=1)), None)


def outside_think(text: str) -> str:
    """The completion without its thoughts (a space stands in for each); tags may be in either case.

    A thought ends at the first `</think>`; one that is never closed runs to the end; if the completion closes a thought
    that it did not open (the prompt did), all text before belongs to it.
    """
    pieces: list[str] = []
    start, thinking, opened = 0, False, False
    for tag in _THINK_TAG.finditer(text):
        closes = bool(tag[1])
        if closes and not thinking and not opened:
            pieces.clear()
        elif not thinking:
            pieces.append(text[start : tag.start()])
        thinking = not closes
        opened = True
        start = tag.end()
    if not thinking:
        pieces.append(text[start:])
    return " ".join(pieces)


def answer_blocks(text: str) -> list[str]:
    """The content of each complete `<answer>…</answer>`; of nested ones the inner one counts."""
    blocks: list[str] = []
    opened: re.Match[str] | None = None
    for tag in _ANSWER_TAG.finditer(text):
        closes = tag[0].startswith("</")
        if closes and opened is not None:
            blocks.append(text[opened.end() : tag.start()])
        opened = None if closes else tag
    return blocks


def without_answer_tags(text: str) -> str:
    """The text with a space for each `<answer>` and `</answer>`."""
    return _ANSWER_TAG.sub(" ", text)


def without_markup(text: str) -> str:
    """The text without Markdown's bold, italic and code marks."""
    return _ITALIC_LETTER.sub(r"\1", _MARKUP.sub("", text))


def unboxed(text: str) -> list[tuple[int, str]]:
    """Each complete `\\boxed{…}`, in order: its start and its content, with text commands opened."""
    found: list[tuple[int, str]] = []
    open_braces: list[re.Match[str]] = []
    for brace in _BRACE.finditer(text):
        if brace["box"] or brace["open"]:
            open_braces.append(brace)
        elif brace["close"] and open_braces:
            opening = open_braces.pop()
            if opening["box"] and brace.start() - opening.end() <= _LONGEST_BOX:
                found.append((opening.start(), open_text_commands(text[opening.end() : brace.start()])))
    return sorted(found)


def outside_json(text: str) -> str:
    """The answer of `{"answer": "B"}`; any other text as it is."""
    found = _JSON.fullmatch(text)
    return found["answer"] if found else text


def open_text_commands(text: str) -> str:
    """The text with `\\text{cm}` and similar commands replaced by their content."""
    return _TEXT_COMMAND.sub(r"\1", text)
