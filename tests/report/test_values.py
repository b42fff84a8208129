"""The tables below the figures have what their tooltips say."""

from collections.abc import Callable
from pathlib import Path

import altair as alt

from tamperfuse.report.figures import all_figures
from tamperfuse.report.inputs import read_folder
from tamperfuse.report.theory_figures import _frontier
from tamperfuse.report.values import value_table


def test_every_point_of_a_figure_is_a_row(make_run: Callable[..., Path]) -> None:
    figures = {figure.name: figure for figure in all_figures(read_folder(make_run()))}
    table = value_table(figures["harm"].panels[0].chart.to_dict())
    assert table is not None and table.columns == ["defense", "step", "executed", "from", "to", "prompts"]
    assert len(table.rows) == 2 * 6, "the rings around two of the points are no rows of their own"
    assert table.rows[0] == ["undefended", "0", "0.0%", "0.0%", "2.3%", "160"]
    assert ["SDD", "2", "33.1%", "26.3%", "40.7%", "160"] in table.rows
    capability = value_table(figures["capability"].panels[0].chart.to_dict())
    assert capability is not None and ["SDD", "after full-100", "88.0%", "84.0%", "92.0%"] in capability.rows


def test_a_chart_of_one_layer_and_one_without_tooltips() -> None:
    table = value_table(_frontier("container").panels[0].chart.to_dict())
    assert table is not None and table.columns == ["form", "fewer", "extra"]
    assert table.rows[0][:2] == ["exact", "0"] and table.rows[-1][0] == "limit"
    rows = alt.InlineData(values=[{"lost": -0.25, "kept": None}])
    plain = alt.Chart(rows).mark_line().encode(x="lost:Q")
    assert value_table(plain.to_dict()) is None
    tooltip = [alt.Tooltip("lost:Q", format="+.2%"), alt.Tooltip("kept:Q", title="left", format=".2f")]
    table = value_table(plain.encode(tooltip=tooltip).to_dict())
    assert table is not None and (table.columns, table.rows) == (["lost", "left"], [["−25.00%", "–"]])
