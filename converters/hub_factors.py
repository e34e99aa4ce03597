"""Factors of a repository on the Hub, without its weights.

org/name ──► factors.json │ longrope.json │ config.json │ graph of an ONNX export │ head of a GGUF file ──► RescaleFactors
             (by Hub's cache, also offline)                 (by Range: the head, and the factors' own bytes)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from converters import registry
from longrope.checkpoint import hub_snapshot
from longrope.errors import InputError, LongRopeError, MissingRequirementError
from longrope.factors import RescaleFactors
from longrope.hf_config import from_config
from longrope.reading import read_object
from longrope.unfinished import temporary_folder

# What this program writes them to, the complete records first.
RECORDS = ("factors.json", "longrope.json")
CONFIG = "config.json"


def hub_factors(hub_id: str) -> RescaleFactors:
    """Factors of a repository, exactly as stored; of its weights nothing is downloaded.

    Args:
        hub_id: `org/name` or `org/name@revision`.

    Raises:
        InputError: no such repository, or it holds no factors.
        MissingRequirementError: the Hub cannot be reached, or HF_HUB_OFFLINE is set and the cache does not have it.
    """
    folder = hub_snapshot(hub_id, (*RECORDS, CONFIG))
    for name in RECORDS:
        if (folder / name).is_file():
            return RescaleFactors.load(folder / name)
    names = _names(hub_id, folder)
    graphs = [name for name in names if name.endswith(".onnx")]
    if graphs and not any(name.endswith(".safetensors") for name in names):  # a config.json holds no start tokens
        found = registry.converter("onnx").read_factors(hub_snapshot(hub_id, graphs[:1]) / graphs[0])
    elif (folder / CONFIG).is_file():
        found = from_config(read_object(folder / CONFIG, f"{hub_id}: {CONFIG}"))
    else:
        found = _of_gguf(hub_id, [name for name in names if name.endswith(".gguf") and "-of-0" not in name])
    if found is None:
        raise InputError(f"{hub_id}: holds no rescale factors; `inspect` says which RoPE it has")
    return found


def _names(hub_id: str, folder: Path) -> Sequence[str]:
    """Names of a repository's files; offline, of those in the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    repo, _, revision = hub_id.partition("@")
    with _errors(hub_id):
        try:
            return sorted(HfApi().list_repo_files(repo, revision=revision or None))
        except OfflineModeIsEnabled:
            return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*"))


def _of_gguf(hub_id: str, names: Sequence[str]) -> RescaleFactors | None:
    """Those of a repository's first whole GGUF file: every weight type of a model has the same."""
    if not names:
        raise InputError(f"{hub_id}: expected a {CONFIG}, factors.json, an ONNX or a GGUF file in one part, found none")
    from converters.gguf.remote import hollow_copy

    with temporary_folder("hub") as room, _errors(hub_id):
        file = Path(room, Path(names[0]).name)
        hollow_copy(_RemoteFile(hub_id, names[0]), file)
        return registry.converter("gguf").read_factors(file)


class _RemoteFile:
    """A file of a repository, read by ranges of its bytes."""

    def __init__(self, hub_id: str, name: str) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        repo, _, revision = hub_id.partition("@")
        self._url = hf_hub_url(repo, name, revision=revision or None)
        self.size = get_hf_file_metadata(self._url).size or 0

    def read(self, start: int, stop: int) -> bytes:
        """Its bytes from `start` up to `stop`."""
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
        with get_session().stream("GET", self._url, headers=headers) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:  # the whole file would come
                raise MissingRequirementError(f"{self._url}: the Hub sends no parts of files; download it and name it")
            return bytes(response.read())


@contextmanager
def _errors(hub_id: str) -> Iterator[None]:
    """What the Hub or the network refuses, as a line that says so."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except LongRopeError:
        raise
    except Exception as error:
        of_network = type(error).__module__.startswith(("http", "httpcore"))
        if not (of_network or isinstance(error, HfHubHTTPError | OSError)):
            raise
        raise MissingRequirementError(f"{hub_id}: the Hub cannot be reached ({type(error).__name__})") from None
