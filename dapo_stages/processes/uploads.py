"""Uploads to the Hugging Face Hub, with the token of the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dapo_stages.errors import ConfigError, HubError
from dapo_stages.processes.servers import secret

TOKEN = "HF_TOKEN"


def require_token() -> str:
    """The token. Raises ConfigError if it is not set."""
    token = secret(TOKEN)
    if not token:
        raise ConfigError(f"{TOKEN}: not set in the environment. Set it to a token that may write.")
    return token


def upload(repo: str, kind: Literal["model", "dataset"], folder: Path, message: str, *, private: bool) -> str:
    """Create the repository if it does not exist, and upload all files of a folder; returns the URL of the commit.

    Raises HubError if the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    api = HfApi(token=require_token())
    try:
        api.create_repo(repo, private=private or None, exist_ok=True, repo_type=kind)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, repo_type=kind, commit_message=message)
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise HubError(
            f"{repo}: the hub refused or cannot be reached ({' '.join(str(error).split())[:300]}). Check the "
            f"connection, and that {TOKEN} may write there, and run it again."
        ) from None
    return str(commit.commit_url)
