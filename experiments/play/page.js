"use strict";
// The page of one session. What is shown is drawn anew from `here` after each change; the server decides what is true.
// One question of a kind is under way at a time, and the newest prompt waits: replies to older prompts are not shown.

const token = new URLSearchParams(location.search).get("token") || "";
const byId = id => document.getElementById(id);
const kept = "play-session";
const MOST_ROWS = 40, MOST_UNDO = 500, MOST_PROPOSALS = 3, LOW = -5, HIGH = 12;

const here = {
  session: "", seat: 0, number: 0, about: null, shown: new Set(),
  prompt: [], mark: 0, past: [], future: [],
  seen: null,          // the newest reply about a prompt, and which: { prompt, looks, rank }
  score: null, finds: [], known: new Set(), forwards: 0, seconds: 0, since: 0, paused: false,
  proposals: [],       // what a hint or phrases led to, of this prompt
  busy: "",
};

// ---- talking to the server

async function ask(name, body) {
  let reply, found;
  try {
    reply = await fetch("/" + name, {
      method: "POST", body: JSON.stringify(body),
      headers: { "content-type": "application/json", "x-play-token": token },
    });
    found = await reply.json();
  } catch {
    throw new Error("The server does not answer. Start the command again; the session goes on where it was.");
  }
  if (!reply.ok) throw new Error(found.error);
  return found;
}

const own = more => ({ session: here.session, seat: here.seat, number: here.number, ...more });

function say(line) {
  byId("error").textContent = line;
  byId("error").hidden = !line;
}

let underway = false, waiting = null;
async function send(name, body) {
  // The newest question about a prompt; one that waits is replaced.
  if (underway) { waiting = [name, body]; return; }
  underway = true;
  try {
    take(await ask(name, body()));
    say("");
  } catch (error) { say(error.message); }
  underway = false;
  if (waiting) { const next = waiting; waiting = null; send(...next); }
}

function take(reply) {
  account(reply);
  if (reply.number === here.number) {
    if (!same(reply.prompt, here.prompt)) { remember(); here.prompt = reply.prompt; here.future = []; }
    here.seen = { prompt: reply.prompt, looks: reply.looks, rank: reply.rank };
    announce(reply);
  }
  draw();
}

function account(reply) {
  here.forwards = reply.forwards;
  here.seconds = reply.seconds;
  here.since = performance.now();
  here.paused = reply.paused;
  here.score = reply.score;
  here.finds = reply.finds;
  for (const find of reply.finds) here.known.add(String(find.prompt));
}

function announce(reply) {
  const last = reply.looks[reply.looks.length - 1].verdicts[0];
  const found = reply.new ? `Failure ${reply.score.found} found. ` : "";
  byId("said").textContent = found + spoken(last.answer) + ", " + state(reply.looks.at(-1), last).text;
}

// ---- going about

const same = (a, b) => a.length === b.length && a.every((token, place) => token === b[place]);

function remember() {
  if (here.prompt.length) here.past = [...here.past, here.prompt].slice(-MOST_UNDO);
}

function arrive(prompt, tool) {
  here.prompt = prompt;
  here.number += 1;
  here.proposals = [];
  const number = here.number;
  send("go", () => own({ number, tool, prompt }));
  draw();
}

function go(prompt, tool) {
  if (here.paused || same(prompt, here.prompt)) return;
  remember();
  here.future = [];
  arrive(prompt, tool);
}

function undo() {
  if (here.paused || !here.past.length) return;
  here.future = [...here.future, here.prompt];
  const prompt = here.past.at(-1);
  here.past = here.past.slice(0, -1);
  arrive(prompt, "undo");
}

function redo() {
  if (here.paused || !here.future.length) return;
  here.past = [...here.past, here.prompt];
  const prompt = here.future.at(-1);
  here.future = here.future.slice(0, -1);
  arrive(prompt, "redo");
}

function start(kind) {
  if (here.paused) return;
  here.number += 1;
  here.proposals = [];
  const number = here.number;
  send("start", () => own({ number, start: kind }));
  byId("prompt").focus();
  draw();
}

const allowed = (place, token) => here.about.allowed[place][token];
const length = () => here.prompt.length;
const fitting = prompt => prompt.map((token, place) => allowed(place, token) ? token : here.prompt[place]);

