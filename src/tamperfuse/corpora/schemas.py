"""Known layouts of corpora, recognised by their columns.

A schema declares the columns it needs and how one row is read. To add one, add an entry to :data:`SCHEMAS` and a fixture to
tests/corpora. Rows that a schema leaves out (the safe rows of BeaverTails) yield nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tamperfuse.corpora.conversations import exchange, is_turn, last_prompt
from tamperfuse.corpora.examples import join_labels
from tamperfuse.records.errors import UserError, kind_of

Row = Mapping[str, Any]
Fields = tuple[str, str, str]  # prompt, response, category
NAME_COLUMNS = (
    "rename the columns to `prompt` and `response`, or, with `tamperfuse pair`, name them with --prompt-field and "
    "--response-field"
)


@dataclass(frozen=True)
class Schema:
    """A known layout.

    Attributes:
        name: for messages, the audit and the card.
        columns: columns that a row must have to be of this schema.
        read: turns one row into (prompt, response, category) triples.
        fits: checks the values of a row, if the columns alone are ambiguous.
        decisive: the column whose value `fits` checks; a row in which it is missing determines no schema.
    """

    name: str
    columns: frozenset[str]
    read: "Callable[[Row], Iterator[Fields]] | type[OasstMessages]"
    fits: Callable[[Row], bool] = lambda row: True
    decisive: str | None = None

    def reader(self) -> Callable[[Row], Iterator[Fields]]:
        """The function that reads the rows of one file; a new object for each file if it has state."""
        return OasstMessages() if self.read is OasstMessages else self.read  # type: ignore[return-value]


def recognise(row: Row, where: str) -> Schema:
    """The first schema of :data:`SCHEMAS` that fits a row; of a row that determines none, the last with its columns.

    Args:
        row: the first row of a source that determines a schema, or its first row.
        where: the source, for the message.

    Raises:
        UserError: none fits; the message names the columns and the options for them.
    """
    schema = find_schema(row)
    if schema is None and is_undecided(row):
        schema = [schema for schema in SCHEMAS if schema.columns <= row.keys()][-1]
    if schema is not None:
        return schema
    raise UserError(
        f"{where} has the columns {', '.join(map(repr, row)) or '(none)'}, which match no known schema: {NAME_COLUMNS}."
    )


def find_schema(row: Row) -> Schema | None:
    """The first schema of :data:`SCHEMAS` that fits a row; None if none does, or if the row determines none."""
    for schema in SCHEMAS:
        if schema.columns <= row.keys():
            if schema.decisive is not None and is_missing(row[schema.decisive]):
                return None
            if schema.fits(row):
                return schema
    return None


def is_undecided(row: Row) -> bool:
    """Whether a row does not determine its schema, because the value that would is missing; another row has to."""
    for schema in SCHEMAS:
        if schema.columns <= row.keys():
            if schema.decisive is not None and is_missing(row[schema.decisive]):
                return True
            if schema.fits(row):
                return False
    return False


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: null, NaN (as pandas writes it) or an empty list."""
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


def named_fields(prompt_field: str | None, response_field: str | None, category_field: str | None) -> Schema:
    """The schema of columns that the user named: texts, or conversations, whose first exchange is read."""
    columns = [name for name in (prompt_field, response_field, category_field) if name]

    def read(row: Row) -> Iterator[Fields]:
        prompt, response = (
            exchange(row[field], field)[side]
            if field is not None and isinstance(row[field], list)
            else text(row, field)
            for side, field in enumerate((prompt_field, response_field))
        )
        yield prompt, response, text(row, category_field)

    return Schema("named columns", frozenset(columns), read)


def text(row: Row, field: str | None) -> str:
    """The text of a field; "" if `field` is None or the value is missing.

    Raises:
        ValueError: the value is not text, a finite number or missing; the message is appended to "row N: ".
        KeyError: the row has no such field.
    """
    if field is None:
        return ""
    value = row[field]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    raise ValueError(f"the field {field!r} holds {kind_of(value)}, not text")


