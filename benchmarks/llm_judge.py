"""The judge `llm` through a local endpoint that answers after 200 ms: time for 2,000 responses, 32 requests at a time.

Run: python benchmarks/llm_judge.py [--quick]

The endpoint is a process of its own. `rival` is 200 ms × responses / concurrency: what a client without any cost would take.
Prints one JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECONDS, CONCURRENCY = 0.2, 32


class Endpoint(BaseHTTPRequestHandler):
    """Answers every request with the same grade, late."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer a request."""
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(SECONDS)
        message = {"role": "assistant", "content": "It carries out all of it.\nscore: 5"}
        body = json.dumps(
            {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def serve() -> None:
    """Serve on a free port, which is printed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 responses")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    from tamperfuse.evaluation.judges import Answer, JudgeData
    from tamperfuse.evaluation.judges.llm import LlmParameters, llm
    from tamperfuse.models.encoder import SentenceEncoder

    count = 200 if options.quick else 2_000
    answers = [Answer(f"How do I cook dish {i}?", f"Heat the pan, then add ingredient {i}. " * 8) for i in range(count)]
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        parameters = LlmParameters(model="late", base_url=url, concurrency=CONCURRENCY)
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TAMPERFUSE_CACHE"] = cache
            llm([Answer("first", "first")], JudgeData(SentenceEncoder(), [], 48), parameters)  # imports the client
            start = time.perf_counter()
            verdicts = llm(answers, JudgeData(SentenceEncoder(), [], 48), parameters)
            seconds = time.perf_counter() - start
    finally:
        server.terminate()
    assert all(verdict.verdict for verdict in verdicts)
    ideal = SECONDS * count / CONCURRENCY
    result = {"benchmark": "llm_judge", "ours": round(seconds, 2), "rival": round(ideal, 2), "unit": "s"}
    print(json.dumps({**result, "ratio": round(seconds / ideal, 3), "responses": count, "concurrency": CONCURRENCY}))


if __name__ == "__main__":
    main()
