"""What the Hub and the network can answer, each as one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from longrope.errors import InputError, LongRopeError, MissingRequirementError

# Status → what it means here and what mends it; {hub} says what the server said.
STATUS = {
    401: "the token is missing, expired or revoked; log in with `hf auth login`, or set HF_TOKEN to a valid one",
    402: "the account's storage or plan does not suffice; free some or upgrade, and run the same command again",
    403: "the token may not write there; use a fine-grained token with write access to this namespace, or another --repo-id",
    404: "no such repository or revision, or this token may not see it; check --repo-id and --revision",
    408: "the Hub took too long; run the same command again",
    409: "somebody else made or changed it in the meantime; run the same command again, it plans anew",
    412: "a commit of somebody else came in between; nothing was changed, run the same command again, it plans anew",
    413: "the Hub takes no file or commit of this size; the account's storage is full, or the file has to be split",
    429: "too many requests",
}
# Of trusted publishing; older versions of huggingface_hub have no such class.
OIDC_ERROR = "OIDCError"
OIDC_PATH = "/oauth/token"
_OIDC_REFUSED = (
    "trusted publishing: the Hub does not take this job for a publisher; compare HF_OIDC_RESOURCE with the trusted "
    "publishers in the repository's settings, or unset it and use a token"
)
_QUOTA = ("quota", "storage limit", "storage space", "over the limit of your plan")
_SERVER = "the Hub has a fault of its own; run the same command again later, what was uploaded is kept"
_NETWORK = "cannot be reached; check the network (HF_ENDPOINT, HTTPS_PROXY) and run the same command again"


@contextmanager
def hub_errors(where: str) -> Iterator[None]:
    """Errors of huggingface_hub as LongRopeErrors of one line.

    Args:
        where: the repository, or what was asked of the Hub.

    Raises:
        InputError: a name or a card that the Hub would never take.
        MissingRequirementError: everything else that the Hub or the network refuses.
    """
    try:
        yield
    except LongRopeError:
        raise
    except Exception as error:
        explained = explain(error, where)
        if explained is None:
            raise
        raise explained from None


def explain(error: BaseException, where: str) -> LongRopeError | None:
    """The line for an error; None when neither the Hub nor the network is to blame."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HFValidationError):
            return InputError(f"{where}: not a name of a repository; expected ORG/NAME of letters, digits, - _ and .")
        if isinstance(cause, LocalTokenNotFoundError) or type(cause).__name__ == OIDC_ERROR:
            return MissingRequirementError(f"{where}: {STATUS[401]}")
        if isinstance(cause, OfflineModeIsEnabled):
            return MissingRequirementError(f"{where}: the Hub is switched off; unset HF_HUB_OFFLINE")
        if isinstance(cause, GatedRepoError):
            return MissingRequirementError(
                f"{where}: gated; accept its terms on its page with the account of this token"
            )
        if isinstance(cause, HfHubHTTPError):
            return _of_status(cause, where)
        if type(cause).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
            return MissingRequirementError(f"{where}: the Hub {_NETWORK}")
        if isinstance(cause, ValueError) and (refused := _refused_by_value(cause, where)):
            return refused
        cause = cause.__cause__ or cause.__context__
    return None


def _of_status(error: object, where: str) -> LongRopeError:
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else 0
    said = _one_line(str(getattr(error, "server_message", None) or ""))
    if status < 500 and str(getattr(response, "url", "")).endswith(OIDC_PATH):
        return MissingRequirementError(f"{where}: {_OIDC_REFUSED} (HTTP {status}{': ' + said if said else ''})")
    if any(word in said.lower() for word in _QUOTA):
        return MissingRequirementError(f"{where}: {STATUS[402]} ({said})")
    advice = STATUS.get(status, _SERVER if status >= 500 else "the Hub refused this")
    if status == 429:
        wait = response.headers.get("retry-after") if response is not None else None
        advice += f"; run the same command again in {wait or 'some'} seconds, what was uploaded is kept"
    kind = InputError if status in (400, 422) else MissingRequirementError
    return kind(f"{where}: {advice} (HTTP {status}{': ' + said if said else ''})")


def _refused_by_value(error: ValueError, where: str) -> LongRopeError | None:
    """huggingface_hub says these as plain ValueErrors."""
    said = str(error)
    if said.startswith("Invalid metadata in README.md"):
        return InputError(f"{where}: the Hub does not take the card's metadata ({_one_line(said.partition('- ')[2])})")
    if said.startswith("LFS batch API returned errors"):
        full = any(word in said.lower() for word in _QUOTA)
        said = _one_line(said.partition("`")[2])
        return MissingRequirementError(f"{where}: {STATUS[402] if full else 'the storage refused a file'} ({said})")
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
