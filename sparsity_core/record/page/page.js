"use strict";
// One trace, drawn from the data block of this file. Arrays are deflated; their bytes stand plane by plane, the lowest first.

const byId = (id) => document.getElementById(id);
const RAMP = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"]
  .map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const KINDS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };
const ROWS = 5; // of an atlas cell: which of them a stage fills tells the stages apart
const FATES = {
  gate: { state: "gated", told: "dropped by the gate", rows: [0, 4], forGood: true },
  prefill: { state: "hidden", told: "hidden by the prefill stage", rows: [1, 2, 3], colour: [213, 94, 0] },
  eviction: { state: "dropped", told: "evicted", rows: [0, 1, 2, 3, 4], forGood: true },
  decode: { state: "unread", told: "not read by the decode stage", rows: [2], colour: [86, 180, 233] },
};
const STATES = {
  kept: "kept", sink: "kept: first tokens, or a rule", recent: "kept: recent", dropped: "evicted", gated: "dropped by the gate",
  hidden: "hidden by the prefill stage", unread: "not read by the decode stage", future: "not read yet",
};
const WINDOW = 512, WHOLE = 1024; // tokens that are drawn one by one, of a text longer than WHOLE

let trace, at, spans = [], playing = 0, saved = 0;

async function unpack({ kind, shape, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = Number(kind[1]), n = planes.length / size, whole = new Uint8Array(planes.length);
  for (let byte = 0; byte < size; byte++) for (let i = 0; i < n; i++) whole[i * size + byte] = planes[byte * n + i];
  return Object.assign(new KINDS[kind](whole.buffer), { shape });
}

async function start() {
  trace = JSON.parse(byId("data").textContent);
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old to unpack the trace: use one of 2023 or later");
  for (const [name, packed] of Object.entries(trace.arrays)) trace[name] = await unpack(packed);
  const T = trace.tokens.length, middle = trace.nPrompt < T ? trace.nPrompt - 1 : Math.floor(0.66 * (T - 1));
  at = { layer: trace.nLayers >> 1, head: "first", token: 0, step: middle };
  at.token = lastDropped();
  fromAddress();
  build();
  look({});
  addEventListener("resize", () => draw());
  addEventListener("hashchange", () => { if (performance.now() - saved > 500) { fromAddress(); look({}); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
}

// What the trace says ------------------------------------------------------------------------------------------------

const nTokens = () => trace.tokens.length;
const heads = () => (at.head === "first" || at.head === "last" ? [...Array(trace.nKv).keys()] : [Number(at.head)]);
const gone = (layer, head, key) => trace.evictedAt[(layer * trace.nKv + head) * nTokens() + key];

/** The first query that no longer reads the key, in the chosen head, or in the first or last of them that drops it. */
function goneAt(layer, key) {
  let found = gone(layer, heads()[0], key);
  for (const head of heads().slice(1)) found = (at.head === "last" ? Math.max : Math.min)(found, gone(layer, head, key));
  return found;
}

/** The step that decided it: a gate drops before its query looks, an eviction after. */
const droppedIn = (layer, key, gate = gateAt(layer, key)) => goneAt(layer, key) - (gate === goneAt(layer, key) ? 0 : 1);
const gateAt = (layer, key) => (trace.gatedAt ? trace.gatedAt[layer * nTokens() + key] : -1);

function bit(array, layer, head, query, key) {
  const across = Math.ceil(nTokens() / 8);
  return (array[((layer * trace.nKv + head) * nTokens() + query) * across + (key >> 3)] >> (7 - (key & 7))) & 1;
}

/** The first stage that removes a key from a query of one head; "" where the query reads it. */
function removedIn(layer, head, query, key) {
  for (const stage of trace.removing) {
    const evicted = query >= gone(layer, head, key);
    if (stage === "gate" && (trace.removing.includes("eviction") ? query >= gateAt(layer, key) : evicted)) return stage;
    if (stage === "eviction" && evicted) return stage;
    if (stage === "prefill" && trace.unseen && bit(trace.unseen, layer, head, query, key)) return stage;
    if (stage === "decode" && trace.unread && bit(trace.unread, layer, head, query, key)) return stage;
  }
  return "";
}

const LOSSES = ["", "decode", "prefill", "eviction", "gate"]; // from the least of them to the most
function removedBy(layer, key, query = at.step) {
  if (key > query) return "";
  const found = heads().map((head) => LOSSES.indexOf(removedIn(layer, head, query, key)));
  return LOSSES[at.head === "last" ? Math.min(...found) : Math.max(...found)];
}

function stateOf(key) {
  if (key > at.step) return "future";
  const stage = removedBy(at.layer, key);
  if (stage) return FATES[stage].state;
  if (key < trace.nSink[at.layer] || trace.ruled.includes(key)) return "sink";
  return key > at.step - trace.recent[at.layer] ? "recent" : "kept";
}

/** The token that the chosen layer lost last by this step: where the story is. */
function lastDropped() {
  let found = 0, latest = -1;
  for (let key = 0; key < nTokens(); key++) {
    const step = goneAt(at.layer, key);
    if (step <= at.step && step > latest) [found, latest] = [key, step];
  }
  return found;
}

/** The head whose scores are drawn: the chosen one, or the one that decided on the token. */
const scoredHead = () => heads().find((head) => gone(at.layer, head, at.token) === goneAt(at.layer, at.token));

// Choosing -----------------------------------------------------------------------------------------------------------

function look(changes) {
  Object.assign(at, changes);
  at.step = Math.min(Math.max(at.step, 0), nTokens() - 1);
  at.token = Math.min(Math.max(at.token, 0), nTokens() - 1);
  at.layer = Math.min(Math.max(at.layer, 0), trace.nLayers - 1);
  byId("layer").value = at.layer;
  byId("head").value = at.head;
  byId("token").value = at.token;
  byId("step").value = at.step;
  byId("at").textContent = `${at.step} of ${nTokens() - 1}`;
  draw();
  clearTimeout(look.later);
  look.later = setTimeout(() => { saved = performance.now(); location.replace("#" + new URLSearchParams(at)); }, 400);
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of ["layer", "token", "step"]) if (/^\d{1,9}$/.test(asked.get(name) ?? "")) at[name] = Number(asked.get(name));
  const head = asked.get("head") ?? "";
  if (head === "first" || head === "last" || (/^\d{1,4}$/.test(head) && Number(head) < trace.nKv)) at.head = head;
}

function moved(name, by) {
  const options = [...byId("head").options].map((option) => option.value);
  if (name !== "head") return look({ [name]: at[name] + by });
  const place = options.indexOf(String(at.head)) + by;
  if (options[place] !== undefined) look({ head: options[place] });
}

function play() {
  playing = playing ? 0 : performance.now();
  byId("play").setAttribute("aria-pressed", Boolean(playing));
  byId("play").setAttribute("aria-label", playing ? "pause" : "play");
  byId("play").textContent = playing ? "❚❚" : "▶";
  if (!playing) return;
  const from = at.step >= nTokens() - 1 ? 0 : at.step, began = playing, pace = nTokens() / 12000; // the whole text in 12 s
  requestAnimationFrame(function next(now) {
    if (playing !== began) return;
    const step = Math.floor(from + Math.max(0, now - began) * pace);
    if (step !== at.step) look({ step });
    if (step < nTokens() - 1) requestAnimationFrame(next); else play();
  });
}

// The page's parts ---------------------------------------------------------------------------------------------------

function make(parent, tag, text = "", attributes = {}) {
  const made = parent.appendChild(document.createElement(tag));
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function pairs(list, entries, wrap) {
  for (const [name, value, help] of entries) {
    const place = wrap ? make(list, "div", "", help ? { title: help } : {}) : list;
    make(place, "dt", name);
    make(place, "dd", value);
  }
}

function table(place, names, rows) {
  place.replaceChildren();
  const made = make(place, "table"), head = make(make(made, "thead"), "tr"), body = make(made, "tbody");
  for (const name of names) make(head, "th", name, { scope: "col" });
  for (const row of rows) {
    const line = make(body, "tr");
    for (const value of row) make(make(line, "td"), "bdi", String(value));
  }
}

function build() {
  document.title = byId("title").textContent = trace.title;
  byId("lead").textContent = trace.lead;
  pairs(byId("facts"), trace.facts, true);
  for (const note of trace.notes) make(byId("notes"), "p", note, { class: "note" });
  pairs(byId("made"), trace.fields);
  byId("prompt").textContent = trace.prompt;
  byId("continuation").textContent = trace.continuation;
  byId("went_on").hidden = !trace.continuation;
  for (let layer = 0; layer < trace.nLayers; layer++) make(byId("layer"), "option", layer, { value: layer });
  const named = { first: "first to drop", last: "last to drop" };
  for (const [value, text] of Object.entries(trace.nKv > 1 ? named : {})) make(byId("head"), "option", text, { value });
  for (let head = 0; head < trace.nKv; head++) make(byId("head"), "option", head, { value: head });
  if (trace.nKv === 1) at.head = "0";
  byId("token").max = byId("step").max = nTokens() - 1;
  byId("whole").hidden = nTokens() <= WHOLE;
  byId("scores_part").hidden = !trace.snapshots;
  byId("loss_part").hidden = !trace.kl;
  buildKeys();
  byId("bar").addEventListener("submit", (event) => event.preventDefault());
  byId("layer").addEventListener("change", (event) => look({ layer: Number(event.target.value) }));
  byId("head").addEventListener("change", (event) => look({ head: event.target.value }));
  byId("token").addEventListener("change", (event) => look({ token: Math.floor(Number(event.target.value)) || 0 }));
  byId("step").addEventListener("input", (event) => look({ step: Number(event.target.value) }));
  byId("play").addEventListener("click", play);
  byId("when").addEventListener("click", () => look({ step: droppedIn(at.layer, at.token) }));
  for (const stepper of document.querySelectorAll(".stepper")) {
    const [back, on] = [...stepper.querySelectorAll("button:not(#play)")];
    back.addEventListener("click", () => moved(stepper.dataset.of, -1));
    on.addEventListener("click", () => moved(stepper.dataset.of, 1));
  }
  byId("strip").addEventListener("click", (event) => { if (event.target.dataset.key) look({ token: Number(event.target.dataset.key) }); });
  byId("strip").addEventListener("keydown", keyed);
  for (const id of ["atlas", "overview", "loss"]) {
    byId(id).addEventListener("click", (event) => { const cell = byId(id).cellAt?.(event); if (cell) look(cell); });
  }
  byId("atlas").addEventListener("mousemove", hover);
  byId("atlas").addEventListener("mouseleave", () => byId("tip")?.remove());
}

function buildKeys() {
  const several = shaped();
  const ramp = make(byId("key"), "span", "", { class: "each" });
  ramp.append("dropped at step 0");
  make(ramp, "span", "", { class: "ramp" }).style.background = `linear-gradient(90deg, ${RAMP.map((c) => `rgb(${c})`)})`;
  ramp.append(`${nTokens() - 1}`);
  for (const stage of several ? trace.removing : []) {
    const fate = FATES[stage], each = make(byId("key"), "span", "", { class: "each" }), ink = fate.colour ? `rgb(${fate.colour})` : "var(--soft)";
    const filled = [0, 1, 2, 3, 4].map((row) => `${fate.rows.includes(row) ? ink : "transparent"} ${row * 20}% ${row * 20 + 20}%`);
    make(each, "span", "", { class: "box" }).style.background = `linear-gradient(${filled})`;
    each.append(fate.told);
  }
  const each = make(byId("key"), "span", "", { class: "each" });
  make(each, "span", "", { class: "box" }).style.background = "var(--cell)";
  each.append("in the cache. White: not read yet.".replace("White", "Empty"));
  const states = ["kept", ...(trace.nSink.some(Boolean) || trace.ruled.length ? ["sink"] : []), ...(trace.recent.some(Boolean) ? ["recent"] : []),
    ...trace.removing.map((stage) => FATES[stage].state), "future"];
  for (const state of states) make(byId("states"), "span", STATES[state], { class: state });
}

/** Whether cells must tell which stage removed a token: one stage that drops for good fills them. */
const shaped = () => trace.removing.length > 1 || trace.removing.some((stage) => !FATES[stage].forGood);

function keyed(event) {
  const moves = { ArrowLeft: ["token", -1], ArrowRight: ["token", 1], ArrowUp: ["layer", 1], ArrowDown: ["layer", -1], ",": ["step", -1], ".": ["step", 1],
    Home: ["token", -nTokens()], End: ["token", nTokens()] };
  if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  moved(...moves[event.key]);
  spans[at.token - shown()[0]]?.scrollIntoView({ block: "nearest" });
}

function hover(event) {
  const cell = byId("atlas").cellAt?.(event);
  byId("tip")?.remove();
  if (!cell) return;
  const tip = make(document.body, "div", "", { id: "tip", "aria-hidden": "true" });
  tip.append(`layer ${cell.layer}, token ${cell.token} `);
  make(tip, "bdi", trace.tokens[cell.token]);
  tip.append(`: ${fateOf(cell.layer, cell.token)}`);
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 240)}px`;
  tip.style.top = `${event.clientY + 16}px`;
}

function fateOf(layer, key) {
  if (key > at.step) return "not read yet";
  const stage = removedBy(layer, key);
  if (!stage) return "read";
  return FATES[stage].told + (FATES[stage].forGood ? ` at step ${droppedIn(layer, key)}` : "");
}
