"""The values of a chart as a table, for readers who cannot hover over its points: each point's tooltip is a row."""

from dataclasses import dataclass
from typing import Any

from tamperfuse.report.formatting import MINUS, MISSING

#: Names the models whose points cover each other; in a table every model has its own row.
_ALL_MODELS = "all_models"


@dataclass(frozen=True)
class ValueTable:
    """Column titles, and a row for each point, of texts in the order of the columns."""

    columns: list[str]
    rows: list[list[str]]


def value_table(spec: dict[str, Any]) -> ValueTable | None:
    """The table of a chart; None for a chart without tooltips.

    Args:
        spec: its Vega-Lite specification, with inline data. Of the layers with tooltips the last one without a filter is read:
            the others mark some of its points.
    """
    layers = [{**spec, **layer} for layer in spec.get("layer", [{}])]
    points = [one for one in layers if "tooltip" in one.get("encoding", {}) and not _has_filter(one, spec)]
    if not points:
        return None
    fields = [field for field in points[-1]["encoding"]["tooltip"] if field["field"] != _ALL_MODELS]
    rows = [[_text(row.get(field["field"]), field.get("format", "")) for field in fields] for row in _data(points[-1])]
    return ValueTable([field.get("title", field["field"]) for field in fields], rows)


def _has_filter(layer: dict[str, Any], spec: dict[str, Any]) -> bool:
    """Whether a layer has a filter of its own, and not only that of the whole chart."""
    return layer.get("transform") != spec.get("transform")


def _data(layer: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a layer, which altair stores by name if several layers may share them."""
    data = layer["data"]
    rows: list[dict[str, Any]] = data["values"] if "values" in data else layer["datasets"][data["name"]]
    return rows


def _text(value: Any, form: str) -> str:
    """A value as the tooltip prints it; the formats that charts here use are the same in D3 and in Python."""
    if value is None:
        return MISSING
    text = format(value, form) if form else str(value)
    return text.replace("-", MINUS, 1) if isinstance(value, int | float) and text.startswith("-") else text
