"""A run that is killed with SIGKILL, wherever it stands; the next one ends with the same files and repeats next to nothing."""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from fork_server import CONTEXT
from pairing_stand_ins import harmful_prompts, hash_projection, prose
from tamperfuse.pairing import pairs
from tamperfuse.pairing.cache import BATCH, in_batches
from tamperfuse.pairing.encoding import CachedEncoder
from tamperfuse.pairing.options import PairOptions
from tamperfuse.pairing.pipeline import pair_corpora

PROMPTS = 300
NEVER = 10**6


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    harmful, benign = folder / "harmful.jsonl", folder / "benign.jsonl"
    harmful.write_text("".join(json.dumps({"prompt": example.prompt}) + "\n" for example in harmful_prompts(PROMPTS)))
    benign.write_text("".join(json.dumps({"prompt": "", "response": prose(n)}) + "\n" for n in range(4 * PROMPTS)))
    return str(harmful), str(benign)


def run(sources: tuple[str, str], work: Path, fatal: int = NEVER) -> None:
    """A run whose encoder writes down every text that it is given, and kills its process at batch `fatal`."""
    batches = 0

    def encode(texts):
        nonlocal batches
        with (work / "encoded.log").open("a") as log:
            log.write("".join(json.dumps(text) + "\n" for text in texts))
        if batches == fatal:  # the worst moment: a whole batch is computed and none of it kept
            os.kill(os.getpid(), signal.SIGKILL)
        batches += 1
        time.sleep(0.005)
        return hash_projection(texts)

    pairs.BLOCK = 256
    harmful, benign = sources
    options = PairOptions(
        harmful=(harmful,),
        responses=(benign,),
        out=work / "out",
        near_duplicates=1.0,
        language="any",
        threshold=0.2,
    )
    pair_corpora(options, CachedEncoder("hash projection", in_batches(encode), work / "vectors"))


def start(*arguments: object):
    process = CONTEXT.Process(target=run, args=arguments)
    process.start()
    return process


def finish(sources: tuple[str, str], work: Path) -> float:
    """Run to the end; returns seconds."""
    begin = time.perf_counter()
    process = start(sources, work)
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - begin


def repeated(work: Path) -> int:
    """How many texts the encoder was given a second time, or a third."""
    encoded = Counter((work / "encoded.log").read_text().splitlines())
    return sum(encoded.values()) - len(encoded)


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    """What an undisturbed run leaves, and its seconds."""
    work = tmp_path_factory.mktemp("whole")
    finish(sources, work)  # the server starts
    (work / "encoded.log").unlink()
    (work / "vectors").rename(work / "first")
    seconds = finish(sources, work)
    assert repeated(work) == 0
    return {path.name: path.read_bytes() for path in (work / "out").iterdir()}, seconds


def assert_whole(work: Path, files: dict[str, bytes]) -> None:
    assert {path.name for path in (work / "out").iterdir()} == set(files)
    for name, content in files.items():
        assert (work / "out" / name).read_bytes() == content, name
    assert not list(work.glob(".tmp-*"))


@pytest.mark.slow
def test_kills_at_random_moments_repeat_a_batch_each_at_most(sources, whole, tmp_path):
    files, seconds = whole
    rng, work, kills = random.Random(0), tmp_path / "killed", 0
    work.mkdir()
    for _ in range(8):
        process = start(sources, work)
        process.join(rng.uniform(0, seconds))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
    finish(sources, work)
    assert kills > 0
    assert repeated(work) <= kills * BATCH
    assert_whole(work, files)


@pytest.mark.slow
def test_what_a_kill_costs_is_the_batch_in_flight(sources, whole, tmp_path):
    files, _ = whole
    rng, work = random.Random(0), tmp_path / "killed"
    work.mkdir()
    for _ in range(3):
        process = start(sources, work, rng.randrange(4))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (work / "out").exists()
    finish(sources, work)
    assert 0 < repeated(work) <= 3 * BATCH
    assert_whole(work, files)
