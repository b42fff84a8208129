"""The exception for errors of the user, and suggestions for mistyped names."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input: the message says in one sentence what is wrong, where, and how to mend it.

    The command line prints the message and exits with code 2. Code that raises it must leave no incomplete files.
    """


def unknown_name(kind: str, name: str, names: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the most similar name that does.

    Args:
        kind: what the name stands for, in the singular ("defense", "attack", …).
        name: as the user wrote it.
        names: all names that exist.
    """
    near = get_close_matches(name, sorted(names), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(sorted(names))}."
    return UserError(f"There is no {kind} named {name!r}: {hint}")
