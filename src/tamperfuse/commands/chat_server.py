"""A server for one local page: it sends the page, and answers to the prompts that the page sends, as they are generated.

    GET  /      the page
    POST /ask   {"prompt": text} → events, one JSON object a line, until {"done": true}

It listens on this machine only. Other pages in the same browser could still send requests to it, so it refuses requests that name
another host (DNS rebinding) or that another origin sent. It knows nothing of models: what answers a prompt is handed to it.
"""

import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from tamperfuse.records.errors import UserError

log = logging.getLogger("tamperfuse")

Event = dict[str, Any]
Events = Generator[Event, None, None]

ADDRESS = "127.0.0.1"
# With any port: `ssh -L` may forward another one. Names of other hosts that resolve to this machine are refused.
LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?", re.I)
LARGEST_BODY = 256 * 1024  # bytes of a request
ENDING_SECONDS = 10  # most that the end of the server waits for the token that is being generated
WAITING_SECONDS = 60  # for a client that neither sends what it announced nor reads what it is sent
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",  # the rest of the policy is in the page
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ChatServer(ThreadingTCPServer):
    """The server. It listens from its creation on, and answers as soon as :meth:`serve` is called.

    Args:
        port: 0 for any free one.

    Attributes:
        page: the page, as HTML.
        answer: from a prompt to the events of its answers; closing the generator must end the work. One runs at a time.

    Raises:
        UserError: the port is in use, or may not be used.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int) -> None:
        self.page = ""
        self.answer: Callable[[str], Events]
        self._answering = threading.Lock()
        self._ended = threading.Event()
        try:
            super().__init__((ADDRESS, port), _ChatHandler)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                f"Port {port} of {ADDRESS} cannot be used ({reason}): choose another --port, or leave it out for any free one."
            ) from error

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def serve(self) -> None:
        """Answer requests until Ctrl-C or :meth:`shutdown`; an answer that is being generated ends with its next token."""
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            self._ended.set()
            self._answering.acquire(timeout=ENDING_SECONDS)  # the interpreter must not end while a thread computes

    def events(self, prompt: str) -> Events:
        """The events of a prompt's answers, after those of earlier requests have ended."""
        with self._answering, closing(self.answer(prompt)) as events:
            for event in events:
                if self._ended.is_set():
                    return
                yield event
        yield {"done": True}

    def handle_error(self, request: object, client_address: object) -> None:
        """Log in one line what ended a request, unless it was a client that went away."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            log.error("A request failed: %s: %s", type(error).__name__, error)


class _ChatHandler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0: an answer ends where the connection does."""

    server: ChatServer
    server_version, sys_version = "tamperfuse", ""
    timeout = WAITING_SECONDS
    disable_nagle_algorithm = True  # every token is sent at once

    def do_GET(self) -> None:
        """Send the page."""
        if not self._is_ours():
            return
        if self.path.partition("?")[0] != "/":
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page: open /.")
            return
        self._begin(HTTPStatus.OK, "text/html; charset=utf-8")
        self.wfile.write(self.server.page.encode("utf-8"))

    def do_POST(self) -> None:
        """Send the answers to a prompt while they are generated. A client that goes away ends the generation."""
        body = self._body()
        if body is None or not self._is_ours():
            return
        if self.path != "/ask":
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such address: send prompts to /ask.")
            return
        prompt = _prompt_of(body)
        if not prompt:
            self._refuse(HTTPStatus.BAD_REQUEST, "The request has no prompt: write one.")
            return
        self._begin(HTTPStatus.OK, "application/x-ndjson")
        with closing(self.server.events(prompt)) as events:
            for event in events:
                self._send(event)

    def _is_ours(self) -> bool:
        """Whether the request comes from the page itself; refuses it otherwise."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not LOCAL_HOST.fullmatch(host):
            self._refuse(HTTPStatus.FORBIDDEN, f"The host of the request is not this machine: open {self.server.url}")
            return False
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            self._refuse(HTTPStatus.FORBIDDEN, "Another page sent the request: only this server's own page may.")
            return False
        # A form of another page cannot send JSON, and a script of another page is not allowed to.
        if self.command == "POST" and self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The request is not JSON: send application/json.")
            return False
        return True

    def _body(self) -> bytes | None:
        """The body of a request; None if its length is refused, which is answered then."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,18}", length):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "The request does not say how long it is: send Content-Length.")
            return None
        if int(length) > LARGEST_BODY:
            limit = f"{LARGEST_BODY // 1024} KiB"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The prompt is longer than {limit}: shorten it.")
            return None
        return self.rfile.read(int(length))

    def _begin(self, status: HTTPStatus, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._begin(status, "application/json")
        self._send({"error": sentence})

    def _send(self, event: Event) -> None:
        self.wfile.write(json.dumps(event).encode("ascii") + b"\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the terminal is no access log."""


def _prompt_of(body: bytes) -> str:
    """The prompt of a request; "" if there is none."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    prompt = request.get("prompt") if isinstance(request, dict) else None
    return prompt.strip() if isinstance(prompt, str) else ""
