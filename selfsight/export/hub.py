"""Exports on the Hugging Face hub."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from selfsight.blame import words
from selfsight.errors import UserError, some
from selfsight.export.place import RECORD

# what the hub itself puts into a new repository
_BY_THE_HUB = {".gitattributes", "README.md", ".gitignore", "LICENSE"}


def check_repository(repository: str) -> None:
    """Raises: UserError for what is no name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        fits = repository.count("/") == 1
    except HFValidationError:
        fits = False
    if not fits:
        raise UserError(f"--push {repository}: is no name on the hub; give ORG/NAME")


def check_token(repository: str) -> None:
    """Raises: UserError if nobody is logged in on this machine."""
    from huggingface_hub import get_token

    if not get_token():
        raise UserError(
            f"--push {repository}: no token of the Hugging Face hub; log in with `hf auth login`, "
            f"or set HF_TOKEN"
        )


def push(folder: Path, files: Iterable[str], repository: str, private: bool) -> str:
    """Upload an export, as one commit. Returns: the address of the repository.

    A new repository is private, or public; an existing one stays as it is, and must hold an export
    or nothing.
    Raises: UserError if the hub refuses, or cannot be reached: the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        if api.repo_exists(repository):
            _check_content(api, repository)
            address = f"{api.endpoint}/{repository}"
        else:
            address = str(api.create_repo(repository, private=private))
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Export of an encoder by Selfsight",
        )
    except UserError:
        raise
    except Exception as error:  # of many libraries: no network, no such organisation, no right
        raise UserError(
            f"--push {repository}: the hub did not take it ({words(error)[:300]}); the export is "
            f"complete in '{folder}': run the same command again"
        ) from None
    return address


def _check_content(api: Any, repository: str) -> None:
    """Raises: UserError for a repository with other files than an export."""
    names = api.list_repo_files(repository)
    if RECORD not in names and set(names) - _BY_THE_HUB:
        others = some(sorted(set(names) - _BY_THE_HUB))
        raise UserError(
            f"--push {repository}: the repository holds other files than an export ({others}); "
            f"choose another name"
        )
