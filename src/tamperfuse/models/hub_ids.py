"""Ids of models on the Hub, told apart from mistyped paths.

Both can be `a/b`. With the network, a path that is taken for an id may name a stranger's repository, whose weights would be used
in place of the user's own. So what looks like a path is refused, and what is asked of the Hub is printed.
"""

import logging
import os
import re
from functools import cache
from pathlib import Path

from tamperfuse.records.errors import HubUnreachable, UserError, shown

log = logging.getLogger("tamperfuse")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")
_FILES = {".gguf", ".safetensors", ".bin", ".pt", ".pth", ".json"}
#: First folders of many paths. The Hub reserves some of these names, so no owner can have them.
_FOLDERS = {
    *("models", "model", "checkpoints", "checkpoint", "runs", "run", "output", "outputs", "out", "results", "data"),
    *("datasets", "weights", "experiments", "hardened", "home", "mnt", "tmp", "src"),
}


def check_hub_id(name: str, kind: str = "model") -> None:
    """Check that a name that is no path here may be an id of the Hub, and print that the Hub is asked.

    Args:
        name: as the user or a file wrote it; contains a slash.
        kind: what it names, in the singular.

    Raises:
        UserError: it has another form than OWNER/NAME, names a file, or begins with a folder that exists or that paths often
            begin with.
    """
    owner = name.partition("/")[0]
    if _ID.fullmatch(name) is None or Path(name).suffix.lower() in _FILES:
        raise UserError(f"There is no {kind} at {shown(name)}: check the path; an id of the Hub is OWNER/NAME.")
    if os.path.isdir(owner) or owner.lower() in _FOLDERS:
        reason = f"there is a folder {owner}" if os.path.isdir(owner) else f"{owner} is a usual name of a folder"
        raise UserError(
            f"There is no {kind} at {shown(name)}, seen from {os.getcwd()}, and the Hub is not asked for it, since {reason}: "
            f"correct the path, or download the Hub's {kind} and name its folder."
        )
    _print_once(name, kind)


def is_unreachable(error: BaseException) -> bool:
    """Whether a library failed since the Hub cannot be reached and its files are not in the cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError) for cause in causes)


@cache
def _print_once(name: str, kind: str) -> None:
    log.info("%s is no folder here: the %s is taken from the Hub.", name, kind)


def hub_commit(name: str) -> str:
    """The commit of a Hub model that would be loaded now.

    Raises:
        HubUnreachable: it cannot be found.
    """
    from transformers.utils.hub import resolve_revision  # takes long, and this module is imported at start-up

    commit = getattr(resolve_revision(name), "resolved", None)
    if not isinstance(commit, str):
        raise HubUnreachable(
            f"The commit of the Hub model {name} cannot be found: check the network, or name its folder."
        )
    return commit
