"""Why the Hugging Face hub, or what answers in its place, did not give what it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

_NOTHING_THERE = {"RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError"}
_LOG_IN = "log in (`hf auth login`), or set HF_TOKEN"


def hub_refusal(error: BaseException, answers_are_json: bool = False) -> str | None:
    """Return in one line what the hub objects to, or what answered in its place, and the remedy.

    Nothing is quoted that a server or a library said: it may hold the token, or a password of HF_ENDPOINT.

    Args:
        error: what asking the hub led to, with its causes.
        answers_are_json: no file was read, so that what is no JSON, or another one, is no answer of the hub.

    Returns:
        None where the hub says that there is no such repository, revision or file, where nothing answered, and where
        the failure was another.
    """
    from huggingface_hub import constants, get_token  # slow to import

    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    not_the_hub = {"FileMetadataError", *(("JSONDecodeError", "KeyError") if answers_are_json else ())}
    for cause in causes(error):
        kinds = {kind.__name__ for kind in type(cause).__mro__}
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if "GatedRepoError" in kinds:
            return f"it is gated: accept its terms on its page there, then {_LOG_IN}, of the account that accepted"
        if kinds & _NOTHING_THERE:
            return None
        if kinds & {"LocalProtocolError", "UnicodeEncodeError"}:
            return f"the token holds characters that none has; {_LOG_IN}"
        if "UnsupportedProtocol" in kinds:
            return f"HF_ENDPOINT must begin with https:// or http://; got '{host}'"
        if kinds & not_the_hub or "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return (
                f"what answers as {host} is not the hub: a log-in page of the network, or a proxy? open any page in a"
                " browser and log in there, or check HF_ENDPOINT and HTTPS_PROXY"
            )
        if status == 401:
            wrong = "wants a token" if get_token() is None else "refuses the token, which is wrong or has expired"
            return f"{host} {wrong}; {_LOG_IN}"
        if status == 403:
            return f"{host} denies access: the token has no right to it, or it is disabled there; see its page"
        if status == 407:
            return "a proxy on the way wants a log-in; check HTTPS_PROXY"
        if status == 429:
            return f"{host} was asked too often; wait a few minutes"
        if status is not None:
            return f"{host} answers with status {status}; try again later, or check HF_ENDPOINT"
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
