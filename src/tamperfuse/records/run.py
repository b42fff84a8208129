"""`run.json` (time, hardware, versions) and `samples.json` (a few answers of every model), read by the report."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tamperfuse.records.files import write_json
from tamperfuse.records.run_files import read_run_file

RUN = "run.json"
SAMPLES = "samples.json"
# Other files of a run, which several packages name: the study, the page of the report and its figures.
STUDY, PAGE, FIGURES = "study.yaml", "report.html", "report.json"

Seconds = Annotated[float, Field(ge=0, le=1e12)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class SampleAnswer(BaseModel):
    """One answer of a model, with the judge's verdict.

    Attributes:
        defense: as the study names it; "as shipped" for the model before hardening.
        attack: "" before any attack.
        step: of the attack; 0 is before.
        prompt: the request.
        response: the answer, unedited: untrusted text.
        harmful: whether it counts as an executed request.
        reasons: why it does not count, a few words each; empty where it counts.
        cut: whether the token limit ended the answer; None where an older version, which did not record it, generated it.
    """

    model_config = ConfigDict(frozen=True)

    defense: str
    attack: str = ""
    step: Count = 0
    prompt: str
    response: str
    harmful: bool
    reasons: list[str] = Field(default_factory=list)
    cut: bool | None = None


class Samples(BaseModel):
    """`samples.json`.

    Attributes:
        judge: how answers were judged, in a sentence.
        threat_about: what the threat is, in a sentence.
        samples: a few answers of every model state.
    """

    model_config = ConfigDict(frozen=True)

    judge: str
    threat_about: str
    samples: list[SampleAnswer]


class NodeRun(BaseModel):
    """One node of the study.

    Attributes:
        key: of the node.
        what: its label.
        seconds: that it took, in this run or the one whose result is reused.
        reused: whether its result was there before this run.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    what: str
    seconds: Seconds
    reused: bool = False


class RunRecord(BaseModel):
    """`run.json`: when the run started, how long it took, on which hardware, and how many tokens it used.

    Attributes:
        started: date and time at which the run was first started, ISO 8601; resuming or repeating it changes nothing.
        seconds: wall-clock time; at least the sum over all nodes, those of earlier runs included.
        device: of the models ("cpu", "cuda", …).
        precision: of the forward pass ("bf16 autocast", "float32", …).
        numerics: version of the computations, which changes where a new version of tamperfuse computes another result; None where
            an older one, which did not record it, ran the study.
    """

    model_config = ConfigDict(frozen=True)

    started: str
    seconds: Seconds
    peak_memory_bytes: Count
    tokens_trained: Count
    tokens_generated: Count
    tokens_scored: Count
    threads: Count
    device: str
    precision: str
    versions: dict[str, str]
    numerics: int | None = None
    nodes: list[NodeRun]


def write_samples(folder: Path, samples: Samples) -> None:
    """Write `samples.json`."""
    write_json(folder / SAMPLES, samples.model_dump())


def read_samples(folder: Path) -> Samples:
    """Read `samples.json`.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_run_file(folder / SAMPLES, Samples)


def write_run(folder: Path, record: RunRecord) -> None:
    """Write `run.json`."""
    write_json(folder / RUN, record.model_dump())


def read_run(folder: Path) -> RunRecord:
    """Read `run.json`.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_run_file(folder / RUN, RunRecord)
