"""A chat template that the user states for a base model, which has none."""

import shutil
from pathlib import Path

import pytest

from stand_ins import TEMPLATE
from tamperfuse.commands.attack import attack_model
from tamperfuse.commands.evaluate import evaluate_model
from tamperfuse.commands.harden import harden_model
from tamperfuse.models.chat_template import read_template
from tamperfuse.models.fingerprint import model_fingerprint
from tamperfuse.models.load import LoadedModel, load_model, stated_template
from tamperfuse.records.errors import UserError
from tamperfuse.records.provenance import read_provenance
from tamperfuse.records.yaml import read_yaml
from tamperfuse.study.context import StudyContext
from tamperfuse.study.plan import build_nodes
from tamperfuse.study.sections import Evaluate
from tamperfuse.study.spec import Study, load_study, parse_study


@pytest.fixture
def base_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model as a base model: its tokenizer has no chat template."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture
def template_file(tmp_path: Path) -> Path:
    path = tmp_path / "stated.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    return path


def test_a_base_model_needs_a_stated_template(base_folder: Path, template_file: Path, tiny: LoadedModel) -> None:
    with pytest.raises(UserError, match="state a template"):
        load_model(str(base_folder))
    loaded = load_model(str(base_folder), chat_template=read_template(template_file))
    assert loaded.chat.prompt("hello") == tiny.chat.prompt("hello")


def test_a_stated_template_is_part_of_the_fingerprint(base_folder: Path) -> None:
    prints = {model_fingerprint(str(base_folder), template) for template in ("", TEMPLATE, TEMPLATE + " ")}
    assert len(prints) == 3 and model_fingerprint(str(base_folder)) in prints


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it does not exist"),
        (b"# A model\n\nIt answers messages.\n", "stated.jinja is not a chat template"),
        (b"{{ bos_token }} hello", "stated.jinja is not a chat template"),
        (b"\xff\xfe{{ messages }}", "UTF-8"),
    ],
)
def test_what_is_no_template_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "stated.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_template(path)


def test_a_template_with_an_error_is_refused(base_folder: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be used \(.*\): repair the file of --chat-template"):
        load_model(str(base_folder), chat_template="{% for m in messages %}{{ m['content'] }}")


@pytest.mark.usefixtures("quick_judging")
def test_the_hardened_checkpoint_and_its_reference_have_the_template(
    base_folder: Path,
    template_file: Path,
    threat_file: Path,
    benign_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = Evaluate(prompts=2, dev_prompts=2, harmless=4, heldout=2, response_tokens=8)
    for module in ("evaluate", "attack"):
        monkeypatch.setattr(f"tamperfuse.commands.{module}.full_evaluation", lambda threat, **_: small)
    hardened = tmp_path / "hardened"
    settings = {"steps": 1, "batch": 2}
    harden_model(
        str(base_folder),
        "refusal",
        str(threat_file),
        hardened,
        pairs=None,
        benign=[str(benign_file)],
        settings=settings,
        seed=0,
        chat_template=template_file,
    )
    assert (hardened / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE
    provenance = read_provenance(hardened)
    assert provenance is not None and provenance.chat_template == TEMPLATE == stated_template(str(hardened))
    template_file.unlink()  # the checkpoint is enough from here on
    assert load_model(str(hardened)).stated_template == TEMPLATE
    evaluate_model(str(hardened), str(threat_file), tmp_path / "measured", reference=None)
    attack_model(
        str(hardened),
        "merge",
        str(threat_file),
        tmp_path / "attacked",
        reference=None,
        retain="builtin:retain",
        keep=True,
        settings={},
        seed=0,
    )
    assert load_model(str(tmp_path / "attacked" / "attacked")).stated_template == TEMPLATE
    harden_model(
        str(hardened),
        "lox",
        str(threat_file),
        tmp_path / "extrapolated",
        pairs=None,
        benign=[str(benign_file)],
        settings={},
        seed=0,
    )
    with pytest.raises(UserError, match="state a template"):
        evaluate_model(str(base_folder), str(threat_file), tmp_path / "other", reference=None)


def test_a_study_reads_the_template_and_its_keys_depend_on_it(
    study: Study, base_folder: Path, template_file: Path, tmp_path: Path
) -> None:
    values = study.model_dump(mode="json") | {"model": str(base_folder), "chat_template": str(template_file)}

    def opened() -> StudyContext:
        return StudyContext.open(parse_study(values, "test"), tmp_path / "run")

    first = opened()
    before = {node.label: node.key for node in build_nodes(first)}
    assert first.reference().chat.prompt("hello")
    (tmp_path / "study.yaml").write_text(first.study.to_yaml(), encoding="utf-8")
    assert load_study(tmp_path / "study.yaml") == first.study
    template_file.write_text("{# another #}" + TEMPLATE, encoding="utf-8")
    after = {node.label: node.key for node in build_nodes(opened())}
    assert {label for label in before if before[label] == after[label]} == {"pairs, seed 0"}
    (tmp_path / "without.yaml").write_text(study.to_yaml(), encoding="utf-8")
    assert read_yaml(tmp_path / "without.yaml")["chat_template"] == ""