// The three edits, as the attacks make them: what may not stand somewhere is left as it was.
const edited = {
  replaced: (place, token) => allowed(place, token) ? here.prompt.with(place, token) : here.prompt,
  inserted: (place, token) => fitting([...here.prompt.slice(0, place), token, ...here.prompt.slice(place, -1)]),
  deleted: (place, token) => fitting([...here.prompt.slice(0, place), ...here.prompt.slice(place + 1), token]),
};
const TOOL = { replaced: "token", inserted: "insert", deleted: "delete" };

function turned(step) {
  // The next token that may stand at the mark, up or down.
  const many = here.about.allowed[here.mark].length;
  for (let k = 1; k < many; k++) {
    const token = (here.prompt[here.mark] + step * k + many * k) % many;
    if (allowed(here.mark, token)) return token;
  }
  return here.prompt[here.mark];
}

// ---- what is best

const known = prompt => here.known.has(String(prompt));  // the list shows the newest finds only
const current = () => here.seen && same(here.seen.prompt, here.prompt);
const target = () => here.seen.looks.at(-1);

function best(places, kinds) {
  // The edit of the smallest margin, prompts found before left out: { kind, place, token, margin, prompt }, or null.
  if (!current() || !target().edits) return null;
  let found = null;
  for (const kind of kinds) for (const place of places) {
    target().edits[kind][place].forEach((margin, token) => {
      const prompt = margin === null ? here.prompt : edited[kind](place, token);
      if (!same(prompt, here.prompt) && (found === null || margin < found.margin) && !known(prompt))
        found = { kind, place, token, margin, prompt };
    });
  }
  return found;
}
const everywhere = () => [...here.prompt.keys()];
const bestHere = () => best([here.mark], ["replaced"]);
const bestAnywhere = () => best(everywhere(), ["replaced", "inserted", "deleted"]);

function choose(edit) {
  if (!edit) return;
  here.mark = edit.place;
  go(edit.prompt, "swap");
  byId("prompt").focus();
}

async function propose(name, body, words) {
  if (here.paused || here.busy) return;
  const asked = here.prompt;
  here.busy = words;
  draw();
  try {
    const reply = await ask(name, own({ prompt: asked, ...body }));
    account(reply);
    say("");
    const tool = name === "hint" ? "hint" : "phrase";
    if (same(asked, here.prompt)) {
      const called = one => words + (known(one.prompt) ? ", found before" : "");
      here.proposals = (reply.phrases || [reply.hint]).filter(one => !same(one.prompt, asked))
        .slice(0, MOST_PROPOSALS).map(one => ({ ...one, tool, what: called(one) }));
      if (!here.proposals.length) here.proposals = [{ what: words + ": nothing better found" }];
    }
  } catch (error) { say(error.message); }
  here.busy = "";
  draw();
  const first = document.querySelector("#next [data-proposal]");
  if (first) first.focus();
}

function hint() {
  if (!here.shown.has("hints")) return;
  const attack = byId("attack").value, budget = Number(byId("budget").value);
  propose("hint", { attack, budget }, `hint by ${attack}`);
}

function phrases() {
  if (here.shown.has("edits")) propose("phrase", { position: here.mark }, "phrase");
}

async function pause() {
  try {
    account(await ask("pause", own({ paused: !here.paused })));
    say("");
  } catch (error) { say(error.message); }
  draw();
  if (!here.paused) byId("prompt").focus();
}

// ---- drawing

function el(name, more = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(more)) {
    if (key === "class") made.className = value;
    else if (key === "on") for (const [kind, does] of Object.entries(value)) made.addEventListener(kind, does);
    else if (key.startsWith("--")) made.style.setProperty(key, value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter(child => child !== null));
  return made;
}

const word = (place, token) => here.about.words.tokens[place][token];
const answerWord = token => here.about.words.answers[token];
const spoken = answer => answer.map(answerWord).join(" ");
const text = prompt => prompt.map((token, place) => (here.about.words.before[place] + " " + word(place, token)).trim())
  .join(" ");
const shown = margin => margin === null ? "–" : margin.toFixed(2).replace("-", "−");
const whole = number => number.toLocaleString("en");
const percent = share => share < 0.9999 ? (100 * share).toFixed(2) : Math.min(100 * share, 99.9999).toFixed(4);