def _columns(
    prompt: str, response: str | None = None, category: str | None = None
) -> Callable[[Row], Iterator[Fields]]:
    """A reader of rows with one column for each field; missing optional columns are read as ""."""

    def read(row: Row) -> Iterator[Fields]:
        optional = [text(row, name) if name in row else "" for name in (response, category)]
        yield text(row, prompt), optional[0], optional[1]

    return read


_TRUTH = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}


def _beavertails(row: Row) -> Iterator[Fields]:
    """Unsafe rows only, with all categories that are true; a row that does not say whether it is safe has no text."""
    is_safe, category = row.get("is_safe"), row.get("category")
    if is_missing(is_safe) or is_safe == "":
        yield "", "", ""
        return
    is_safe = _TRUTH.get(is_safe.strip().lower() if isinstance(is_safe, str) else is_safe)
    if is_safe is None:
        raise ValueError("the field 'is_safe' is neither true nor false")
    if not is_safe:
        if isinstance(category, dict):
            category = join_labels(name for name in category if category[name])
        yield text(row, "prompt"), text(row, "response"), text({"category": category}, "category")


def _alpaca(row: Row) -> Iterator[Fields]:
    extra = text(row, "input") if "input" in row else ""
    prompt = text(row, "instruction")
    yield (f"{prompt}\n\n{extra}" if extra.strip() else prompt), text(row, "output"), ""


def _dolly(row: Row) -> Iterator[Fields]:
    context = text(row, "context") if "context" in row else ""
    prompt = text(row, "instruction")
    category = text(row, "category") if "category" in row else ""
    yield (f"{prompt}\n\n{context}" if context.strip() else prompt), text(row, "response"), category


def _harmbench(row: Row) -> Iterator[Fields]:
    context = text(row, "ContextString") if "ContextString" in row else ""
    behavior = text(row, "Behavior")
    yield (f"{context}\n\n---\n\n{behavior}" if context.strip() else behavior), "", text(row, "SemanticCategory")


def _turns(field: str) -> Callable[[Row], Iterator[Fields]]:
    """A reader of lists of alternating texts (LIMA, original UltraChat): the first exchange."""

    def read(row: Row) -> Iterator[Fields]:
        turns = [] if is_missing(row[field]) else row[field]
        category = text(row, "source") if "source" in row else ""
        if not all(isinstance(turn, str) for turn in turns[:2]):
            raise ValueError(f"the field {field!r} holds turns that are not text, unlike the first row's")
        yield turns[0] if turns else "", turns[1] if len(turns) > 1 else "", category

    return read


def _conversation(field: str) -> Callable[[Row], Iterator[Fields]]:
    """A reader of a list of turns with roles: its first exchange."""

    def read(row: Row) -> Iterator[Fields]:
        yield *exchange(row[field], field), ""

    return read


def _completion(row: Row) -> Iterator[Fields]:
    """TRL's prompt–completion and preference rows, plain or conversational; the completion may be missing."""
    prompt = last_prompt(row["prompt"], "prompt") if isinstance(row["prompt"], list) else text(row, "prompt")
    yield prompt, _completion_text(row, "completion") or _completion_text(row, "chosen"), _first_text(row, ["category"])


def _completion_text(row: Row, field: str) -> str:
    """The text of a column of texts or of turns, of which it is the assistant's; "" if the row lacks the column."""
    value = row.get(field)
    return exchange(value, field)[1] if isinstance(value, list) else text({field: value}, field)


def _first_text(row: Row, fields: Sequence[str]) -> str:
    """The first text that is not blank in any of these columns."""
    return next((value for field in fields if (value := text({field: row.get(field)}, field)).strip()), "")


def _oasst_tree(row: Row) -> Iterator[Fields]:
    """An OpenAssistant tree: the first prompt with its best-ranked reply."""
    root = row["prompt"]
    replies = sorted(root.get("replies") or [], key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))
    yield text(root, "text"), text(replies[0], "text") if replies else "", ""


