"""Reading benign data without the rows that belong to the threat."""

import logging

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.overlap import near
from tamperfuse.corpora.sources import BUILTIN, read_source
from tamperfuse.corpora.threats import Threat
from tamperfuse.models.encoder import TextEncoder, default_encoder
from tamperfuse.records.errors import UserError

log = logging.getLogger("tamperfuse")


def read_outside_threat(
    source: str, threat: Threat, *, option: str, encoder: TextEncoder | None = None, answered: bool = True
) -> list[Example]:
    """Read the rows of a source that have a prompt and a response, and do not belong to the threat.

    Of a built-in source under another built-in threat, the rows filed under the threat's subject are left out. Of any other
    source, or under a threat of the user's own, the rows whose prompt is near one of the threat's prompts as well (see
    :func:`tamperfuse.corpora.overlap.near`). The number of rows left out is logged.

    Args:
        source: as of :func:`read_source`.
        threat: the threat; its prompts of every part are compared.
        option: name of the option that the source was given by (`benign`, `retain`), for the error message.
        encoder: finds paraphrases; the default one if None.
        answered: whether rows without a response are left out.

    Returns:
        The rows in the source's order, at least one.

    Raises:
        UserError: the source cannot be read, or no row is left.
    """
    rows = [e for e in read_source(source) if e.prompt and (e.response or not answered)]
    outside = [example for example in rows if not threat.subject or example.category != threat.subject]
    # builtin:labelled holds responses to a threat's prompts.
    is_other = source not in (threat.source, f"{BUILTIN}labelled")
    disjoint = source.startswith(BUILTIN) and threat.source.startswith(BUILTIN) and is_other
    if outside and not disjoint:
        overlapping = near([example.prompt for example in outside], threat.prompts, encoder or default_encoder())
        outside = [example for index, example in enumerate(outside) if index not in overlapping]
    if len(outside) < len(rows):
        left_out = len(rows) - len(outside)
        log.info("%s: %d of %d rows belong to %s and are left out.", source, left_out, len(rows), threat.source)
    if not outside:
        needed = "a prompt and a response" if answered else "a prompt"
        reason = f"all {len(rows)} rows of it belong to {threat.source}" if rows else f"it has no row with {needed}"
        raise UserError(f"{source} cannot be used for `{option}`, because {reason}: name another source.")
    return outside
