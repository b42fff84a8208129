"""The layouts that corpora of this field come in, each recognised by its columns and never by its name.

A schema says which columns it needs and how one row becomes examples. A new one costs an entry in :data:`SCHEMAS` (and
a fixture in tests/corpora). Rows that a schema means to leave out (BeaverTails' safe rows) yield nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tamperfuse.corpora.examples import joined
from tamperfuse.records.errors import UserError

Row = Mapping[str, Any]
Fields = tuple[str, str, str]  # prompt, response, category


@dataclass(frozen=True)
class Schema:
    """A known layout.

    Attributes:
        name: for messages, the audit and the card.
        columns: columns that a row must have to be of this schema.
        read: one row to its (prompt, response, category) triples.
        fits: a look at the first row's values, where columns alone are ambiguous.
    """

    name: str
    columns: frozenset[str]
    read: "Callable[[Row], Iterator[Fields]] | type[OasstMessages]"
    fits: Callable[[Row], bool] = lambda row: True

    def reader(self) -> Callable[[Row], Iterator[Fields]]:
        """What turns one file's rows into triples; a fresh one a file where it keeps a state."""
        return OasstMessages() if self.read is OasstMessages else self.read  # type: ignore[return-value]


def recognise(row: Row, where: str) -> Schema:
    """The first schema of :data:`SCHEMAS` that a row fits.

    Args:
        row: the first row of a source.
        where: the source, for the message.

    Raises:
        UserError: none fits; the columns and the options that name them are printed.
    """
    known = find_schema(row)
    if known is not None:
        return known
    raise UserError(
        f"{where} has the columns {', '.join(map(repr, row)) or '(none)'}, which match no known schema: "
        "name the columns with --prompt-field and --response-field."
    )


def find_schema(row: Row) -> Schema | None:
    """The first schema of :data:`SCHEMAS` that a row fits, if any does."""
    return next((schema for schema in SCHEMAS if schema.columns <= row.keys() and schema.fits(row)), None)


def named_fields(prompt_field: str | None, response_field: str | None, category_field: str | None) -> Schema:
    """A schema of columns that the user named."""
    wanted = [name for name in (prompt_field, response_field, category_field) if name]

    def read(row: Row) -> Iterator[Fields]:
        yield text(row, prompt_field), text(row, response_field), text(row, category_field)

    return Schema("named columns", frozenset(wanted), read)


def text(row: Row, field: str | None) -> str:
    """A field as text: "" if no field is named or the value is null.

    Raises:
        ValueError: the value is neither text, number nor null; the message completes "row N: …".
        KeyError: the row has no such field.
    """
    if field is None:
        return ""
    value = row[field]
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"the field {field!r} holds a {type(value).__name__}, not text")


def _columns(
    prompt: str, response: str | None = None, category: str | None = None
) -> Callable[[Row], Iterator[Fields]]:
    """Reader of rows whose columns map one to one; missing optional columns count as empty."""

    def read(row: Row) -> Iterator[Fields]:
        optional = [text(row, name) if name in row else "" for name in (response, category)]
        yield text(row, prompt), optional[0], optional[1]

    return read


def _beavertails(row: Row) -> Iterator[Fields]:
    """Unsafe rows only; every category that is true, joined."""
    if not row["is_safe"]:
        marks = row["category"]
        yield text(row, "prompt"), text(row, "response"), joined(name for name in marks if marks[name])


def _alpaca(row: Row) -> Iterator[Fields]:
    extra = text(row, "input") if "input" in row else ""
    prompt = text(row, "instruction")
    yield (f"{prompt}\n\n{extra}" if extra.strip() else prompt), text(row, "output"), ""


def _dolly(row: Row) -> Iterator[Fields]:
    context = text(row, "context")
    prompt = text(row, "instruction")
    category = text(row, "category") if "category" in row else ""
    yield (f"{prompt}\n\n{context}" if context.strip() else prompt), text(row, "response"), category


def _harmbench(row: Row) -> Iterator[Fields]:
    context = text(row, "ContextString") if "ContextString" in row else ""
    behavior = text(row, "Behavior")
    yield (f"{context}\n\n---\n\n{behavior}" if context.strip() else behavior), "", text(row, "SemanticCategory")


def _turns(field: str) -> Callable[[Row], Iterator[Fields]]:
    """Reader of a list of alternating texts (LIMA, UltraChat's original layout): its first exchange."""

    def read(row: Row) -> Iterator[Fields]:
        turns = row[field]
        category = text(row, "source") if "source" in row else ""
        if not all(isinstance(turn, str) for turn in turns[:2]):
            raise ValueError(f"the field {field!r} holds turns that are not text, unlike the first row's")
        yield turns[0] if turns else "", turns[1] if len(turns) > 1 else "", category

    return read


def _messages(field: str, role: str, content: str) -> Callable[[Row], Iterator[Fields]]:
    """Reader of role-tagged messages: the first user turn and the assistant turn that answers it."""

    def read(row: Row) -> Iterator[Fields]:
        turns = [(str(turn[role]), _content(turn[content])) for turn in row[field]]
        for at, (speaker, said) in enumerate(turns):
            if speaker in {"user", "human", "prompter"}:
                answer = turns[at + 1][1] if at + 1 < len(turns) and turns[at + 1][0] not in {"user", "human"} else ""
                yield said, answer, ""
                return
        yield "", "", ""

    return read


