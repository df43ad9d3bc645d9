"""Which environment variables are hidden from plug-ins and from the process that compares expressions."""

from __future__ import annotations

import os

import pytest

from dapo_stages.rewards.isolated.symbolic import Worker
from dapo_stages.rewards.secrecy import without_secrets

SECRETS = """
    WANDB_API_KEY HF_TOKEN HUGGING_FACE_HUB_TOKEN OPENAI_API_KEY DAPO_STAGES_API_KEY AWS_ACCESS_KEY_ID PGPASSWORD
    AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN GOOGLE_APPLICATION_CREDENTIALS GITHUB_TOKEN DB_PASSWORD MYSQL_PWD
    SSH_AUTH_SOCK SENTRY_DSN apikey api_key GITHUBTOKEN CI_JOB_TOKEN CLIENT_SECRET GH_PAT SIGNING_KEY
    PASSPHRASE GPG_PASSPHRASE JWT MY_JWT BEARER API_BEARER AZURE_STORAGE_CONNECTION_STRING DB_CONNSTR SLACK_WEBHOOK_URL
    DISCORD_WEBHOOK BASIC_AUTH OAUTH2_PROXY HTTP_AUTHORIZATION SESSION_COOKIE COOKIES DBUS_SESSION_BUS_ADDRESS SAS_URL
    MYSQLPWD DBPWD SMTP_PASS REDIS_PW TLS_PRIVATE URL_SIGNATURE DEPLOYKEY SSHKEY dbPassword accessToken api-key KEY PASS
    service.credentials npm_config_//registry.npmjs.org/:_authToken TOTP MY_CREDS WALLET_MNEMONIC
"""
PLAIN = """
    PATH HOME PWD OLDPWD LANG LC_ALL PYTHONPATH OMP_NUM_THREADS CUDA_VISIBLE_DEVICES TOKENIZERS_PARALLELISM RANK
    WORLD_SIZE HF_HOME LD_LIBRARY_PATH VIRTUAL_ENV TMPDIR KEYBOARD PATTERN AUTHOR COMPASS MONKEY GIT_AUTHOR_NAME
    SSL_CERT_FILE REQUESTS_CA_BUNDLE NO_PROXY MASTER_ADDR MASTER_PORT XDG_RUNTIME_DIR TRANSFORMERS_CACHE SIGNAL PASSAGE
    CUBLAS_WORKSPACE_CONFIG DAPO_STAGES_PRELOAD_IDLE XAUTHORITY BYPASSED TOKENIZER SASHIMI
"""


@pytest.mark.parametrize("name", SECRETS.split())
def test_a_name_that_speaks_of_a_secret(name: str) -> None:
    assert without_secrets({name: "x", "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize("name", PLAIN.split())
def test_a_name_that_speaks_of_none(name: str) -> None:
    assert without_secrets({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "value",
    [
        *("http://me:pass@proxy:3128", "redis://:pass@cache:6379/0", "postgresql+asyncpg://u:p%40@db/x"),
        *("https://x.blob.core.windows.net/c?sv=2024&sig=abc%3D", "https://x/y?access_token=abc", "https://x/?token=1"),
        "Server=tcp:x;Database=d;User ID=u;Password=p;",
        "host=db user=u password=p",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=abc==;EndpointSuffix=core.windows.net",
        "Endpoint=sb://x/;SharedAccessKeyName=n;SharedAccessKey=abc=",
        "https://hooks.slack.com/services/T0/B0/x",
        "https://discord.com/api/webhooks/1/x",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n",
        "x\n-----BEGIN PRIVATE KEY-----",
        '{"type": "service_account", "private_key": "x"}',
        '{"auths": {"ghcr.io": {}}}',
        *(
            "Bearer abc",
            "Basic dTpw",
            "sk-proj-0123456789abcdef",
            "'sk-ant-0123456789abcdef'",
            "sk_live_0123456789abcd",
        ),
        *("ghp_0123456789abcdef", "github_pat_0123456789abcdef", "glpat-0123456789abcdef", "hf_0123456789abcdef"),
        *("AKIA0123456789ABCDEF", "ASIA0123456789ABCDEF", "xoxb-0123456789-abcdef", "AIza0123456789abcdef"),
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
    ],
)
def test_a_value_that_is_one_under_whatever_name(value: str) -> None:
    assert without_secrets({"SERVICE": value}) == {}
    assert without_secrets({"SERVICE": value}, ["SERVICE"]) == {"SERVICE": value}


@pytest.mark.parametrize(
    "value",
    [
        *("http://proxy:3128", "http://x/a:b@c", "https://x/?page=2", "/opt/sk-learn-0123456789abcdef/bin:/usr/bin"),
        *("me@example.org", "hf_transfer", "basically", "eyJ", "key", "a=b;c=d", "/home/me/hf_0123456789abcdef/models"),
    ],
)
def test_a_value_that_is_none(value: str) -> None:
    assert without_secrets({"SERVICE": value}) == {"SERVICE": value}


def test_what_compares_answers_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It parses text that the policy wrote."""
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setenv("PLAIN", "x")
    environment = Worker()._child._environment
    assert environment is not None and environment["PLAIN"] == "x" and environment["PATH"] == os.environ["PATH"]
    assert "HF_TOKEN" not in environment
