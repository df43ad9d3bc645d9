"""Renders the chat template of a checkpoint, which is a third party's program, in a process that can be killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dapo_stages.data.prompts import Conversation, Refused, Render, TooLong
from dapo_stages.errors import ModelError
from dapo_stages.processes.child import Child, Lost

_START_LIMIT = 60.0  # seconds to import transformers, even on a busy machine
_LIMIT = 10.0  # seconds for one conversation
_MOST_LOST = 2  # failed conversations after which the template is at fault, not a row
_LONGEST = 64 << 20  # characters, unless the caller sets a lower limit


@contextmanager
def chat_template(processor: Any) -> Iterator[Render | None]:
    """What renders the template of a processor; None if the template is ours and needs no supervision."""
    from dapo_stages.models.embedded.embedded_tokenizer import CHAT_TEMPLATE

    template = getattr(processor, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if template == CHAT_TEMPLATE or not isinstance(template, str):  # without one, transformers explains what to do
        yield None
        return
    watched = _Watched(template, processor.tokenizer.special_tokens_map)
    try:
        yield watched.render
    finally:
        watched.close()


class _Watched:
    """One template and the process that renders it, restarted after it was killed."""

    def __init__(self, template: str, values: dict[str, Any]) -> None:
        self._fixed = {"template": template, "values": values}
        self._child = Child("templates")
        self._lost, self._closed = 0, False
        self._error: ModelError | None = None  # once the template is given up, for all later calls

    def render(self, conversation: Conversation, longest: int | None) -> str:
        """The text of a conversation. Raises Refused, TooLong, and ModelError if the template is at fault."""
        if self._closed:
            raise Refused("the stage is ending")
        if self._error is not None:
            raise self._error
        try:
            if not self._child.runs:
                self._start()
                if self._closed:  # while this process started: close() only reached the one before it
                    self._child.kill()
                    raise Refused("the stage is ending")
            longest = min(longest or _LONGEST, _LONGEST)
            request = self._fixed | {"conversation": conversation, "longest": longest, "limit": _LIMIT}
            reply = self._child.ask(request, _LIMIT)
        except Lost as lost:
            raise self._given_up(lost) from None
        if "characters" in reply:
            raise TooLong(f"{reply['characters']:,} characters")
        if "text" not in reply:
            raise Refused(str(reply.get("refused")))
        return str(reply["text"])

    def close(self) -> None:
        """Kill the process at once, whatever it is doing; a render() that waits for it raises Refused."""
        self._closed = True
        self._child.interrupt()

    def _start(self) -> None:
        reply = self._child.start(_START_LIMIT)
        if not reply.get("ready"):
            self._child.kill()
            reason = reply.get("error")
            raise ModelError(
                f"chat template: cannot start the process that renders it ({reason}). Install transformers and jinja2 "
                "again."
            )

    def _given_up(self, lost: Lost) -> Exception:
        self._lost += 1
        if self._lost < _MOST_LOST or self._closed:
            return Refused(f"it {lost}")
        self._error = ModelError(
            f"chat template of the tokenizer: it {lost} on {self._lost} conversations (the limits are {_LIMIT:g} s and "
            "2 GiB). Check the template, or use another checkpoint."
        )
        return self._error