def _content(value: Any) -> str:
    """An OpenAI message's content: a text, or a list of parts of which the text ones count."""
    if isinstance(value, list):
        return "\n".join(str(part.get("text") or "") for part in value if part.get("type") == "text")
    return "" if value is None else str(value)


def _completion(row: Row) -> Iterator[Fields]:
    """TRL's prompt–completion rows, plain or conversational."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list):
        yield _content(prompt[-1]["content"]), _content(completion[-1]["content"]), ""
    else:
        yield text(row, "prompt"), text(row, "completion"), ""


def _oasst_tree(row: Row) -> Iterator[Fields]:
    """An OpenAssistant tree: the opening prompt with its best-ranked reply."""
    root = row["prompt"]
    replies = sorted(root.get("replies") or [], key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))
    yield text(root, "text"), text(replies[0], "text") if replies else "", ""


class OasstMessages:
    """Reader of OpenAssistant's flat layout: one message a row, a tree's rows together, parents before their replies.

    It keeps the prompts of the tree being read, and yields each assistant message of rank 0 (or without rank) with the
    prompt it answers.
    """

    def __init__(self) -> None:
        """Start outside any tree."""
        self._tree = ""
        self._prompts: dict[str, str] = {}

    def __call__(self, row: Row) -> Iterator[Fields]:
        """Take one message row."""
        if row["message_tree_id"] != self._tree:
            self._tree, self._prompts = row["message_tree_id"], {}
        if row["role"] == "prompter":
            self._prompts[row["message_id"]] = text(row, "text")
        elif row["parent_id"] in self._prompts and not row.get("rank"):
            yield self._prompts[row["parent_id"]], text(row, "text"), ""


def _own(row: Row) -> Iterator[Fields]:
    """Rows with a `prompt`, as tamperfuse's own files have them; the category goes by several names."""
    response = next((text(row, name) for name in ("response", "answer", "output") if name in row), "")
    category = next((text(row, name) for name in ("category", "kind", "subject") if name in row), "")
    yield text(row, "prompt"), response, category


def _first_is(field: str, kind: type) -> Callable[[Row], bool]:
    """Whether a list column's first item is of a type."""
    return lambda row: isinstance(row[field], list) and bool(row[field]) and isinstance(row[field][0], kind)


def _has_keys(field: str, *keys: str) -> Callable[[Row], bool]:
    """Whether a list column holds mappings with these keys."""
    return lambda row: _first_is(field, dict)(row) and all(key in row[field][0] for key in keys)


def is_undecided(row: Row) -> bool:
    """Whether a row fits no schema because its conversation is empty: another row must say what the layout is."""
    return any(row.get(field, ()) == [] for field in ("conversations", "messages", "data"))


# More demanding schemas stand before those whose columns they contain.
SCHEMAS: tuple[Schema, ...] = (
    Schema(
        "BeaverTails",
        frozenset({"prompt", "response", "category", "is_safe"}),
        _beavertails,
        lambda row: isinstance(row["category"], dict),
    ),
    Schema("HarmBench", frozenset({"Behavior", "SemanticCategory", "BehaviorID"}), _harmbench),
    Schema(
        "JailbreakBench", frozenset({"Goal", "Target", "Behavior", "Category"}), _columns("Goal", "Target", "Category")
    ),
    Schema("AdvBench", frozenset({"goal", "target"}), _columns("goal", "target")),
    Schema(
        "Do-Not-Answer",
        frozenset({"question", "risk_area", "types_of_harm"}),
        _columns("question", None, "types_of_harm"),
    ),
    Schema("Dolly", frozenset({"instruction", "context", "response"}), _dolly),
    Schema("Alpaca", frozenset({"instruction", "output"}), _alpaca),
    Schema(
        "OpenAssistant trees",
        frozenset({"message_tree_id", "prompt"}),
        _oasst_tree,
        lambda row: isinstance(row["prompt"], dict),
    ),
    Schema(
        "OpenAssistant messages",
        frozenset({"message_tree_id", "message_id", "parent_id", "role", "text"}),
        OasstMessages,
    ),
    Schema("UltraChat", frozenset({"prompt_id", "messages"}), _messages("messages", "role", "content")),
    Schema("UltraChat (original)", frozenset({"id", "data"}), _turns("data"), _first_is("data", str)),
    Schema("LIMA", frozenset({"conversations"}), _turns("conversations"), _first_is("conversations", str)),
    Schema(
        "ShareGPT",
        frozenset({"conversations"}),
        _messages("conversations", "from", "value"),
        _has_keys("conversations", "from", "value"),
    ),
    Schema(
        "OpenAI messages",
        frozenset({"messages"}),
        _messages("messages", "role", "content"),
        _has_keys("messages", "role"),
    ),
    Schema("prompt–completion", frozenset({"prompt", "completion"}), _completion),
    Schema("prompt and response", frozenset({"prompt"}), _own, lambda row: isinstance(row["prompt"], str)),
    # HEx-PHI comes as one headerless CSV a category; files.py gives such a column the name "text".
    Schema("HEx-PHI", frozenset({"text", "file_category"}), _columns("text", None, "file_category")),
)
