"""The one error a user is meant to see, and help with names that were mistyped."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and how to mend it.

    The command line prints it as one sentence and exits with code 2; nothing half-written may be left behind by the
    code that raises it.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does.

    Args:
        kind: what was looked up, in the singular ("defense", "attack", …).
        name: what the user wrote.
        known: every name that would have been right.
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(names)}."
    return UserError(f"There is no {kind} named {name!r}: {hint}")
