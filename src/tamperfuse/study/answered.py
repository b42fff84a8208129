"""Sources whose rows are trained on as they are: prompts with answers."""

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.sources import read_source
from tamperfuse.records.errors import UserError


def answered(source: str, what: str) -> list[Example]:
    """Rows of a source that have a prompt and a response.

    Args:
        source: as of :func:`read_source`.
        what: the key of a study that names it.

    Raises:
        UserError: there is none.
    """
    found = [example for example in read_source(source) if example.prompt and example.response]
    if not found:
        raise UserError(f"{source} has no row with a prompt and a response: name another `{what}` source.")
    return found
