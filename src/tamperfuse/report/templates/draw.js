"use strict";
// Draws every panel in the colors of the page, and again when it switches between light and dark.
const specs = JSON.parse(document.getElementById("specs").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue("--" + name).trim();
  const config = {
    background: "transparent",
    font: getComputedStyle(document.body).fontFamily,
    padding: {left: 2, right: 8, top: 8, bottom: 2},
    view: {stroke: null},
    axis: {labelColor: color("soft"), titleColor: color("soft"), gridColor: color("line"), domainColor: color("edge"),
      tickColor: color("edge"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, titlePadding: 8},
    legend: {labelColor: color("soft"), titleColor: color("soft"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500,
      layout: {bottom: {direction: "vertical", anchor: "start"}}},
  };
  for (const [name, spec] of Object.entries(specs)) {
    const element = document.getElementById("plot-" + name);
    // ast: expressions are interpreted instead of compiled, since the content security policy forbids eval.
    vegaEmbed(element, spec, {mode: "vega-lite", actions: false, renderer: "svg", ast: true, config: config,
      tooltip: {theme: dark.matches ? "dark" : "light"}});
  }
}
draw();
dark.addEventListener("change", draw);
