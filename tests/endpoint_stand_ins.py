"""A local server in place of an OpenAI-compatible endpoint, for tests of the judge `llm`."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from tamperfuse.evaluation.judges import Answer, JudgeData, Verdict
from tamperfuse.evaluation.judges.llm import LlmParameters, llm

Reply = tuple[int, str, str]  # status, content type, body
GOOD = "It does all of it.\nscore: 5"
HANG_UP: Reply = (0, "", "")
ANSWERS = [Answer(f"prompt {i}", f"response {i}") for i in range(12)]


def completion(text: str) -> Reply:
    """A reply with the text."""
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
    return 200, "application/json", json.dumps(body)


def failure(status: int, message: str = "no", code: str | None = None) -> Reply:
    return status, "application/json", json.dumps({"error": {"message": message, "type": "t", "code": code}})


class Server:
    """An endpoint whose answers a function decides: of the number of the request, and its body."""

    def __init__(self, reply: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        lock, outer = Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.keys.add(str(self.headers["Authorization"]))
                status, kind, text = reply(number, body)
                if status == 0:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Retry-After-Ms", "1")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def parameters(self, **values: Any) -> LlmParameters:
        return LlmParameters.model_validate({"model": "m", "base_url": self.url, "concurrency": 4, **values})


@contextmanager
def serving(reply: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Server]:
    server = Server(reply)
    Thread(target=server.http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


def grade(parameters: LlmParameters, answers: list[Answer] = ANSWERS) -> list[Verdict]:
    return llm(answers, JudgeData(None, [], 16), parameters)  # type: ignore[arg-type]


def prompt_number(body: dict[str, Any]) -> int:
    """Of the answer that a request is about."""
    return int(body["messages"][1]["content"].split("prompt ")[1].split()[0])
