"""Sources whose rows are trained on as they are: prompts with answers, none of them the threat's."""

import logging

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.overlap import near
from tamperfuse.corpora.sources import BUILTIN, read_source
from tamperfuse.corpora.threats import Threat
from tamperfuse.models.encoder import SentenceEncoder
from tamperfuse.records.errors import UserError

log = logging.getLogger("tamperfuse")


def answered(source: str, what: str, threat: Threat) -> list[Example]:
    """Rows of a source that have a prompt and a response, without those that belong to the threat.

    A built-in source leaves out what it files under the threat's subject; any other, or under a threat of the user's own,
    what is near one of the threat's prompts. How many is said.

    Args:
        source: as of :func:`read_source`.
        what: the key of a study that names it.
        threat: what its rows must be apart from.

    Raises:
        UserError: there is none.
    """
    found = [example for example in read_source(source) if example.prompt and example.response]
    kept = [example for example in found if not threat.subject or example.category != threat.subject]
    if found and not (source.startswith(BUILTIN) and threat.source.startswith(BUILTIN)):
        theirs = near([example.prompt for example in kept], threat.prompts, SentenceEncoder())
        kept = [example for index, example in enumerate(kept) if index not in theirs]
    if len(kept) < len(found):
        log.info(
            "%s: %d of %d rows belong to %s and are left out.",
            source,
            len(found) - len(kept),
            len(found),
            threat.source,
        )
    if not kept:
        raise UserError(f"{source} has no row with a prompt and a response: name another `{what}` source.")
    return kept
