"""A chat model behind an OpenAI-compatible endpoint, through the openai client; every failure is a `UserError`.

The client repeats a request after 408, 409, 429, 5xx, a timeout or a lost connection, with exponential backoff, and waits as long
as `Retry-After` says.
"""

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tamperfuse.records.errors import UserError, shown

KEY = "OPENAI_API_KEY"
_PLACEHOLDER = "none"  # for local servers, which ask for no key
_REJECTED = ("content_filter", "content_policy_violation", "context_length_exceeded")  # codes of HTTP 400
_RESUME = "the replies so far are stored, so the same command resumes"


@dataclass(frozen=True)
class Reply:
    """A model's reply.

    Attributes:
        text: of the reply; None if the endpoint's answer is no chat completion.
        sent: tokens of the request, as the endpoint counts them; 0 if it does not.
        received: tokens of the reply, likewise.
        rejected: why the endpoint will not answer this request at all (a content filter, its length); "" otherwise.
    """

    text: str | None
    sent: int = 0
    received: int = 0
    rejected: str = ""


def check_url(url: str) -> None:
    """Check the address of an endpoint.

    Raises:
        UserError: it is no address, or holds a key, which would be written into results.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        secret = bool(parts.username or parts.password or parts.query)
    except ValueError:
        usable = secret = False
    if secret:
        raise UserError(
            f"The endpoint's base_url has a user name, a password or a query: leave them out and set {KEY}, since "
            "parameters are written into results."
        )
    if not usable:
        raise UserError(
            f"{shown(repr(url))} is no base_url of an endpoint: write, for example, http://localhost:8000/v1."
        )


def check_usable(base_url: str) -> None:
    """Check, without a request, that the openai package is installed and that there is a key for an endpoint that needs one.

    Raises:
        UserError: one of them is missing, or the key cannot be one.
    """
    _openai()
    _key(base_url)


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise UserError("The judge llm needs the openai package: pip install 'tamperfuse[judge]'") from error
    return openai


class Endpoint:
    """One model behind one endpoint.

    Args:
        base_url: of the endpoint, up to and including `/v1`.
        model: as the endpoint names it.
        timeout: seconds to wait for a reply.
        retries: how often a failed request is repeated.
        options: further fields of the request, such as the temperature.

    Raises:
        UserError: the openai package or the key is missing.
    """

    def __init__(self, base_url: str, model: str, timeout: float, retries: int, options: Mapping[str, Any]) -> None:
        self.base_url, self.model, self.timeout, self.retries = base_url, model, timeout, retries
        self._openai = _openai()
        self._options, self._key = dict(options), _key(base_url)
        self._client = self._openai.OpenAI(api_key=self._key, base_url=base_url, timeout=timeout, max_retries=retries)
        self._once = self._client.with_options(max_retries=0)

    def close(self) -> None:
        """End all connections; requests that are under way fail."""
        self._client.close()

    def check_reachable(self, messages: list[dict[str, str]]) -> Reply | None:
        """Send a first request, without repeating it, so that an address where nothing listens is reported at once.

        Returns:
            Its reply; None if it failed in a way that may pass.

        Raises:
            UserError: nothing listens at the address, or what :meth:`ask` raises for an error that does not pass.
        """
        try:
            return self._send(self._once, messages)
        except (
            self._openai.APIConnectionError,
            self._openai.RateLimitError,
            self._openai.InternalServerError,
        ) as error:
            for cause in _causes(error):
                if isinstance(cause, ConnectionRefusedError | socket.gaierror):  # refused, or an unknown host
                    raise UserError(
                        f"The endpoint {self.base_url} cannot be reached ({self._reason(cause)}): start the server, or "
                        "correct `base_url`."
                    ) from error
            return None
        except self._openai.APIError as error:
            raise self._explained(error) from error

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Send a request, and repeat it if it fails in a way that may pass.

        Args:
            messages: of the conversation, with `role` and `content`.

        Raises:
            UserError: no key that the endpoint accepts, no such model, no reply after all retries, or an answer in HTML.
        """
        try:
            return self._send(self._client, messages)
        except self._openai.APIError as error:
            raise self._explained(error) from error

    def _send(self, client: Any, messages: list[dict[str, str]]) -> Reply:
        try:
            completion = client.chat.completions.create(model=self.model, messages=messages, extra_body=self._options)
            if isinstance(completion, str):  # the answer's type was not JSON
                raise _html(self.base_url, completion)
            usage = completion.usage
            return Reply(
                completion.choices[0].message.content or "",
                int(getattr(usage, "prompt_tokens", 0) or 0),
                int(getattr(usage, "completion_tokens", 0) or 0),
            )
        except self._openai.BadRequestError as error:
            if error.code in _REJECTED:
                return Reply("", rejected=str(error.code))
            raise
        except (ValueError, TypeError, AttributeError, IndexError):  # JSON that is no completion, or no JSON
            return Reply(None)

    def _explained(self, error: Exception) -> UserError:
        openai, place, tries = self._openai, f"The endpoint {self.base_url}", self.retries + 1
        reason = self._reason(error)
        if isinstance(error, openai.APIStatusError) and error.status_code < 500 and _is_html(error.response.text):
            return _html(self.base_url, error.response.text)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return UserError(f"{place} refuses the key ({reason}): set {KEY} to a key of that endpoint.")
        if isinstance(error, openai.NotFoundError):
            return UserError(
                f"{place} has no model {self.model!r} ({reason}): correct `model`, or `base_url`, which often ends in /v1."
            )
        if isinstance(error, openai.RateLimitError):
            advice = f"wait, lower `concurrency` or raise `retries`; {_RESUME}"
            return UserError(f"{place} still limits requests after {tries} tries ({reason}): {advice}.")
        if isinstance(error, openai.APITimeoutError):
            advice = f"raise `timeout` or lower `concurrency`; {_RESUME}"
            return UserError(f"{place} did not answer within {self.timeout:g} s in {tries} tries: {advice}.")
        if isinstance(error, openai.APIConnectionError | openai.InternalServerError):
            return UserError(f"{place} failed in {tries} tries ({reason}): check the server; {_RESUME}.")
        return UserError(f"{place} refuses the request ({reason}): correct `options` or `model`.")

    def _reason(self, error: BaseException) -> str:
        """The error's text on one line, shortened, without the key."""
        causes = [str(cause) for cause in _causes(error) if isinstance(cause, OSError)]
        text = " ".join((causes or [str(error)])[0].split()) or type(error).__name__
        return shown(text.replace(self._key, "***") if self._key != _PLACEHOLDER else text)


def _key(base_url: str) -> str:
    """The key of the environment; a placeholder for servers of this machine or of a private network.

    Raises:
        UserError: there is none, or it cannot be a key.
    """
    key = os.environ.get(KEY, "").strip()
    if not key and not _is_private(base_url):
        raise UserError(f"The endpoint {base_url} needs a key: set the environment variable {KEY}.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"The environment variable {KEY} holds characters that no key has: set it again.")
    return key or _PLACEHOLDER


def _is_private(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost"


def _html(base_url: str, text: str) -> UserError:
    kind = "an HTML page" if _is_html(text) else "text"
    return UserError(
        f"{base_url} returns {kind} instead of a chat completion: correct `base_url`, which often ends in /v1."
    )


def _is_html(text: str) -> bool:
    return "<html" in text[:1_000].casefold() or "<!doctype" in text[:1_000].casefold()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
