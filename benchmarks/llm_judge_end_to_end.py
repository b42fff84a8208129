"""The judge `llm` with a real model, which `transformers serve` serves on this machine, on labelled responses.

    python benchmarks/llm_judge_end_to_end.py            12 responses
    python benchmarks/llm_judge_end_to_end.py --quick    4 responses

What is measured is that the path works: server, client, rubric, replies that are parsed or counted as failures, and a second call
that sends nothing. SmolLM2-135M is a poor judge, so its grades say nothing about the responses. Needs the bundled model and
`pip install 'transformers[serving]' 'tamperfuse[judge]'`. Greedy decoding, no randomness. The last line is JSON.
"""

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation.judges import JUDGES, Answer, JudgeData
from tamperfuse.evaluation.judges.llm import LlmParameters, estimate
from tamperfuse.models.encoder import SentenceEncoder

MODEL, REPLY_TOKENS, START_SECONDS = "smollm2-135m", 80, 600


def write_checkpoint(folder: Path) -> None:
    """Write the bundled model as a folder that transformers loads."""
    import tamperfuse

    tamperfuse.save(tamperfuse.load(MODEL), folder)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a model in a process of its own while the block runs; yields the address of the endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        wait_until_ready(server, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def wait_until_ready(server: "subprocess.Popen[bytes]", address: str) -> None:
    """Wait until the server answers."""
    for _ in range(START_SECONDS):
        if server.poll() is not None:
            sys.exit(f"transformers serve ended with code {server.returncode}")
        try:
            urllib.request.urlopen(address, timeout=10).close()
        except OSError:
            time.sleep(1)
        else:
            return
    sys.exit(f"transformers serve did not answer within {START_SECONDS} s")


def labelled(count: int) -> list[tuple[Answer, bool]]:
    """Labelled responses, half of them executed."""
    rows = builtin_rows("labelled")
    halves = [[row for row in rows if bool(row["label"]) == label][: count // 2] for label in (True, False)]
    return [(Answer(row["prompt"], row["response"]), bool(row["label"])) for half in halves for row in half]


def main() -> None:
    """Judge the responses twice, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 responses")
    rows = labelled(4 if parser.parse_args().quick else 12)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("tamperfuse").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as place:
        write_checkpoint(Path(place) / "model")
        os.environ["TAMPERFUSE_CACHE"] = str(Path(place) / "cache")  # no replies of earlier calls
        start = time.perf_counter()
        with served(Path(place) / "model") as address:
            ready = time.perf_counter() - start
            parameters = LlmParameters(
                model=str(Path(place) / "model"),
                base_url=address,
                concurrency=2,
                timeout=600,
                attempts=2,
                tolerated=1,
                options={"temperature": 0, "max_tokens": REPLY_TOKENS},
            )
            answers, judge = [answer for answer, _ in rows], JUDGES.get("llm")
            start = time.perf_counter()
            verdicts = judge.run(answers, JudgeData(SentenceEncoder(), [], 48), parameters)
            seconds = time.perf_counter() - start
        # The server has ended: a second call that sent anything would fail.
        assert judge.run(answers, JudgeData(SentenceEncoder(), [], 48), parameters) == verdicts
        print(estimate(answers, parameters))
    for (_, label), verdict in zip(rows, verdicts, strict=True):
        reply = verdict.evidence.get("reply", verdict.evidence.get("explanation"))
        print(json.dumps({"label": label, "score": verdict.score, "reason": verdict.reason, "reply": str(reply)[:120]}))
    scores = Counter("unparsed" if verdict.score is None else f"{verdict.score:g}" for verdict in verdicts)
    print(
        json.dumps(
            {
                "benchmark": "llm_judge_end_to_end",
                "model": MODEL,
                "responses": len(rows),
                "scores": dict(sorted(scores.items())),
                "server ready": round(ready, 1),
                "ours": round(seconds, 1),
                "unit": "s",
            }
        )
    )


if __name__ == "__main__":
    main()
