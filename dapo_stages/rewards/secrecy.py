"""Detects environment variables that look like secrets, by their names and values.

It keeps keys away from code that does not need them, where they could end up in a log or a cache by mistake. It does
not stop an attacker: a process of the same user can read the environment of this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# Words of a name, where `apiKey` and `api-key` count as API_KEY; then patterns that may also be parts of a word.
_WORDS = (
    *("KEYS?", "PASS", "PW", "PAT", "DSN", "SALT", "SAS", "PRIVATE", "SIGNATURES?", "CREDS?", "SESSIONS?", "SESSID"),
    *("OTP", "TOTP", "MNEMONIC"),
)
_PARTS = (
    "TOKENS?(?:_|$)",
    "SECRET",
    "PASSW",
    "PASSPHRASE",
    "PASSCODE",
    "CREDENTIAL",
    "COOKIE",
    "BEARER",
    "JWT",
    "WEBHOOK",
    "AUTH(?!OR(?!IZ))",  # not author, not authority
    "CONN(?:ECTION)?_?STR",
    "(?:API|SSH|GPG|ACCESS|PRIVATE|SIGNING|ENCRYPTION|MASTER|DEPLOY)_?KEY",
    "(?<!^)(?<!^OLD)PWD$",
)
_NAME = re.compile("|".join([f"(?:^|_)(?:{'|'.join(_WORDS)})(?:_|$)", *_PARTS]))
_PASSWORD = "pass(?:word|wd|phrase)?|pwd|secret|(?:access_?)?token|(?:account|shared_?access|api|access)_?key"
_SAID = re.compile(
    rf"""
    [a-z][a-z0-9+.-]*://[^/\s@]*:[^/\s@]+@                          # a URL with a password
    | [?&](?:sig|signature|key|x-amz-signature|{_PASSWORD})=[^&\s]   # or with a key among its parameters
    | \b(?:{_PASSWORD}|sharedaccesssignature)\s*=\s*[^\s;]           # host=h password=p; AccountKey=k
    | "(?:{_PASSWORD}|private_key|auths?)"\s*:                       # the same in JSON
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
    | ^\s*(?:bearer|basic)\s+\S
    | hooks\.slack\.com/|/api/webhooks/|webhook\.office\.com/
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Complete values with the prefix of their issuer.
_ISSUED = re.compile(
    r"sk-[\w-]{12,}|[spr]k_(live|test)_\w{12,}|gh[pousr]_\w{12,}|github_pat_\w{12,}|glpat-[\w-]{12,}|hf_\w{12,}"
    r"|A[KS]IA[0-9A-Z]{12,}|xox[a-z]-[\w-]{8,}|xapp-[\w-]{8,}|AIza[\w-]{12,}|ya29\.[\w.-]{12,}|npm_\w{12,}|pypi-[\w-]{12,}"
    r"|SG\.[\w.-]{12,}|nvapi-[\w-]{12,}|gsk_\w{12,}|r8_\w{12,}|dop_v1_\w{12,}|eyJ[\w-]{6,}\.[\w-]{4,}(\.[\w-]*)*"
)


def without_secrets(environment: Mapping[str, str], wanted: Sequence[str] = ()) -> dict[str, str]:
    """The environment without the variables that look like secrets; `wanted` ones are always included."""
    return {name: value for name, value in environment.items() if name in wanted or not _is_secret(name, value)}


def _is_secret(name: str, value: str) -> bool:
    words = re.sub(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()
    return bool(_NAME.search(words) or _SAID.search(value) or _ISSUED.fullmatch(value.strip(" \t\n'\"")))
