"""A run whose third iteration says hostile things in every field that can."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from reporting import tiny_run

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan

# What is said -> what is shown (None: just that). Control and direction characters are shown as symbols.
PAYLOADS: list[tuple[str, str | None]] = [
    ("<script>alert(1)</script>", None),
    ("</script><script>alert(2)</script>", None),
    ("</textarea><img src=x onerror=alert(3)>", None),
    ("<!-- <script> -->", None),
    ("--><svg onload=alert(4)>", None),
    ("</style><style>*{display:none}</style>", None),
    ("</title></head><body>", None),
    ('"><iframe src="http://example.org">', None),
    ("' onmouseover='alert(5)", None),
    ("javascript:alert(6)", None),
    ("<a href=javascript:alert(7)>x</a>", None),
    ("&lt;b&gt; &amp; &#60;script&#62; &nbsp;", None),
    ("[/box] [bold]x[/bold] [link=file:///etc/passwd]x[/link]", None),
    ("| a | b |\n|---|---|\n| 1 | 2 |", None),
    ("```\n# heading\n```", None),
    ("{{ 7*7 }} {% raw %} ${7*7} <%= 7*7 %>", None),
    ('\\u003cscript\\u003e \\x3c \\" \\n', None),
    ("\u202eright to left\u202c", "⟨U+202E⟩right to left⟨U+202C⟩"),
    ("\u2066isolated\u2069 \u200fמשמאל لليمين", "⟨U+2066⟩isolated⟨U+2069⟩ ⟨U+200F⟩משמאל لليمين"),
    ("\x1b[31mred\x1b[0m \x07bell \x00nul \x7fdel", "␛[31mred␛[0m ␇bell ␀nul ␡del"),
    ("\x9b31m C1 \x85", "⟨U+009B⟩31m C1 ⟨U+0085⟩"),
    ("line\u2028separator\u2029paragraph", "line⟨U+2028⟩separator⟨U+2029⟩paragraph"),
    ("a\u0301 e\u200dzero 👩‍👩‍👧 𝕏 标题", None),
    ("__proto__ constructor toString", None),
    ("]]> <![CDATA[x]]> <?xml?> %00 \t tab", None),
]
FIELDS = ("problem", "solution", "slice", "group", "prompt", "completion", "token", "why", "finish")
LINES = {"problem", "solution", "token"}  # they keep their line breaks; elsewhere text stays on one line


def mark(case: int, field: str, text: str) -> str:
    return f"{case}:{field}:{text}:{case}"


def shown(case: int, field: str) -> str:
    said, seen = PAYLOADS[case]
    text = seen or said
    return mark(case, field, text if field in LINES else text.replace("\n", "⏎").replace("\t", " "))


def build(
    folder: Path, payloads: Sequence[tuple[str, str | None]] = PAYLOADS, fields: Collection[str] = FIELDS
) -> Path:
    """A group of one completion for each payload, in these fields. The iteration has rollouts and weights."""
    run = tiny_run.build(folder, last="rollout")
    tables: dict[str, list[dict[str, Any]]] = {"prompts": [], "completions": [], "weights": []}
    for case, (payload, _) in enumerate(payloads):

        def say(field: str, case: int = case, payload: str = payload) -> str:
            return mark(case, field, payload if field in fields else "plain")

        group = say("group")
        prompt = {"group_id": group, "prompt_id": say("prompt"), "slice": say("slice")}
        prompt |= {"problem": say("problem"), "solution": say("solution")}
        key = {"group_id": group, "completion_id": say("completion")}
        tokens: dict[str, Any] = {"token_texts": [say("token"), " end"], "completion_ids": [1, 2]}
        tokens |= {"text": "".join(tokens["token_texts"])}
        tokens |= {"sampling_logprobs": [-1.0, -1.0], "finish_reason": say("finish")}
        tables["prompts"].append(tiny_run.prompt(3, 0, correct=1) | prompt)
        tables["completions"].append(tiny_run.completion(3, 0, 0) | tokens | key)
        weight: dict[str, Any] = {"source": "fresh", "source_iteration": 3, "reward": 1.0, "reward_accuracy": 1.0}
        weight |= {"reward_vgr": 0.0, "reward_format": 1.0, "reward_overlong": 0.0, "reward_phase": "regular"}
        weight |= {"advantage": 0.5, "importance": None, "token_weights": [0.5, 1.5], "in_loss": False}
        tables["weights"].append(weight | key | {"why": say("why")})
    here = run / "iter-0003"
    plan = Plan("rollout", here / "rollout", {"iteration": 3}, 1, {"policy": Source(run / "policy")})

    def fill(output: Output) -> None:
        for kind in ("prompts", "completions"):
            output.write(kind, 0, tables[kind])

    tiny_run.publish(plan, fill)
    plan = Plan("weight-tokens", here / "weights", {}, 1, {"rollouts": Source(here / "rollout")})
    tiny_run.publish(plan, lambda output: output.write("weights", 0, tables["weights"]))
    return run
