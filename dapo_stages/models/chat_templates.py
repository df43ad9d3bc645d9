"""Fills in the chat template of a checkpoint, which is somebody else's program, in a process that can be ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dapo_stages.data.prompts import Conversation, Refused, Render, TooLong
from dapo_stages.errors import ModelError
from dapo_stages.processes.child import Child, Lost

_START_LIMIT = 60.0  # seconds to import transformers, on a busy machine too
_LIMIT = 10.0  # seconds for one conversation
_MOST_LOST = 2  # conversations that may take longer; then it is the template, not a row
_LONGEST = 64 << 20  # characters, where no shorter text is too long


@contextmanager
def chat_template(processor: Any) -> Iterator[Render | None]:
    """What fills in the template of a processor; None where the template is ours and needs no watching."""
    from dapo_stages.models.embedded.embedded_tokenizer import CHAT_TEMPLATE

    template = getattr(processor, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if template == CHAT_TEMPLATE or not isinstance(template, str):  # without one, transformers says what to do
        yield None
        return
    watched = _Watched(template, processor.tokenizer.special_tokens_map)
    try:
        yield watched.render
    finally:
        watched.close()


class _Watched:
    """One template and the process that fills it in, started again after it was ended."""

    def __init__(self, template: str, values: dict[str, Any]) -> None:
        self._fixed = {"template": template, "values": values}
        self._child = Child("templates")
        self._lost, self._closed = 0, False
        self._error: ModelError | None = None  # once it is given up, for all who ask after that

    def render(self, conversation: Conversation, longest: int | None) -> str:
        """The text of a conversation. Raises Refused, TooLong, and ModelError where the template is no good."""
        if self._closed:
            raise Refused("the stage is ending")
        if self._error is not None:
            raise self._error
        try:
            if not self._child.runs:
                self._start()
                if self._closed:  # meanwhile, with the process before this one
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
        """End the process at once, whatever it is doing; who waits for it is answered."""
        self._closed = True
        self._child.interrupt()

    def _start(self) -> None:
        reply = self._child.start(_START_LIMIT)
        if not reply.get("ready"):
            self._child.kill()
            reason = reply.get("error")
            raise ModelError(
                f"chat template: found no process to fill it in ({reason}); needed transformers and jinja2. Install "
                "them again."
            )

    def _given_up(self, lost: Lost) -> Exception:
        self._lost += 1
        if self._lost < _MOST_LOST or self._closed:
            return Refused(f"it {lost}")
        self._error = ModelError(
            f"chat template of the tokenizer: found one that {lost} at {self._lost} conversations; needed one that "
            f"writes a text within {_LIMIT:g} s and 2 GiB. Look into it, and take another checkpoint."
        )
        return self._error
