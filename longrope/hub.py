"""Repositories on the Hub: what users call them, and their files in the Hub's cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from longrope.errors import InputError, MissingRequirementError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
HUB_PAGE = re.compile(
    r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)?(?P<id>[\w.-]+/[\w.-]+?)(?:/tree/(?P<revision>[\w./-]+?)|/blob/.*)?/?"
)
URL = re.compile(r"\w+:/|git@")  # a path has lost the second slash
HUB_FILE, OLLAMA = re.compile(r"[\w.-]+/[\w.-]+/.+\.(gguf|safetensors)"), re.compile(r"[\w./-]+:[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def hub_name(name: str) -> str:
    """`org/name@revision` of what people copy from the Hub's pages, `https://huggingface.co/org/name/tree/revision`.

    A name that is none, or that is a path here, comes back as it is.
    """
    if Path(name).exists():
        return name
    found = HUB_PAGE.fullmatch(name)
    if found is None:
        return name
    return f"{found['id']}@{found['revision']}" if found["revision"] else found["id"]


def hub_id_of(name: str) -> str | None:
    """`org/name` or `org/name@revision` where a name means a repository; None for a path, and for what reads like neither."""
    found = hub_name(name)
    known = bool(HUB_ID.fullmatch(found)) and not found.startswith(".") and not Path(found).parent.exists()
    return found if known else None


def hint_for(name: str) -> str:
    """What to do about a name that is no path here, where it reads like one of another program's."""
    if URL.match(name):
        return (
            "; nothing is downloaded but repositories of the Hub, by the name ORG/NAME. Download it, and give its path"
        )
    if HUB_FILE.fullmatch(name):
        return "; download the file from its repository (hf download ORG/NAME FILE), and give its path"
    if OLLAMA.fullmatch(name):
        return "; if Ollama has a model of this name, `ollama show NAME --modelfile` says where its file lies"
    return ""


def hub_snapshot(hub_id: str, patterns: Sequence[str] = HUB_FILES) -> Path:
    """The folder of a repository's files that match, downloaded where they are not in the Hub's cache.

    Raises:
        InputError: there is no such repository.
        MissingRequirementError: the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repo, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns)))
    except RepositoryNotFoundError:
        raise InputError(f"{hub_id}: neither a folder here nor a repository on the Hub (or a private one)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise MissingRequirementError(
            f"{hub_id}: not a folder here, and the Hub cannot be reached ({type(error).__name__})"
        ) from None
