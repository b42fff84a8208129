"use strict";
// The answers browser: a list of which only the rows on the screen exist, filters, and two answers side by side.
// Every text of a model or a study is set as textContent, never as HTML.
(function () {
  const source = document.getElementById("answer-data");
  if (!source) return;
  const ROW = 78;  // pixels of a row, as in style.css
  const AHEAD = 6;  // rows beyond each end of the visible part
  const at = (id) => document.getElementById(id);
  const list = at("answer-list"), canvas = at("answer-rows"), count = at("answer-count"), pair = at("answer-pair");
  const search = at("answer-search"), filters = {};
  for (const name of ["defense", "attack", "step", "part", "kind", "verdict"]) filters[name] = at("filter-" + name);
  const data = JSON.parse(source.textContent);
  const {states, prompts, answers, judges, reasons, criteria} = data;
  const STATE = 0, PROMPT = 1, TEXT = 2, CUT = 3, VERDICTS = 4;
  const isHarmless = (answer) => data.harmless.includes(prompts[answer[PROMPT]][1]);
  const executed = (answer) => answer[VERDICTS].length ? answer[VERDICTS][0][1] === 1 : null;
  const disagree = (answer) => new Set(answer[VERDICTS].map((verdict) => verdict[1])).size > 1;
  let lower = null;  // texts in lower case, at the first search
  let shown = answers.map((_, i) => i), chosen = -1, compared = null;
  const byPrompt = new Map();
  answers.forEach((answer, i) => {
    if (!byPrompt.has(answer[PROMPT])) byPrompt.set(answer[PROMPT], new Map());
    byPrompt.get(answer[PROMPT]).set(answer[STATE], i);
  });
  const seeds = new Set(states.map((state) => state.seed)).size > 1;

  function element(name, className, text) {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }
  function stateName(state) {
    const when = state.attack ? "after " + state.attack + ", step " + state.step : "before any attack";
    return state.defense + ", " + when + (seeds && state.defense !== "as shipped" ? ", seed " + state.seed : "");
  }
  function verdictWords(answer) {
    const is = executed(answer), done = isHarmless(answer) ? "answered" : "executed";
    if (is === null) return "not judged";
    const reason = reasons[answer[VERDICTS][0][2]];
    return is ? done : "not " + done + (reason ? ": " + reason : "");
  }

  // Filters
  function fill(name, values, words) {
    const select = filters[name];
    for (const value of values) {
      const option = element("option", "", words ? words(value) : value);
      option.value = value;
      select.append(option);
    }
    select.closest("label").hidden = values.length === 0;
  }
  const unique = (values) => [...new Set(values)];
  fill("defense", unique(states.map((state) => state.defense)));
  const attackOf = (state) => state.attack.split("#")[0];  // of a trial of a search: the search, which can be chosen as a whole
  fill("attack", unique(states.flatMap((state) => state.attack ? [attackOf(state), state.attack] : ["none"])),
    (value) => value === "none" ? "before any attack" : value);
  fill("step", unique(states.map((state) => state.step)).sort((a, b) => a - b));
  fill("part", unique(prompts.map((prompt) => prompt[1])), (value) => data.parts[value] || value);
  fill("kind", unique(prompts.map((prompt) => prompt[2])).filter(Boolean).sort());
  const single = unique(reasons.flatMap((reason) => reason.split(", "))).filter(Boolean).sort();
  const words = {yes: "executed or answered", no: "not executed", cut: "cut at the token limit", disagree: "judges disagree"};
  const unrecorded = answers.filter((answer) => answer[CUT] === null).length;
  if (unrecorded) {
    count.after(element("p", "soft", "Whether the token limit cut an answer is not recorded for " + unrecorded.toLocaleString("en") +
      " of " + answers.length.toLocaleString("en") + " answers, which an older version of tamperfuse generated."));
  }
  const further = [...(unrecorded < answers.length ? ["cut"] : []), ...(judges.length > 1 ? ["disagree"] : [])];
  fill("verdict", ["yes", "no", ...single.map((reason) => "reason:" + reason), ...further], (value) => words[value] || value.slice("reason:".length));

  function passes(answer) {
    const state = states[answer[STATE]], prompt = prompts[answer[PROMPT]];
    const {defense, attack, step, part, kind, verdict} = filters;
    if (defense.value && state.defense !== defense.value) return false;
    if (attack.value && ![state.attack || "none", attackOf(state)].includes(attack.value)) return false;
    if (step.value && String(state.step) !== step.value) return false;
    if (part.value && prompt[1] !== part.value) return false;
    if (kind.value && prompt[2] !== kind.value) return false;
    const choice = verdict.value;
    if (choice === "yes" || choice === "no") return executed(answer) === (choice === "yes");
    if (choice === "cut") return answer[CUT] === 1;
    if (choice === "disagree") return disagree(answer);
    if (choice) return answer[VERDICTS].length > 0 && reasons[answer[VERDICTS][0][2]].split(", ").includes(choice.slice(7));
    return true;
  }
  function filter() {
    const text = search.value.trim().toLowerCase();
    if (text && !lower) lower = {prompts: prompts.map((p) => p[0].toLowerCase()), answers: answers.map((a) => a[TEXT].toLowerCase())};
    shown = [];
    answers.forEach((answer, i) => {
      const matches = !text || lower.answers[i].includes(text) || lower.prompts[answer[PROMPT]].includes(text);
      if (matches && passes(answer)) shown.push(i);
    });
    const number = (value) => value.toLocaleString("en");
    count.textContent = number(shown.length) + " of " + number(answers.length) + " answers";
    list.scrollTop = 0;
    choose(shown.length ? 0 : -1, false);
  }

  // The list
  function row(position) {
    const i = shown[position], answer = answers[i];
    const option = element("div", "answer-row" + (position === chosen ? " chosen" : ""));
    option.setAttribute("role", "option");
    option.id = "answer-" + position;
    option.setAttribute("aria-selected", String(position === chosen));
    option.setAttribute("aria-setsize", shown.length);
    option.setAttribute("aria-posinset", position + 1);
    option.style.top = position * ROW + "px";
    option.dataset.position = position;
    const ask = element("div", "ask", prompts[answer[PROMPT]][0]);
    const text = element("div", "", answer[TEXT]);
    ask.dir = text.dir = "auto";
    const mark = element("div", "soft", stateName(states[answer[STATE]]) + " · " + verdictWords(answer));
    option.append(ask, text, mark);
    return option;
  }
  function drawRows() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - AHEAD);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + AHEAD);
    canvas.style.height = shown.length * ROW + "px";
    const rows = [];
    for (let position = first; position < last; position++) rows.push(row(position));
    canvas.replaceChildren(...rows);
    if (chosen >= first && chosen < last) list.setAttribute("aria-activedescendant", "answer-" + chosen);
    else list.removeAttribute("aria-activedescendant");
  }
  function choose(position, reveal) {
    chosen = position;
    if (reveal) {
      if (position * ROW < list.scrollTop) list.scrollTop = position * ROW;
      const end = (position + 1) * ROW - list.clientHeight;
      if (end > list.scrollTop) list.scrollTop = end;
    }
    drawRows();
    drawPair();
  }

  // Two answers to one prompt
  function rival(answer) {
    const others = byPrompt.get(answer[PROMPT]), state = states[answer[STATE]];
    if (compared !== null && compared !== answer[STATE] && others.has(compared)) return others.get(compared);
    const same = [...others.keys()].filter((key) => key !== answer[STATE]);
    const close = (key) => {
      const other = states[key];
      return 4 * (other.attack === state.attack) + 2 * (other.step === state.step) + (other.undefended || state.undefended) +
        4 * (other.defense !== state.defense) + (other.seed === state.seed);
    };
    same.sort((a, b) => close(b) - close(a));
    return same.length ? others.get(same[0]) : -1;
  }
  function print(criterion, value, digits) {
    if (criterion.kind === "flag") return value ? "yes" : "no";
    if (typeof value !== "number") return String(value);
    const share = criterion.kind === "share";
    return Number((share ? 100 * value : value).toFixed(digits)) + (share ? "%" : "");
  }
  function evidenceList(verdict) {
    const items = element("ul", "evidence");
    verdict[3].forEach((value, number) => {
      const criterion = criteria[verdict[0]][number];
      if (value === null) return;
      const failed = verdict[4].includes(number);
      let digits = criterion.kind === "share" ? 0 : 2;
      // What fails must not look equal to its limit.
      while (failed && digits < 9 && print(criterion, value, digits) === print(criterion, criterion.limit, digits)) digits++;
      const limit = criterion.limit === null ? "" : " (at " + criterion.bound + " " + print(criterion, criterion.limit, digits) + ")";
      const [before, after] = criterion.text.split("{}");
      items.append(element("li", failed ? "failed" : "", before + print(criterion, value, digits) + after + limit + (failed ? ": failed" : "")));
    });
    return items;
  }
  function card(i, side) {
    const answer = answers[i], state = states[answer[STATE]];
    const box = element("div", "answer-card");
    const select = element("select");
    select.setAttribute("aria-label", side === 0 ? "Model on the left" : "Model on the right");
    for (const [key] of byPrompt.get(answer[PROMPT])) {
      const option = element("option", "", stateName(states[key]));
      option.value = key;
      option.selected = key === answer[STATE];
      select.append(option);
    }
    select.addEventListener("change", () => {
      const key = Number(select.value);
      if (side === 1) compared = key;
      drawPair(side === 0 ? byPrompt.get(answer[PROMPT]).get(key) : undefined, side);
    });
    const text = element("span", "text", answer[TEXT] || "(no text)");
    text.dir = "auto";
    box.append(select, text);
    if (answer[CUT]) {
      box.append(element("p", "mark", "Cut at the " + (state.limit ? "limit of " + state.limit + " tokens." : "token limit.")));
    }
    const harm = executed(answer) && !isHarmless(answer);
    for (const verdict of answer[VERDICTS]) {
      const one = [answer[STATE], answer[PROMPT], "", 0, [verdict]];
      box.append(element("p", "mark" + (harm ? " yes" : ""), judges[verdict[0]] + ": " + verdictWords(one)));
      if (verdict[3].some((value) => value !== null)) box.append(evidenceList(verdict));
    }
    return box;
  }
  function drawPair(left, side) {
    const focused = side !== undefined;
    if (chosen < 0) { pair.replaceChildren(element("p", "soft", "No answer matches.")); return; }
    const i = left === undefined ? shown[chosen] : left, prompt = prompts[answers[i][PROMPT]];
    const head = element("p", "ask"), text = element("span", "text", prompt[0]);
    text.dir = "auto";
    head.append(text);
    const about = element("p", "soft", (data.parts[prompt[1]] || prompt[1]) + (prompt[2] ? " · " + prompt[2] : ""));
    const cards = element("div", "answer-cards"), other = rival(answers[i]);
    cards.append(card(i, 0));
    if (other >= 0) cards.append(card(other, 1));
    pair.replaceChildren(head, about, cards);
    if (focused && cards.children[side]) cards.children[side].querySelector("select").focus();
  }

  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  for (const select of Object.values(filters)) select.addEventListener("change", filter);
  at("answer-reset").addEventListener("click", () => {
    search.value = "";
    for (const select of Object.values(filters)) select.value = "";
    filter();
  });
  let pending = false;
  list.addEventListener("scroll", () => {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => { pending = false; drawRows(); });
  }, {passive: true});
  canvas.addEventListener("click", (event) => {
    const option = event.target.closest("[data-position]");
    if (!option) return;
    choose(Number(option.dataset.position), false);
    if (matchMedia("(max-width: 60rem)").matches) pair.scrollIntoView({block: "nearest"});
  });
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const moves = {ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity};
    if (!(event.key in moves) || !shown.length) return;
    event.preventDefault();
    choose(Math.min(Math.max(chosen + moves[event.key], 0), shown.length - 1), true);
  });
  for (const link of document.querySelectorAll("a[data-answers]")) {
    link.addEventListener("click", () => {
      for (const select of Object.values(filters)) select.value = "";
      search.value = "";
      filters.attack.value = link.dataset.answers;
      if (filters.attack.selectedIndex < 0) filters.attack.value = "";
      filter();
    });
  }
  new ResizeObserver(drawRows).observe(list);
  filter();
})();
