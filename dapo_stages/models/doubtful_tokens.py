"""Added tokens that prompts or the format use, but that the checkpoint never learned or can never sample."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dapo_stages.data.chat import messages
from dapo_stages.data.prompts import Refused, TooLong
from dapo_stages.models.chat_templates import chat_template
from dapo_stages.models.checkpoints import Checkpoint
from dapo_stages.models.tokens import Tokens
from dapo_stages.rewards.format import TAGS

SMALL = 0.1  # of the median norm
ALIKE = 0.01  # relative distance of two embeddings
_ROWS = 8192  # read as float32 at a time


def doubtful_tokens(
    tokens: Tokens, processor: Any, checkpoint: Checkpoint, system_prompt: str, *, plain_tags: bool = False
) -> dict[str, str]:
    """Why each added token is doubtful that the tags of the format or a prompt with this system prompt contain.

    A tag is, if it is a special token: these are neither sampled nor part of a completion's text. Any is, if its input
    embedding looks untrained: its norm is below a tenth of the median norm of the tokens that were not added, or it
    differs by less than 1 % of its norm from another added token's, or from a row that no token has. A vocabulary that
    was enlarged without training has such rows: zeros, tiny ones or copies. Tokens that stand for images are left out,
    since their embeddings are replaced; with `plain_tags`, so are the tags.
    """
    vocabulary, added = tokens.tokenizer.get_vocab(), tokens.tokenizer.added_tokens_decoder
    used = {vocabulary[name] for name in TAGS if vocabulary.get(name) in added}
    used |= {index for index in _prompt_ids(processor, system_prompt) if index in added}
    stand_ins = {getattr(processor, f"{kind}_token", None) for kind in ("image", "video")}
    left_out = {*stand_ins, *(TAGS if plain_tags else ())}
    used = {index for index in used if added[index].content not in left_out and index != tokens.image_token_id}
    found = {
        added[index].content: "is a special token of the tokenizer, which is never sampled"
        for index in sorted(used)
        if added[index].special and added[index].content in TAGS
    }
    name = next((name for name in checkpoint.shapes if name.endswith("embed_tokens.weight")), None)
    if name is None or not used:
        return found
    embeddings = checkpoint.read(name)
    norms = torch.cat([part.float().norm(dim=1) for part in embeddings.split(_ROWS)])
    ordinary = [index for index in set(vocabulary.values()) - added.keys() if index < len(norms)]
    median = norms[ordinary].median().item()
    others = sorted({*added, *(set(range(len(norms))) - set(vocabulary.values()))} & set(range(len(norms))))
    rows = embeddings[others].float()
    for index in sorted(used & set(others)):
        norm = norms[index].item()
        apart = (rows - embeddings[index].float()).norm(dim=1).tolist()
        twin = next((o for o, far in zip(others, apart, strict=True) if o != index and far <= ALIKE * norm), None)
        if norm < SMALL * median:
            why = f"the norm of its embedding is {norm:.2g}, the median of the vocabulary {median:.2g}"
        elif twin is not None:
            other = added[twin].content if twin in added else f"id {twin}, which no token has"
            why = f"its embedding is that of {other}"
        else:
            continue
        found.setdefault(added[index].content, f"looks untrained: {why}")
    return found


def remedy(token: str) -> str:
    """What to do about such a token, a sentence."""
    if token in TAGS:
        return "Set data.tags=plain, which writes and expects it as ordinary text, unless training shall teach it."
    return "Use a checkpoint that was trained on this chat template, or train its embeddings with the section sft."


def _prompt_ids(processor: Any, system_prompt: str) -> Iterable[int]:
    """The tokens of a prompt with one image, before the image is expanded; none if its template refuses it."""
    conversation = messages("?", 1, system_prompt)
    try:
        with chat_template(processor) as render:
            if render is not None:
                text = render(conversation, None)
            else:
                text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except (Refused, TooLong, ValueError):
        return ()
    ids: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
