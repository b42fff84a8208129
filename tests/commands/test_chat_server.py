"""The server of `compare-chat`: whose requests it answers, which it refuses, and how its answers end."""

import json
import threading
import time
from collections.abc import Iterator

import pytest

from chat_stand_ins import SECONDS, ask, connect, serving
from tamperfuse.commands import chat_server
from tamperfuse.commands.chat_server import LARGEST_BODY, ChatServer, Events

JSON = {"Content-Type": "application/json"}
BODY = json.dumps({"prompt": "hello"})


@pytest.fixture(scope="module")
def bare_server() -> Iterator[ChatServer]:
    with ChatServer(0) as server, serving(server):
        yield server


@pytest.fixture
def plain_server(bare_server: ChatServer) -> ChatServer:
    """A server without models: it repeats the prompt."""
    bare_server.page, bare_server.answer = "<p>page</p>", echo
    return bare_server


def echo(prompt: str) -> Events:
    yield {"model": 0, "text": prompt, "end": "stop"}


def request(server: ChatServer, method: str, path: str, body: str | None, headers: dict[str, str]) -> tuple[int, str]:
    connection = connect(server)
    connection.request(method, path, body, headers)
    with connection.getresponse() as response:
        return response.status, response.read().decode()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost:1:2", ""])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_host_is_refused(plain_server: ChatServer, method: str, host: str) -> None:
    path, body = ("/", None) if method == "GET" else ("/ask", BODY)
    status, text = request(plain_server, method, path, body, {**JSON, "Host": host})
    assert status == 403 and "not this machine" in json.loads(text)["error"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9", "https://HOST", "HOST"])
def test_another_origin_is_refused(plain_server: ChatServer, origin: str) -> None:
    host = f"127.0.0.1:{plain_server.server_address[1]}"
    headers = {**JSON, "Origin": origin.replace("HOST", host)}
    status, text = request(plain_server, "POST", "/ask", BODY, headers)
    assert status == 403 and "Another page" in json.loads(text)["error"]


@pytest.mark.parametrize("host", ["127.0.0.1:HERE", "localhost:HERE", "LOCALHOST:9000"])
def test_the_page_s_own_requests_are_answered(plain_server: ChatServer, host: str) -> None:
    host = host.replace("HERE", str(plain_server.server_address[1]))  # 9000: forwarded by ssh
    headers = {**JSON, "Host": host, "Origin": f"http://{host.lower()}"}
    status, text = request(plain_server, "POST", "/ask", BODY, headers)
    assert status == 200 and json.loads(text.splitlines()[0])["text"] == "hello"


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/ask", BODY, {"Content-Type": "text/plain"}, 415),
        ("/ask", BODY, {}, 415),
        ("/other", BODY, JSON, 404),
        ("/ask", "{", JSON, 400),
        ("/ask", "[" * 50_000, JSON, 400),
        ("/ask", "[]", JSON, 400),
        ("/ask", '{"prompt": 1}', JSON, 400),
        ("/ask", '{"prompt": " "}', JSON, 400),
        ("/ask", None, {**JSON, "Content-Length": str(LARGEST_BODY + 1)}, 413),
        ("/ask", None, {**JSON, "Content-Length": "9" * 30}, 411),
        ("/ask", None, {**JSON, "Content-Length": "-1"}, 411),
        ("/ask", None, {**JSON, "Transfer-Encoding": "chunked"}, 411),
    ],
)
def test_unusable_requests_are_refused_in_a_sentence(
    plain_server: ChatServer, path: str, body: str | None, headers: dict[str, str], status: int
) -> None:
    connection = connect(plain_server)
    connection.putrequest("POST", path, skip_accept_encoding=True)
    content = {} if body is None else {"Content-Length": str(len(body))}
    for name, value in {**content, **headers}.items():
        connection.putheader(name, value)
    connection.endheaders((body or "").encode() or None)
    with connection.getresponse() as response:
        assert response.status == status
        assert json.loads(response.read())["error"].endswith(".")
    assert ask(plain_server, "next")[0]["text"] == "next"


def test_the_page_is_sent_with_its_headers(plain_server: ChatServer) -> None:
    connection = connect(plain_server)
    connection.request("GET", "/?x")
    with connection.getresponse() as response:
        assert response.read() == b"<p>page</p>"
        assert response.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert "Python" not in response.headers["Server"]
    assert request(plain_server, "GET", "/etc/passwd", None, {})[0] == 404


def test_a_client_that_goes_away_stops_its_generation(plain_server: ChatServer) -> None:
    stopped = threading.Event()

    def endless(prompt: str) -> Events:
        try:
            for number in range(1_000_000):
                yield {"model": 0, "text": str(number)}
                time.sleep(0.005)
        finally:
            stopped.set()

    plain_server.answer = endless
    connection = connect(plain_server)
    connection.request("POST", "/ask", BODY, JSON)
    response = connection.getresponse()
    assert json.loads(response.readline())["text"] == "0" and not stopped.is_set()
    response.close()
    connection.close()
    assert stopped.wait(SECONDS)
    plain_server.answer = echo
    assert ask(plain_server, "next")[0]["text"] == "next"


def test_one_prompt_is_answered_at_a_time(plain_server: ChatServer) -> None:
    running, most = [0], [0]

    def slow(prompt: str) -> Events:
        running[0] += 1
        most[0] = max(most[0], running[0])
        for _ in range(5):
            time.sleep(0.005)
            yield {"model": 0, "text": prompt}
        running[0] -= 1

    plain_server.answer = slow
    threads = [threading.Thread(target=ask, args=(plain_server, "hello")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert most == [1] and running == [0]


def test_the_end_of_the_server_ends_an_answer() -> None:
    def endless(prompt: str) -> Events:
        while True:
            yield {"model": 0, "text": "more"}
            time.sleep(0.005)

    with ChatServer(0) as server, serving(server):
        server.answer = endless
        connection = connect(server)
        connection.request("POST", "/ask", BODY, JSON)
        with connection.getresponse() as response:
            first = response.readline()
            server.shutdown()
            assert json.loads((first + response.read()).splitlines()[-1])  # it ends, in a whole line


def test_an_answer_that_fails_leaves_the_server_running(
    plain_server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[str] = []
    monkeypatch.setattr(chat_server.log, "error", lambda text, *values: errors.append(text % values))

    def failing(prompt: str) -> Events:
        yield {"model": 0, "text": "begins"}
        raise RuntimeError("out of memory")

    plain_server.answer = failing
    assert ask(plain_server, "hello") == [{"model": 0, "text": "begins"}]  # without "done"
    plain_server.answer = echo
    assert ask(plain_server, "next")[-1] == {"done": True}
    assert errors == ["A request failed: RuntimeError: out of memory"]
