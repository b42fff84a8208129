"use strict";
// Draws a panel when it comes near the screen, in the colors of the page, and again when it switches between light and dark.
const specs = JSON.parse(document.getElementById("specs").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const drawn = new Set();
function draw(name) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue("--" + name).trim();
  const config = {
    background: "transparent",
    font: getComputedStyle(document.body).fontFamily,
    padding: {left: 2, right: 12, top: 12, bottom: 2},
    view: {stroke: null},
    axis: {labelColor: color("soft"), titleColor: color("soft"), gridColor: color("line"), domainColor: color("edge"),
      tickColor: color("edge"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, titlePadding: 8},
    legend: {labelColor: color("soft"), titleColor: color("soft"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500,
      layout: {bottom: {direction: "vertical", anchor: "start"}}},
  };
  const element = document.getElementById("plot-" + name);
  // Controls, such as a slider, stand beside the plot: the plot is one image, in which nothing can be focused.
  const controls = document.getElementById("bind-" + name);
  // ast: expressions are interpreted instead of compiled, since the content security policy forbids eval.
  vegaEmbed(element, specs[name], {mode: "vega-lite", actions: false, renderer: "svg", ast: true, config: config,
    tooltip: {theme: dark.matches ? "dark" : "light"}, bind: controls ? "#" + controls.id : undefined});
}
function drawOnce(name) {
  if (drawn.has(name)) return;
  drawn.add(name);
  draw(name);
}
// A panel in a folded part has no place on the screen until the part is opened.
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) drawOnce(entry.target.id.slice("plot-".length));
}, {rootMargin: "400px"});
for (const name of Object.keys(specs)) near.observe(document.getElementById("plot-" + name));
dark.addEventListener("change", () => drawn.forEach(draw));
window.addEventListener("beforeprint", () => Object.keys(specs).forEach(drawOnce));
