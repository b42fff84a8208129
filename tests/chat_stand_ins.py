"""What tests of the server of `compare-chat` share: it answers in a thread, and a client asks it."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tamperfuse.commands.chat_server import ChatServer

SECONDS = 120  # that a test waits: other processes may have the processor


@contextmanager
def serving(server: ChatServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(SECONDS)


def connect(server: ChatServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=SECONDS)


def ask(server: ChatServer, prompt: str) -> list[dict[str, Any]]:
    connection = connect(server)
    connection.request("POST", "/ask", json.dumps({"prompt": prompt}), {"Content-Type": "application/json"})
    with connection.getresponse() as response:
        assert response.status == 200
        return [json.loads(line) for line in response]
