"use strict";
// Draws every panel in the page's colours, and again when the reader switches between light and dark.
const specs = JSON.parse(document.getElementById("specs").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const look = getComputedStyle(document.documentElement);
  const colour = (name) => look.getPropertyValue("--" + name).trim();
  const config = {
    background: "transparent",
    font: getComputedStyle(document.body).fontFamily,
    padding: {left: 2, right: 8, top: 8, bottom: 2},
    view: {stroke: null},
    axis: {labelColor: colour("soft"), titleColor: colour("soft"), gridColor: colour("line"), domainColor: colour("edge"),
      tickColor: colour("edge"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, titlePadding: 8},
    legend: {labelColor: colour("soft"), titleColor: colour("soft"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500,
      layout: {bottom: {direction: "vertical", anchor: "start"}}},
  };
  for (const [name, spec] of Object.entries(specs)) {
    const place = document.getElementById("plot-" + name);
    // ast: expressions are interpreted, not compiled, so that the page can forbid eval.
    vegaEmbed(place, spec, {mode: "vega-lite", actions: false, renderer: "svg", ast: true, config: config,
      tooltip: {theme: dark.matches ? "dark" : "light"}});
  }
}
draw();
dark.addEventListener("change", draw);