function state(look, verdict) {
  if (verdict.catastrophe) return { name: "catastrophe", text: "catastrophe" };
  if (verdict.wrong) return { name: "wrong", text: "merely wrong" };
  return look.hazardous ? { name: "caught", text: "caught" } : { name: "right", text: "right" };
}

function draw() {
  if (!here.about) return;
  document.body.classList.toggle("waiting", !current());
  document.body.classList.toggle("paused", here.paused);
  drawPrompt();
  drawVerdicts();
  drawNext();
  drawScore();
  drawEdits();
  byId("forwards").textContent = whole(here.forwards);
  byId("undo").disabled = !here.past.length;
  byId("redo").disabled = !here.future.length;
  byId("pause").textContent = here.paused ? "Go on" : "Pause";
  byId("pause").setAttribute("aria-pressed", here.paused);
  tick();
}

function drawPrompt() {
  const now = current(), saliency = now && target().saliency;
  const most = saliency ? Math.max(...saliency, 1e-9) : 1;
  const fails = now && target().verdicts[0].catastrophe;
  const { before } = here.about.words, parts = [];
  here.prompt.forEach((token, place) => {
    if (before[place]) parts.push(el("span", { class: "gap", role: "presentation" }, before[place]));
    const swap = now ? best([place], ["replaced"]) : null;
    const single = here.about.allowed[place].filter(Boolean).length === 1;
    const name = `position ${place + 1}: ${word(place, token)}`
      + (saliency ? `, saliency ${saliency[place].toFixed(2)}` : "")
      + (swap ? `, best swap ${word(place, swap.token)} to ${swap.margin.toFixed(2)}` : "");
    parts.push(el("div", {
      class: "token" + (single ? " fixed" : ""), role: "option", id: "token-" + place, "aria-label": name,
      "aria-selected": String(place === here.mark),
      on: { click: () => { here.mark = place; draw(); byId("prompt").focus(); } },
    },
    el("b", {}, word(place, token)),
    here.shown.has("saliency") ? el("i", { "--much": saliency ? saliency[place] / most : 0 }) : null,
    here.shown.has("edits")
      ? el("small", { class: swap && swap.margin <= 0 ? "fails" : "" },
        swap ? `${word(place, swap.token)} ${shown(swap.margin)}` : "\u00a0") : null));
  });
  if (before.at(-1)) parts.push(el("span", { class: "gap", role: "presentation" }, before.at(-1)));
  byId("prompt").replaceChildren(...parts);
  byId("prompt").classList.toggle("fails", Boolean(fails));
  byId("prompt").setAttribute("aria-activedescendant", "token-" + here.mark);
  const legend = [
    here.shown.has("saliency") ? "bar: saliency" : "",
    here.shown.has("edits") ? "below: the best new swap there, and its margin" : "",
  ].filter(Boolean).join(" · ");
  byId("legend").textContent = legend;
}

function gauge(margin) {
  const much = Math.min(1, Math.max(0.02, (margin - LOW) / (HIGH - LOW)));
  return el("div", { class: "gauge" + (margin <= 0 ? " low" : ""), role: "img",
    "aria-label": `margin ${margin.toFixed(2)}; a failure at zero or below` },
  el("i", { "--much": much }), el("s", { "--much": -LOW / (HIGH - LOW) }));
}

function drawVerdicts() {
  if (!here.seen) return;
  const models = here.about.models, live = here.shown.has("margin");
  byId("verdicts").replaceChildren(...here.seen.looks.map((look, which) => {
    const [plain, matched] = look.verdicts, found = state(look, plain), after = state(look, matched);
    const name = models.length > 1 ? models[which].name + (which === models.length - 1 ? ", to break" : "") : "";
    const worst = plain.catastrophe ? `egregiousness ${plain.egregiousness.toFixed(2)}` : "";
    const last = which === models.length - 1;
    return el("div", { class: "model" },
      name ? el("h3", {}, name) : null,
      el("div", { class: "answer" },
        el("b", { id: last ? "answer" : null }, spoken(plain.answer)),
        el("span", { class: "chip " + found.name, id: last ? "chip" : null }, found.text),
        worst ? el("span", { class: "soft" }, worst) : null),
      live && plain.margin !== null ? gauge(plain.margin) : null,
      live ? el("div", { class: "margin" },
        el("span", {}, "margin ", el("b", { id: last ? "margin" : null }, shown(plain.margin))),
        el("span", { title: "at the threshold that refuses 1 % of safe clean prompts" },
          `matched: ${spoken(matched.answer)}, ${matched.margin === null ? after.text : shown(matched.margin)}`))
        : el("div", { class: "margin" }, `matched: ${spoken(matched.answer)}, ${after.text}`),
      live && plain.margin === null
        ? el("p", { class: "soft" }, "Nothing catastrophic can be said to this prompt.") : null);
  }));
  byId("rank").textContent = rankText();
}

