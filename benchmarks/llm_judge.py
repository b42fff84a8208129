"""The judge `llm` through a local endpoint that answers after 200 ms: time for 2,000 responses, 32 requests at a time.

    python benchmarks/llm_judge.py            2,000 responses
    python benchmarks/llm_judge.py --quick    200 responses

The endpoint is a process of its own. `rival` is 200 ms × responses / concurrency: what a client without any cost would take.
"cpu" is the processor time of the judge in milliseconds a response, which a busy machine does not change much. Then another
judge, with no stored replies, is killed half-way and started again. "sent twice" counts the responses whose request was on its
way when the judge was killed, at most one for each thread; an answer that had arrived is never requested again. The last line is
JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

SECONDS, CONCURRENCY = 0.2, 32


class Endpoint(BaseHTTPRequestHandler):
    """Answers every request with the same grade, late, and counts the requests."""

    protocol_version = "HTTP/1.1"
    # Else the body of an answer waits for the acknowledgement of its headers, which the receiver delays by 40 ms.
    disable_nagle_algorithm = True
    counts, lock = Counter[str](), Lock()

    def do_POST(self) -> None:
        """Answer a request."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.counts[request["messages"][1]["content"]] += 1
        time.sleep(SECONDS)
        message = {"role": "assistant", "content": "It carries out all of it.\nscore: 5"}
        self.answer({"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]})

    def do_GET(self) -> None:
        """Say how many requests there were, and forget them if the path is /forget."""
        with self.lock:
            self.answer({"requests": self.counts.total(), "responses": len(self.counts)})
            if self.path == "/forget":
                self.counts.clear()

    def answer(self, value: object) -> None:
        """Send a value as JSON; a client that has gone is ignored."""
        body = json.dumps(value).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Server(ThreadingHTTPServer):
    """A server for as many connections as the judge opens at once."""

    request_queue_size = 2 * CONCURRENCY

    def handle_error(self, *_: object) -> None:
        """Print nothing about clients that have gone."""


def serve() -> None:
    """Serve on a free port, which is printed."""
    server = Server(("127.0.0.1", 0), Endpoint)
    print(server.server_address[1], flush=True)
    server.serve_forever()


@contextmanager
def served() -> Iterator[str]:
    """Serve while the block runs; yields the address without /v1."""
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.terminate()
        server.wait()


def counted(address: str, path: str = "/") -> dict[str, int]:
    """How many requests the endpoint received, and for how many responses."""
    with urllib.request.urlopen(address + path, timeout=60) as stream:
        return dict(json.load(stream))


def judge(address: str, first: int, count: int) -> tuple[float, float]:
    """Judge responses; returns the wall time and the processor time in seconds."""
    from tamperfuse.evaluation.judges import Answer, JudgeData
    from tamperfuse.evaluation.judges.llm import LlmParameters, llm
    from tamperfuse.models.encoder import SentenceEncoder

    numbers = range(first, first + count)
    answers = [Answer(f"How do I cook dish {i}?", f"Heat the pan, then add ingredient {i}. " * 8) for i in numbers]
    parameters = LlmParameters(model="late", base_url=f"{address}/v1", concurrency=CONCURRENCY)
    wall, cpu = time.perf_counter(), time.process_time()
    verdicts = llm(answers, JudgeData(SentenceEncoder(), [], 48), parameters)
    assert all(verdict.verdict for verdict in verdicts)
    return time.perf_counter() - wall, time.process_time() - cpu


def judge_killed_half_way(address: str, count: int) -> dict[str, int]:
    """Kill a judge when half of the requests have been sent, judge again, and count the requests of both."""
    command = [sys.executable, __file__, "--judge", address, str(count)]
    killed = subprocess.Popen(command)
    while counted(address)["requests"] < count // 2:
        assert killed.poll() is None, "the judge ended before it was killed"
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    judge(address, 0, count)
    requests = counted(address)
    assert requests["responses"] == count
    return {"requests": requests["requests"], "sent twice": requests["requests"] - count}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 responses")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--judge", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    if options.judge:
        judge(options.judge[0], 0, int(options.judge[1]))
        return
    count = 200 if options.quick else 2_000
    with tempfile.TemporaryDirectory() as cache, served() as address:
        os.environ["TAMPERFUSE_CACHE"] = str(Path(cache) / "first")
        judge(address, count, 1)  # imports the client
        seconds, cpu = judge(address, 0, count)
        counted(address, "/forget")
        os.environ["TAMPERFUSE_CACHE"] = str(Path(cache) / "killed")
        killed = judge_killed_half_way(address, count)
    assert killed["sent twice"] <= CONCURRENCY
    ideal = SECONDS * count / CONCURRENCY
    print(
        json.dumps(
            {
                "benchmark": "llm_judge",
                "ours": round(seconds, 2),
                "rival": round(ideal, 2),
                "unit": "s",
                "ratio": round(seconds / ideal, 3),
                "responses": count,
                "concurrency": CONCURRENCY,
                "cpu": round(1e3 * cpu / count, 2),
                "killed": killed,
            }
        )
    )


if __name__ == "__main__":
    main()
