"""Files of a repository on the Hub, read by ranges of their bytes, and what the Hub refuses as a line that says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from longrope.errors import LongRopeError, MissingRequirementError


class RemoteFile:
    """A file of a repository.

    Args:
        hub_id: `org/name` or `org/name@revision`.
        name: its place in the repository.
        size: of it in bytes; None asks the Hub.
    """

    def __init__(self, hub_id: str, name: str, size: int | None = None) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        repo, _, revision = hub_id.partition("@")
        self._url = hf_hub_url(repo, name, revision=revision or None)
        self.size = size if size is not None else get_hf_file_metadata(self._url).size or 0

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
def hub_errors(hub_id: str) -> Iterator[None]:
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