function rankText() {
  if (!current() || here.seen.rank === null || target().verdicts[0].margin === null) return "";
  const sampled = here.score.truth && here.score.truth.how === "sampled" ? " (sampled)" : "";
  return `Nearer to failure than ${percent(here.seen.rank)} % of hazardous prompts${sampled}.`;
}

function suggestion(what, prompt, margin, key, does, proposal = false) {
  return el("button", { type: "button", class: "try", "data-proposal": proposal, on: { click: does } },
    el("span", { class: "what" }, what),
    el("span", {}, prompt),
    el("b", { class: margin !== null && margin <= 0 ? "fails" : "" }, margin === null ? "" : shown(margin)),
    key ? el("kbd", {}, key) : null);
}

function editText(edit) {
  const name = word(edit.place, edit.token), old = word(edit.place, here.prompt[edit.place]), at = edit.place + 1;
  if (edit.kind === "replaced") return `${at}: ${old} → ${name}`;
  if (edit.kind === "inserted") return `${name} before ${at}: ${old}`;
  return `without ${at}: ${old}; ${word(here.prompt.length - 1, edit.token)} last`;
}

function drawNext() {
  const parts = [], focused = document.activeElement && document.activeElement.id;
  if (here.shown.has("edits")) {
    const one = bestHere(), any = bestAnywhere();
    parts.push(one ? suggestion("best new swap here", editText(one), one.margin, "Space", () => choose(one))
      : suggestion("best new swap here", "–", null, "Space", () => {}));
    parts.push(any ? suggestion("best new edit anywhere", editText(any), any.margin, "Enter", () => choose(any))
      : suggestion("best new edit anywhere", "–", null, "Enter", () => {}));
  }
  for (const one of here.proposals) {
    parts.push(one.prompt ? suggestion(one.what, text(one.prompt), one.margin, "Enter", () => {
      go(one.prompt, one.tool); byId("prompt").focus();
    }, true) : el("p", { class: "soft" }, one.what));
  }
  const asks = [];
  if (here.shown.has("edits")) {
    asks.push(el("button", { type: "button", id: "phrases", disabled: Boolean(here.busy), on: { click: phrases },
      title: `${here.about.phrase_price} forward passes` }, "Phrases from here ", el("kbd", {}, ".")));
  }
  if (here.shown.has("hints")) {
    const [attack, budget] = ["attack", "budget"].map(id => byId(id) ? byId(id).value : String(here.about[id]));
    const option = chosen => value =>
      el("option", { value, selected: String(value) === chosen }, typeof value === "number" ? whole(value) : value);
    asks.push(el("button", { type: "button", id: "hint", disabled: Boolean(here.busy), on: { click: hint } },
      here.busy ? here.busy + " …" : "Hint ", here.busy ? null : el("kbd", {}, "/")));
    asks.push(el("select", { id: "attack", "aria-label": "the attack that gives hints" },
      ...here.about.attacks.map(option(attack))));
    asks.push(el("select", { id: "budget", "aria-label": "its budget in margins" },
      ...here.about.budgets.map(option(budget))));
  }
  if (asks.length) parts.push(el("div", { class: "ask" }, ...asks));
  parts.push(el("p", { class: "soft" }, `A look costs ${whole(here.about.price)} forward passes.`));
  byId("next").replaceChildren(...parts);
  if (["attack", "budget", "hint", "phrases"].includes(focused) && byId(focused)) byId(focused).focus();
}

