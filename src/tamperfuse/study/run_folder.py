"""Checks before a run writes into an existing folder, whose results it replaces."""

import logging
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from tamperfuse.records import plan, summary
from tamperfuse.records.errors import UserError, shown
from tamperfuse.records.files import read_json
from tamperfuse.records.plan import RunPlan
from tamperfuse.records.reading import path_exists
from tamperfuse.records.result_files import RESULT_FILES
from tamperfuse.records.results import RESULTS, different_columns
from tamperfuse.records.run import STUDY
from tamperfuse.records.yaml import read_yaml
from tamperfuse.study.spec import Study

log = logging.getLogger("tamperfuse")

EARLIER = "earlier"
_OF_MODELS = ("config.json", "adapter_config.json", "*.safetensors", "*.gguf")
_SCHEMAS = {plan.PLAN: plan.SCHEMA, summary.SUMMARY: summary.SCHEMA}


def check_run_folder(out: Path, study: Study) -> None:
    """Check that a run of a study may go on in a folder. A damaged file is no obstacle: it is written again.

    Args:
        out: the run's folder.
        study: the study.

    Raises:
        UserError: the folder holds a model, a study of another model or threat, or files of another version of tamperfuse, which
            the run would replace.
    """
    if any(file for pattern in _OF_MODELS for file in out.glob(pattern)):
        raise UserError(f"{out} holds a model: choose another --out.")
    _check_same(out / STUDY, study)
    for name, schema in _SCHEMAS.items():
        stated = _stated_schema(out / name)
        if stated not in (None, schema):
            raise _of_another_version(out / name, f"has schema {stated}, and this version writes schema {schema}")
    if difference := different_columns(out):
        raise _of_another_version(out / RESULTS, f"has other columns than this version writes ({difference})")


def check_study_file(path: Path, out: Path) -> None:
    """Check that a run does not replace the study file that a user wrote.

    Raises:
        UserError: the file is that in which the run's folder would hold the study with all its defaults.
    """
    written = out / STUDY
    if path.exists() and written.exists() and path.samefile(written) and not (out / plan.PLAN).exists():
        raise UserError(f"{written} would be replaced by the study with all its defaults: choose another --out.")


def set_aside_results(out: Path, study: Study, nodes: RunPlan) -> None:
    """Move results that are not those of a study into the subfolder `earlier` (`earlier-2`, …) before its run begins.

    They are of another study file, or the keys of its nodes have changed since, with the content of the model or threat, or with
    the version of tamperfuse. Otherwise the gate and the report would read them as results of the run that has begun. Nodes stay
    where they are.

    Args:
        out: the run's folder.
        study: the study.
        nodes: the plan of all its nodes.
    """
    path = out / STUDY
    if not path_exists(path) or not path_exists(out / summary.SUMMARY):
        return
    if path.read_text(encoding="utf-8") == study.to_yaml() and _has_nodes(out, nodes):
        return
    names = (f"{EARLIER}-{number}" if number > 1 else EARLIER for number in count(1))
    earlier = next(out / name for name in names if not os.path.lexists(out / name))
    earlier.mkdir()
    for name in RESULT_FILES:
        with suppress(FileNotFoundError):
            (out / name).rename(earlier / name)
    log.info(
        "%s held results of another study, or of another model, threat or version: they are in %s now.", out, earlier
    )


def _has_nodes(out: Path, nodes: RunPlan) -> bool:
    """Whether a study has the nodes of the plan in a folder, apart from those of judges that were added since.

    True where there is no plan that can be read.
    """
    try:
        return {node.key for node in plan.read_plan(out).nodes} <= {node.key for node in nodes.nodes}
    except UserError:
        return True


def _check_same(path: Path, study: Study) -> None:
    """Refuse a folder of another model's or threat's study; a changed study of the same ones may continue in it."""
    if not path_exists(path):
        return
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(
            f"{path} does not hold a study: choose another --out, or remove that file, which is then written again."
        )
    for key, value in (("model", study.model), ("threat", study.threat)):
        if values.get(key) != value:
            raise UserError(
                f"{path.parent} holds a study of the {key} {shown(repr(values.get(key)))}, not {value!r}: choose another "
                "--out; runs in folders side by side share results."
            )


def _stated_schema(path: Path) -> int | None:
    """The schema that a JSON file states; None if it states none, is damaged, or does not exist."""
    if not path_exists(path):
        return None
    with suppress(UserError):
        content = read_json(path)
        schema = content.get("schema") if isinstance(content, dict) else None
        return schema if type(schema) is int else None
    return None


def _of_another_version(path: Path, difference: str) -> UserError:
    return UserError(
        f"{path} {difference}, and the run would replace it: choose another --out (runs in folders side by side share results), "
        "or move that file elsewhere first."
    )
