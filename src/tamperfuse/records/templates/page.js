"use strict";
// Words on hover and focus, folded parts that open when a link leads into them, and buttons that copy text.
const tip = document.getElementById("tip");
function showTip(event) {
  const element = event.target.closest && event.target.closest("[data-tip]");
  tip.hidden = !element;
  if (!element) return;
  tip.textContent = element.dataset.tip;
  const box = element.getBoundingClientRect();
  const width = tip.offsetWidth, height = tip.offsetHeight;
  const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), document.documentElement.clientWidth - width - 8);
  tip.style.left = left + "px";
  tip.style.top = (box.top - height - 8 > 0 ? box.top - height - 8 : box.bottom + 8) + "px";
}
for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, showTip);
document.addEventListener("focusout", () => { tip.hidden = true; });
document.addEventListener("scroll", () => { tip.hidden = true; }, {capture: true, passive: true});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

function openTarget() {
  let id = "";
  try { id = decodeURIComponent(location.hash.slice(1)); } catch (error) { return; }
  const target = id && document.getElementById(id);
  if (!target) return;
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  target.scrollIntoView();
}
window.addEventListener("hashchange", openTarget);
openTarget();
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details.curve")) part.open = true;
});

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch (error) {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected: press Ctrl+C";
    }
  });
}