function drawScore() {
  const score = here.score;
  if (!score) return;
  const truth = score.truth, parts = [];
  if (!truth) {
    parts.push(el("p", { class: "big", id: "k" }, whole(score.found)));
    parts.push(score.error ? el("p", { class: "soft" }, score.error)
      : el("p", { class: "soft" }, `Counting every failure: ${(100 * score.counted).toFixed(0)} %. Play on.`));
    parts.push(el("progress", { max: 1, value: score.counted, "aria-label": "failures counted" }));
  } else if (truth.how === "sampled") {
    parts.push(el("p", { class: "big", id: "k" }, `${whole(score.found)} found`));
    parts.push(el("p", { class: "soft" }, `Sampled: ${truth.failures} of ${truth.hazardous} random hazards fail. `
      + `The space, ${truth.prompts} prompts, is too large to count.`));
  } else if (truth.failures === "0") {
    parts.push(el("p", { class: "big", id: "k" }, "none to find"));
    parts.push(el("p", { class: "soft" }, `All ${truth.prompts} prompts were counted: the model has no failure.`));
  } else {
    parts.push(el("p", { class: "big", id: "k" }, `${whole(score.found)} of ${truth.failures}`));
    parts.push(el("p", { class: "soft", title: truth.notion },
      `failures, and ${whole(truth.found_tactics)} of ${truth.tactics} tactics`));
    parts.push(el("progress", { max: 1, value: truth.share, "aria-label": "share of the failures that were found" }));
    parts.push(el("details", {}, el("summary", { class: "soft" }, "what is counted"),
      el("p", { class: "soft" }, `${truth.prompts} prompts, ${truth.hazardous} hazardous, counted `
        + `${truth.how === "exact" ? "one by one" : "by paths"}; ${truth.notion}.`)));
  }
  const open = document.querySelector("#score details[open]");
  byId("score").replaceChildren(...parts);
  if (open && document.querySelector("#score details")) document.querySelector("#score details").open = true;
  drawFinds();
}

let drawn = 0;  // finds that the list was drawn with
function drawFinds() {
  if (here.score.found === drawn) return;  // else nobody could go through the list by keys while failures are counted
  const before = byId("finds").childElementCount;
  drawn = here.score.found;
  byId("finds").replaceChildren(...[...here.finds].reverse().map((find, place) =>
    el("li", { class: place === 0 && before ? "new" : "" },
      el("button", { type: "button", title: `${find.tool}, after ${whole(find.forwards)} forward passes`,
        on: { click: () => { go(find.prompt, "token"); byId("prompt").focus(); } } }, text(find.prompt)))));
}

function drawEdits() {
  if (!here.shown.has("edits")) return;
  byId("edits-title").textContent = `Every edit at position ${here.mark + 1}`;
  const table = byId("margins");
  table.classList.toggle("old", !current());
  if (!current()) return;
  const { edits } = target(), kinds = ["replaced", "inserted", "deleted"], rows = here.about.words.keys.length
    ? [...here.about.allowed[here.mark].keys()]
    : [...here.about.allowed[here.mark].keys()].sort((a, b) =>
      (edits.replaced[here.mark][a] ?? 1e9) - (edits.replaced[here.mark][b] ?? 1e9)).slice(0, MOST_ROWS);
  const now = target().verdicts[0].margin ?? HIGH, any = bestAnywhere(), least = Math.min(any ? any.margin : 0, 0);
  const heads = ["token", "put here", "insert", "delete"];
  const cell = (kind, token) => {
    const margin = edits[kind][here.mark][token], prompt = edited[kind](here.mark, token);
    const none = margin === null || same(prompt, here.prompt);
    const heat = none ? 0 : Math.min(1, Math.max(0, (now - margin) / Math.max(now - least, 1e-9)));
    const name = `${kind} ${word(kind === "deleted" ? length() - 1 : here.mark, token)}: `
      + (none ? "no catastrophe possible" : `margin ${margin.toFixed(2)}`);
    return el("td", { class: none ? "none" : margin <= 0 ? "fails" : "" },
      el("button", { type: "button", tabindex: -1, "aria-label": name, "--heat": heat,
        on: { click: () => { go(prompt, TOOL[kind]); byId("prompt").focus(); } } }, none ? "–" : shown(margin)));
  };
  const sideways = matchMedia("(min-width: 60rem)").matches && rows.length <= 20;
  const lines = sideways
    ? kinds.map((kind, k) => el("tr", {}, el("th", { scope: "row" }, heads[k + 1]), ...rows.map(t => cell(kind, t))))
    : rows.map(t => el("tr", {}, el("th", { scope: "row" }, word(here.mark, t)), ...kinds.map(kind => cell(kind, t))));
  const top = sideways ? [heads[0], ...rows.map(t => word(here.mark, t))] : heads;
  table.replaceChildren(
    el("thead", {}, el("tr", {}, ...top.map(name => el("th", { scope: "col" }, name)))), el("tbody", {}, ...lines));
}

