"use strict";
// Sends a prompt and writes the answers as they arrive. Every text is set as textContent, never as HTML.
(function () {
  const at = (id) => document.getElementById(id);
  const form = at("ask-form"), box = at("prompt"), ask = at("ask-button"), stop = at("stop-button"), status = at("ask-status");
  let running = null;  // what ends the request that is being answered

  function setRunning(controller) {
    running = controller;
    ask.setAttribute("aria-disabled", String(Boolean(running)));
    stop.setAttribute("aria-disabled", String(!running));
  }

  // Answers
  function newTurn(prompt) {
    const turn = at("turn").content.cloneNode(true).firstElementChild;
    turn.querySelector(".ask .text").textContent = prompt;
    at("turns").prepend(turn);
    if (matchMedia("(max-width: 60rem)").matches) turn.scrollIntoView();  // the answers are below the screen
    return [...turn.querySelectorAll(".answer-card")].map((card) => {
      card.setAttribute("aria-busy", "true");
      return {card, text: card.querySelector(":scope > .text"), mark: card.querySelector(".mark"), ended: false};
    });
  }
  function end(answer, words, isError) {
    answer.ended = true;
    answer.card.removeAttribute("aria-busy");
    if (isError) answer.mark.setAttribute("role", "alert");
    answer.mark.textContent = words;
    answer.mark.hidden = !words;
  }
  function receive(event, cards) {
    if (event.done) return;
    const answer = cards[event.model];
    if (event.error) { end(answer, event.error, true); return; }
    answer.text.textContent = event.text;
    if (!event.end) return;
    if (!event.text) answer.text.textContent = "(no text)";
    end(answer, event.end === "limit" ? "Cut at the maximum length." : "", false);
  }
  async function readEvents(response, cards) {
    const reader = response.body.getReader(), decoder = new TextDecoder();
    let rest = "", done = false;
    for (;;) {
      const part = await reader.read();
      if (part.done) break;
      const lines = (rest + decoder.decode(part.value, {stream: true})).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const event = JSON.parse(line);
        receive(event, cards);
        done = done || Boolean(event.done);
      }
    }
    if (!done) throw new Error("The answers ended early: see the terminal.");
  }
  async function send(prompt) {
    const controller = new AbortController(), cards = newTurn(prompt);
    setRunning(controller);
    status.textContent = "The models are answering.";
    let outcome = "The answers are complete.";
    try {
      const response = await fetch("/ask", {
        method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({prompt}), signal: controller.signal,
      });
      if (!response.ok) throw new Error((await response.json()).error);
      await readEvents(response, cards);
    } catch (error) {
      if (controller.signal.aborted) outcome = "Stopped.";
      else outcome = error instanceof TypeError ? "The server does not answer: is the command still running?" : error.message;
    }
    for (const answer of cards) if (!answer.ended) end(answer, outcome, false);
    status.textContent = outcome;
    setRunning(null);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = box.value.trim();
    if (!running && prompt) send(prompt);
  });
  stop.addEventListener("click", () => { if (running) running.abort(); });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });

  // Prompts of the threat
  const list = at("prompt-list");
  if (!list) return;
  const search = at("prompt-search"), count = at("prompt-count");
  const groups = [...list.querySelectorAll("optgroup")].map((group) => ({group, options: [...group.children]}));
  const total = groups.reduce((sum, {options}) => sum + options.length, 0);
  function filter() {
    const words = search.value.trim().toLowerCase();
    let shown = 0;
    for (const {group, options} of groups) {
      const matching = options.filter((option) => option.value.toLowerCase().includes(words));
      group.replaceChildren(...matching);
      shown += matching.length;
    }
    list.replaceChildren(...groups.map(({group}) => group).filter((group) => group.children.length));
    count.textContent = shown.toLocaleString("en") + " of " + total.toLocaleString("en") + " prompts";
  }
  search.addEventListener("input", filter);
  // A click on the option that is chosen already is no change.
  for (const kind of ["change", "click"]) list.addEventListener(kind, () => { if (list.value) box.value = list.value; });
  list.addEventListener("dblclick", () => form.requestSubmit());
  list.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); form.requestSubmit(); }
  });
  filter();
})();