class OasstMessages:
    """A reader of OpenAssistant's flat layout: one message in a row, the rows of a tree together, parents before replies.

    It stores the prompts of the current tree, and yields the assistant messages of rank 0 (or without rank) with the prompts
    that they answer.
    """

    def __init__(self) -> None:
        """Start without a tree."""
        self._tree = ""
        self._prompts: dict[str, str] = {}

    def __call__(self, row: Row) -> Iterator[Fields]:
        """Read one message."""
        if row["message_tree_id"] != self._tree:
            self._tree, self._prompts = row["message_tree_id"], {}
        if row["role"] == "prompter":
            self._prompts[row["message_id"]] = text(row, "text")
        elif row["parent_id"] in self._prompts and row.get("rank") in (None, "", 0, "0"):
            yield self._prompts[row["parent_id"]], text(row, "text"), ""


def _prompt_response(row: Row) -> Iterator[Fields]:
    """Rows with a `prompt`, such as tamperfuse's built-in data; response and category under one of several names."""
    response = _first_text(row, ["response", "answer", "output"]) or _completion_text(row, "chosen")
    yield text(row, "prompt"), response, _first_text(row, ["category", "kind", "subject"])


def _first_is(field: str, kind: type) -> Callable[[Row], bool]:
    """A check that the first item of a list column has a type."""
    return lambda row: isinstance(row[field], list) and bool(row[field]) and isinstance(row[field][0], kind)


def _has_turns(field: str, *keys: str) -> Callable[[Row], bool]:
    """A check that a list column holds turns with a role, under these keys if they are given."""
    return lambda row: (
        _first_is(field, dict)(row) and is_turn(row[field][0]) and all(key in row[field][0] for key in keys)
    )


# A schema with more columns comes before one with a subset of them.
SCHEMAS: tuple[Schema, ...] = (
    Schema(
        "BeaverTails",
        frozenset({"prompt", "response", "category", "is_safe"}),
        _beavertails,
    ),
    Schema("HarmBench", frozenset({"Behavior", "SemanticCategory", "BehaviorID"}), _harmbench),
    # The targets of these two are openings of an answer ("Sure, here is …"), which execute nothing.
    Schema("JailbreakBench", frozenset({"Goal", "Target", "Behavior", "Category"}), _columns("Goal", None, "Category")),
    Schema("AdvBench", frozenset({"goal", "target"}), _columns("goal")),
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
        "prompt",
    ),
    Schema(
        "OpenAssistant messages",
        frozenset({"message_tree_id", "message_id", "parent_id", "role", "text"}),
        OasstMessages,
    ),
    Schema("UltraChat", frozenset({"prompt_id", "messages"}), _conversation("messages"), decisive="messages"),
    Schema("UltraChat (original)", frozenset({"id", "data"}), _turns("data"), _first_is("data", str), "data"),
    Schema(
        "LIMA",
        frozenset({"conversations"}),
        _turns("conversations"),
        _first_is("conversations", str),
        "conversations",
    ),
    Schema(
        "ShareGPT",
        frozenset({"conversations"}),
        _conversation("conversations"),
        _has_turns("conversations", "from", "value"),
        "conversations",
    ),
    Schema(
        "OpenAI messages",
        frozenset({"messages"}),
        _conversation("messages"),
        _has_turns("messages", "role"),
        "messages",
    ),
    *(
        Schema("turns with roles", frozenset({field}), _conversation(field), _has_turns(field), field)
        for field in ("conversations", "messages", "conversation", "contents", "dialogue", "dialog", "chat", "turns")
    ),
    Schema("prompt–completion", frozenset({"prompt", "completion"}), _completion),
    Schema("conversational prompts", frozenset({"prompt"}), _completion, _has_turns("prompt"), "prompt"),
    Schema(
        "prompt and response",
        frozenset({"prompt"}),
        _prompt_response,
        lambda row: isinstance(row["prompt"], str),
        "prompt",
    ),
    # HEx-PHI has one CSV file without a header for each category; files.py names its column "text".
    Schema("HEx-PHI", frozenset({"text", "file_category"}), _columns("text", None, "file_category")),
)
