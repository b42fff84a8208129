"""Reading benign data without the rows that belong to the threat."""

import logging

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.overlap import near
from tamperfuse.corpora.sources import BUILTIN, read_source
from tamperfuse.corpora.threats import Threat
from tamperfuse.models.encoder import SentenceEncoder, TextEncoder
from tamperfuse.records.errors import UserError

log = logging.getLogger("tamperfuse")


def read_outside_threat(
    source: str, threat: Threat, *, option: str, encoder: TextEncoder | None = None
) -> list[Example]:
    """Read the rows of a source that have a prompt and a response and do not belong to the threat.

    Of a built-in source under a built-in threat, the rows filed under the threat's subject are left out. Of any other source,
    or under a threat of the user's own, the rows whose prompt is near one of the threat's prompts as well (see
    :func:`tamperfuse.corpora.overlap.near`). The number of rows left out is logged.

    Args:
        source: as of :func:`read_source`.
        threat: the threat; its prompts of every part are compared.
        option: name of the option that the source was given by (`benign`, `retain`), for the error message.
        encoder: finds paraphrases; the bundled sentence encoder if None.

    Returns:
        The rows in the source's order, at least one.

    Raises:
        UserError: the source cannot be read, or no row is left.
    """
    answered = [example for example in read_source(source) if example.prompt and example.response]
    outside = [example for example in answered if not threat.subject or example.category != threat.subject]
    if outside and not (source.startswith(BUILTIN) and threat.source.startswith(BUILTIN)):
        overlapping = near([example.prompt for example in outside], threat.prompts, encoder or SentenceEncoder())
        outside = [example for index, example in enumerate(outside) if index not in overlapping]
    if len(outside) < len(answered):
        left_out = len(answered) - len(outside)
        log.info("%s: %d of %d rows belong to %s and are left out.", source, left_out, len(answered), threat.source)
    if not outside:
        raise UserError(f"{source} has no row with a prompt and a response: name another `{option}` source.")
    return outside