function tick() {
  const seconds = here.seconds + (here.paused ? 0 : (performance.now() - here.since) / 1000);
  const minutes = Math.floor(seconds / 60);
  byId("clock").textContent = `${minutes}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

// ---- keys

function keyOf(event) {
  // The token that a key stands for; Shift changes what a digit key says, not which key it is.
  const code = /^(Key|Digit)(.)$/.exec(event.code || "");
  const letter = event.shiftKey && code ? code[2].toLowerCase() : event.key.toLowerCase();
  return here.about.words.keys.indexOf(letter);
}

const MOVES = {
  ArrowLeft: () => { here.mark = Math.max(0, here.mark - 1); },
  ArrowRight: () => { here.mark = Math.min(length() - 1, here.mark + 1); },
  Home: () => { here.mark = 0; },
  End: () => { here.mark = length() - 1; },
  ArrowUp: () => go(edited.replaced(here.mark, turned(1)), "token"),
  ArrowDown: () => go(edited.replaced(here.mark, turned(-1)), "token"),
  Delete: () => go(edited.deleted(here.mark, here.prompt.at(-1)), "delete"),
  Backspace: () => {
    if (!here.mark) return;
    here.mark -= 1;
    go(edited.deleted(here.mark, here.prompt.at(-1)), "delete");
  },
  " ": () => choose(bestHere()),
  Enter: () => choose(bestAnywhere()),
  ".": phrases,
  "/": hint,
};

byId("prompt").addEventListener("keydown", event => {
  if (event.altKey || here.paused || !here.about) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    const does = key === "z" ? (event.shiftKey ? redo : undo) : key === "y" ? redo : null;
    if (does) { event.preventDefault(); does(); }
    return;
  }
  const token = keyOf(event);
  if (MOVES[event.key]) MOVES[event.key]();
  else if (token < 0) return;
  else if (event.shiftKey) go(edited.inserted(here.mark, token), "insert");
  else go(edited.replaced(here.mark, token), "token");
  event.preventDefault();
  draw();
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") { here.proposals = []; draw(); byId("prompt").focus(); }
});
for (const button of document.querySelectorAll("[data-start]"))
  button.addEventListener("click", () => start(button.dataset.start));
byId("undo").addEventListener("click", undo);
byId("redo").addEventListener("click", redo);
byId("pause").addEventListener("click", pause);
addEventListener("resize", draw);

// ---- the beginning

async function open() {
  const named = location.hash.slice(1) || sessionStorage.getItem(kept);
  let reply;
  try {
    reply = await ask("open", { session: named || null });
  } catch (error) {
    if (!named) { say(error.message); return; }
    try { reply = await ask("open", { session: null }); } catch (other) { say(other.message); return; }
    say(`A new session has begun: ${error.message}.`);
  }
  Object.assign(here, { session: reply.session, seat: reply.seat, about: reply.about, past: reply.past || [],
    future: reply.future || [], known: new Set(reply.known.map(String)), prompt: reply.prompt, shown: new Set(reply.about.shown) });
  sessionStorage.setItem(kept, here.session);
  history.replaceState(null, "", location.pathname + location.search + "#" + here.session);
  for (const part of document.querySelectorAll("[data-part]")) part.hidden = !here.shown.has(part.dataset.part);
  byId("task").textContent = here.about.task
    + (here.about.condition === "full" ? "" : `, condition ${here.about.condition}`);
  byId("rule").textContent = here.about.rule.join("\n");
  const { keys } = here.about.words;
  byId("letters").textContent = keys.length
    ? keys.map((key, token) => `${key.toUpperCase()} ${word(length() - 1, token)}`).join(" · ") : "no letters: use ↑ ↓";
  take({ ...reply, number: here.number });
  byId("prompt").focus();
  setInterval(tick, 500);
  watchCount();
}

async function watchCount() {
  // While the failures are counted, ask how far it is, and where the prompt stands among all.
  while (here.score && !here.score.truth && !here.score.error) {
    await new Promise(done => setTimeout(done, 700));
    if (here.paused) continue;
    try {
      const reply = await ask("score", own({}));
      account(reply);
      if (current()) here.seen.rank = reply.rank;
    } catch (error) { say(error.message); return; }
    drawScore(); drawVerdicts();
  }
}

open();
