"""Upload of a hardened model to the Hugging Face Hub: the checks before the training, and the upload after it.

Experimental: the tests run it against a local server that answers as the Hub does; it was never run against the Hub itself.

A repository that does not exist is created private, and a public one is refused: when a model is hardened, nothing has measured
yet how it holds, and publishing it is a decision of its own.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tamperfuse.records.errors import UserError, first_line, quoted, shown
from tamperfuse.records.files import LOGS
from tamperfuse.records.provenance import FILE, read_provenance

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

log = logging.getLogger("tamperfuse")

OPTION = "--push-to-hub"
REFUSED = (401, 402, 403, 404)  # the Hub answers 404 for a private repository that the token may not see


def prepare_upload(repository: str) -> None:
    """Check that a model can be uploaded later, and create its repository, private, if there is none.

    The Hub is called four times, for the owner of the token, the repository, the right to write to it, and its visibility.

    Args:
        repository: `OWNER/NAME` on the Hub.

    Raises:
        UserError: the name is malformed, the Hub is switched off or cannot be reached, there is no valid token, it may not write
            to the repository, or the repository is public.
    """
    from huggingface_hub import HfApi, constants, get_token

    _check_name(repository)
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{OPTION} needs the Hub, which HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE switches off: unset it, or leave {OPTION} out."
        )
    if get_token() is None:
        raise UserError(
            f"{OPTION} needs a token of the Hub, and there is none: log in with `hf auth login`, or set HF_TOKEN."
        )
    api = HfApi()
    with _hub_errors("The Hub does not accept the token: log in again with `hf auth login`, or correct HF_TOKEN."):
        api.whoami()
    with _hub_errors(
        f"The token of the Hub may not create {repository} or write to it: use one with write permission for its owner, or name "
        f"another repository with {OPTION}."
    ):
        api.create_repo(repository, private=True, exist_ok=True)
        api.auth_check(repository, write=True)
        is_private = api.model_info(repository).private
    if not is_private:
        raise UserError(
            f"{repository} is public, so {OPTION} would publish the weights before they are measured: make it private, or leave "
            f"{OPTION} out and upload them with `hf upload` when you have decided to publish."
        )


def _check_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not in __all__

    try:
        validate_repo_id(repository)
        is_valid = repository.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise UserError(
            f"{OPTION} {shown(repr(repository))} is no repository of the Hub: write OWNER/NAME, each of letters, digits, `-`, "
            "`_` and `.`, without `--` and `..`."
        )


@contextmanager
def _hub_errors(refused: str) -> Iterator[None]:
    """Turn errors of the Hub into a :class:`UserError`: `refused` if it denies access, the status or the reason otherwise."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in REFUSED:
            raise UserError(refused) from error
        raise UserError(f"The Hub answers with status {status}: try again later, or leave {OPTION} out.") from error
    except Exception as error:  # those of the Hub's HTTP library, which changes between its versions
        raise UserError(
            f"The Hub cannot be reached ({first_line(error)}): go online, or leave {OPTION} out."
        ) from error


def upload(folder: Path, repository: str) -> None:
    """Upload a checkpoint: weights, tokenizer, model card, and `tamperfuse.json` without the folders of this machine.

    Args:
        folder: of the checkpoint; it is not changed.
        repository: that :func:`prepare_upload` has checked.

    Raises:
        UserError: the upload failed; the message has the command that uploads the folder later.
    """
    from huggingface_hub import HfApi

    later = f"upload it with: hf upload {quoted(repository)} {quoted(folder)} . --exclude {FILE}"
    try:
        HfApi().create_commit(repository, _operations(folder), commit_message="Upload with tamperfuse")
    except KeyboardInterrupt:
        log.warning("The hardened model is complete in %s; %s", folder, later)
        raise
    except Exception as error:  # of whatever kind: hours of training are not to look lost
        raise UserError(
            f"The hardened model is complete in {folder}, but its upload failed ({first_line(error)}); {later}"
        ) from error
    log.info("uploaded to %s of the Hub, which is private", repository)


def _operations(folder: Path) -> list["CommitOperationAdd"]:
    """What adds the files of a checkpoint to a repository; logs are left out."""
    from huggingface_hub import CommitOperationAdd

    record = read_provenance(folder)
    public = {FILE: record.public().model_dump_json(indent=2).encode()} if record else {}
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return [
        CommitOperationAdd(name, public.get(name, path))
        for name, path in files.items()
        if not name.startswith(f"{LOGS}/")
    ]
