"""The judge `llm` with a real model, which `transformers serve` serves on this machine, on labelled responses.

    python benchmarks/llm_judge_end_to_end.py            6 responses
    python benchmarks/llm_judge_end_to_end.py --quick    2 responses
    python benchmarks/llm_judge_end_to_end.py --model ./qwen.gguf

What is measured is that the path works: server, client, rubric, replies that are parsed or counted as failures, and a second call
that sends nothing. A model as small as this is a poor judge: many of SmolLM2-135M's replies, or all, do not have the form that
the rubric asks for. Where no reply can be parsed, the judge has to refuse in a sentence, which is printed. Needs the model and
`pip install 'transformers[serving]' 'tamperfuse[judge]'`. Greedy decoding, no randomness. The last line is JSON.
"""

import argparse
import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation.judges import JUDGES, Answer, JudgeData
from tamperfuse.evaluation.judges.llm import LlmParameters, estimate
from tamperfuse.evaluation.judges.replies import FILE
from tamperfuse.models.encoder import SentenceEncoder
from tamperfuse.records.errors import UserError

REPLY_TOKENS, START_SECONDS = 160, 600


def write_checkpoint(model: str, folder: Path) -> None:
    """Write a model, such as the bundled one, as a folder that transformers loads."""
    import tamperfuse

    tamperfuse.save(tamperfuse.load(model), folder)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a model in a process of its own while the block runs; yields the address of the endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
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


def labelled(count: int) -> list[Answer]:
    """Labelled responses, half of them executed."""
    rows = builtin_rows("labelled")
    halves = [[row for row in rows if bool(row["label"]) == label][: count // 2] for label in (True, False)]
    return [Answer(row["prompt"], row["response"]) for half in halves for row in half]


def judged(answers: Sequence[Answer], parameters: LlmParameters) -> list[str]:
    """A score, or the reason why there is none, for every response; the sentence in which the judge refuses."""
    try:
        verdicts = JUDGES.get("llm").run(answers, JudgeData(SentenceEncoder(), [], 48), parameters)
    except UserError as refusal:
        return [str(refusal)]
    return [verdict.reason if verdict.score is None else f"{verdict.score:g}" for verdict in verdicts]


def stored_replies(cache: Path) -> list[str]:
    """The replies that the judge stored."""
    with closing(sqlite3.connect(cache / FILE)) as connection:
        return [str(reply) for (reply,) in connection.execute("SELECT reply FROM replies ORDER BY rowid")]


def main() -> None:
    """Judge the responses twice, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 responses")
    parser.add_argument(
        "--model", default="smollm2-135m", help="bundled name, folder or .gguf file (default: %(default)s)"
    )
    options = parser.parse_args()
    answers = labelled(2 if options.quick else 6)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("tamperfuse").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "model", Path(place) / "cache"
        write_checkpoint(options.model, folder)
        os.environ["TAMPERFUSE_CACHE"] = str(cache)  # no replies of earlier calls
        with served(folder) as address:
            parameters = LlmParameters(
                model=str(folder),
                base_url=address,
                concurrency=1,
                timeout=600,
                attempts=2,
                tolerated=1,
                options={"temperature": 0, "max_tokens": REPLY_TOKENS},
            )
            start = time.perf_counter()
            outcome = judged(answers, parameters)
            seconds = time.perf_counter() - start
        # The server has ended: a second call that sent anything would fail in another way.
        assert judged(answers, parameters) == outcome
        print(estimate(answers, parameters))
        replies = stored_replies(cache)
    for text in (*replies, *outcome):
        print(json.dumps(text[:200]))
    print(
        json.dumps(
            {
                "benchmark": "llm_judge_end_to_end",
                "ours": round(seconds, 1),
                "unit": "s",
                "model": Path(options.model).name,
                "responses": len(answers),
                "replies": len(replies),
                "decided": sum(text.isdigit() for text in outcome),
                "scores": outcome,
            }
        )
    )


if __name__ == "__main__":
    main()
