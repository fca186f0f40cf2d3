// Drawing ------------------------------------------------------------------------------------------------------------

const LEFT = 34, BELOW = 22, ABOVE = 12; // px around a plot
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const asRgb = (hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
const digits = (value) => (Number.isFinite(value) ? Number(value.toPrecision(3)).toString() : "–");

function ramp(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), below = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[below].map((value, i) => Math.round(value + (RAMP[below + 1][i] - value) * (place - below)));
}

/** [first, last): the tokens that are drawn one by one, around the chosen one. */
function shown() {
  if (nTokens() <= WHOLE) return [0, nTokens()];
  const first = Math.min(Math.max(at.token - WINDOW / 2, 0), nTokens() - WINDOW);
  const from = Math.floor(first / (WINDOW / 4)) * (WINDOW / 4); // moves by quarters, so that a step to the next token keeps the picture
  return [from, Math.min(from + WINDOW, nTokens())];
}

function draw() {
  if (draw.waits) return;
  draw.waits = requestAnimationFrame(() => {
    draw.waits = 0;
    tell();
    if (nTokens() > WHOLE) drawOverview();
    drawAtlas();
    drawStrip();
    if (trace.snapshots) drawScores();
    if (trace.kl) drawLoss();
  });
}

/** A canvas at the screen's own pixels: [its context, width, height] in px of the page. */
function sheet(canvas, height) {
  const scale = devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.font = "11px system-ui, sans-serif";
  return [context, width, height];
}

/** Ticks of at most so many, at 1, 2 or 5 times a power of ten. */
function ticks(low, high, most) {
  const rough = Math.max(1, (high - low) / most), power = 10 ** Math.floor(Math.log10(rough));
  const every = [1, 2, 5, 10].find((step) => step * power >= rough) * power, found = [];
  for (let value = Math.ceil(low / every) * every; value <= high; value += every) found.push(value);
  return found;
}

/** Paints cells[row * columns + column] of [r, g, b, a], row 0 above, over a rectangle, each cell sharp. */
function paint(context, pixels, columns, rows, x, y, width, height) {
  const small = document.createElement("canvas");
  [small.width, small.height] = [columns, rows];
  small.getContext("2d").putImageData(new ImageData(pixels, columns, rows), 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, x, y, width, height);
}

function tokenAxis(context, first, last, width, bottom) {
  context.fillStyle = ink("soft");
  context.textAlign = "center";
  for (const value of ticks(first, last - 1, width / 70)) {
    context.fillText(value, LEFT + ((value - first + 0.5) / (last - first)) * (width - LEFT), bottom + 14);
  }
}

function drawAtlas() {
  const [first, last] = shown(), n = last - first, down = shaped() ? ROWS : 1, tall = Math.max(shaped() ? 10 : 6, Math.min(18, 360 / trace.nLayers));
  const high = Math.round(tall * trace.nLayers), canvas = byId("atlas"), [context, width] = sheet(canvas, high + ABOVE + BELOW);
  const pixels = new Uint8ClampedArray(4 * n * down * trace.nLayers), cached = asRgb(ink("cell"));
  let lost = 0;
  for (let layer = 0; layer < trace.nLayers; layer++) {
    for (let key = first; key < last && key <= at.step; key++) {
      const stage = removedBy(layer, key), fate = FATES[stage];
      if (stage && layer === at.layer) lost++;
      const colour = fate && (fate.colour ?? ramp(droppedIn(layer, key) / Math.max(1, nTokens() - 1)));
      for (let row = 0; row < down; row++) {
        const filled = fate && (down === 1 || fate.rows.includes(row)) ? colour : stage && down > 1 ? null : cached;
        if (filled) pixels.set([...filled, 255], 4 * (((trace.nLayers - 1 - layer) * down + row) * n + key - first));
      }
    }
  }
  paint(context, pixels, n, down * trace.nLayers, LEFT, ABOVE, width - LEFT, high);
  context.fillStyle = ink("soft");
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const layer of ticks(0, trace.nLayers - 1, high / 22)) context.fillText(layer, LEFT - 6, ABOVE + high - (layer + 0.5) * tall * (high / (tall * trace.nLayers)));
  context.textBaseline = "alphabetic";
  tokenAxis(context, first, last, width, ABOVE + high);
  const across = (width - LEFT) / n, y = ABOVE + high - ((at.layer + 1) * high) / trace.nLayers, x = LEFT + (at.token - first + 0.5) * across;
  context.strokeStyle = context.fillStyle = ink("ink");
  context.lineWidth = 1.5;
  context.strokeRect(LEFT + 0.75, y, width - LEFT - 1.5, high / trace.nLayers);
  context.textAlign = "center";
  context.fillText("▼", x, ABOVE - 3);
  for (const [edge, dash] of [[at.step + 1, []], [trace.nPrompt, [2, 3]]]) {
    if (edge <= first || edge >= last) continue;
    context.setLineDash(dash);
    context.beginPath();
    context.moveTo(LEFT + (edge - first) * across, ABOVE);
    context.lineTo(LEFT + (edge - first) * across, ABOVE + high);
    context.stroke();
  }
  canvas.setAttribute("aria-label", `Layers by tokens ${first} to ${last - 1} after step ${at.step}. Layer ${at.layer} does not read ${lost} of the ` +
    `${Math.max(0, Math.min(last, at.step + 1) - first)} tokens that are there.`);
  canvas.cellAt = (event) => {
    const box = canvas.getBoundingClientRect(), column = Math.floor((event.clientX - box.left - LEFT) / across);
    const layer = Math.floor(((ABOVE + high - (event.clientY - box.top)) / high) * trace.nLayers);
    return column >= 0 && column < n && layer >= 0 && layer < trace.nLayers ? { layer, token: first + column } : null;
  };
  if (byId("layers").closest("details").open) tellLayers();
  byId("layers").closest("details").ontoggle = tellLayers;
}

function tellLayers() {
  const rows = [];
  for (let layer = 0; layer < trace.nLayers; layer++) {
    let read = 0;
    for (let key = 0; key <= at.step; key++) read += removedBy(layer, key) ? 0 : 1;
    rows.push([layer, read, at.step + 1 - read, `${Math.round((100 * read) / (at.step + 1))} %`]);
  }
  table(byId("layers"), ["layer", `read at step ${at.step}`, "not read", "share read"], rows);
}

function drawOverview() {
  const canvas = byId("overview"), high = Math.max(48, 2 * trace.nLayers), [context, width] = sheet(canvas, high + BELOW);
  const columns = Math.min(nTokens(), Math.floor(width - LEFT)), pixels = new Uint8ClampedArray(4 * columns * trace.nLayers), cached = asRgb(ink("cell"));
  for (let layer = 0; layer < trace.nLayers; layer++) {
    for (let column = 0; column < columns; column++) {
      const from = Math.floor((column * nTokens()) / columns), to = Math.max(from + 1, Math.floor(((column + 1) * nTokens()) / columns));
      let lost = 0, seen = 0;
      for (let key = from; key < to && key <= at.step; key++) { seen++; lost += goneAt(layer, key) <= at.step ? 1 : 0; }
      if (seen) pixels.set([...(lost ? ramp(lost / seen) : cached), 255], 4 * ((trace.nLayers - 1 - layer) * columns + column));
    }
  }
  paint(context, pixels, columns, trace.nLayers, LEFT, 0, width - LEFT, high);
  tokenAxis(context, 0, nTokens(), width, high);
  const [first, last] = shown(), across = (width - LEFT) / nTokens();
  context.strokeStyle = ink("ink");
  context.lineWidth = 1.5;
  context.strokeRect(LEFT + first * across, 0.75, (last - first) * across, high - 1.5);
  canvas.setAttribute("aria-label", `The whole text of ${nTokens()} tokens by layers: the share dropped for good by step ${at.step}.`);
  canvas.cellAt = (event) => {
    const token = Math.floor((event.clientX - canvas.getBoundingClientRect().left - LEFT) / across);
    return token >= 0 && token < nTokens() ? { token } : null;
  };
}

function drawStrip() {
  const [first, last] = shown(), strip = byId("strip");
  if (strip.dataset.first !== String(first) || spans.length !== last - first) {
    strip.replaceChildren();
    strip.dataset.first = first;
    spans = [];
    for (let key = first; key < last; key++) {
      spans.push(make(strip, "bdi", trace.tokens[key], { role: "option", id: `t${key}`, "data-key": key }));
      if (trace.tokens[key].includes("↵")) make(strip, "br");
    }
  }
  for (let key = first; key < last; key++) {
    const span = spans[key - first], state = stateOf(key);
    if (span.className !== state) {
      span.className = state;
      span.setAttribute("aria-label", `${key}: ${trace.tokens[key]}, ${STATES[state]}`);
    }
    span.setAttribute("aria-selected", key === at.token);
  }
  strip.setAttribute("aria-activedescendant", `t${at.token}`);
}

/** What became of the chosen token, as a sentence. */
function tell() {
  const place = byId("told"), step = goneAt(at.layer, at.token), on = droppedIn(at.layer, at.token);
  const who = at.head === "first" || at.head === "last" ? (trace.nKv > 1 ? `, the ${at.head} head to drop it` : "") : trace.nKv > 1 ? `, KV head ${at.head}` : "";
  place.replaceChildren(`Token ${at.token} `);
  make(place, "bdi", trace.tokens[at.token]);
  place.append(` in layer ${at.layer}${who}: `);
  if (step < nTokens()) {
    const gate = gateAt(at.layer, at.token) === step;
    place.append(`${gate ? "dropped by the gate" : "evicted"} for good at step ${on}, while `);
    make(place, "bdi", trace.tokens[Math.min(on, nTokens() - 1)]);
    place.append(` was read, ${on - at.token} tokens after it.`);
    const head = scoredHead(), score = trace.threshold ? trace.threshold[(at.layer * trace.nKv + head) * nTokens() + on] : NaN;
    if (!gate && Number.isFinite(score)) place.append(` The highest score that this step dropped was ${digits(score)}.`);
  } else place.append("never dropped for good.");
  const stage = removedBy(at.layer, at.token);
  if (stage && !FATES[stage].forGood) place.append(` At step ${at.step} it is ${FATES[stage].told}.`);
  byId("when").hidden = step >= nTokens() || on === at.step;
  byId("when").textContent = `Go to step ${on}`;
}

/** Lines over steps, on a scale of powers of ten or a plain one from 0; returns where a step and a value stand. */
function axes(canvas, height, values, log) {
  const [context, width] = sheet(canvas, height), known = values.filter((value) => Number.isFinite(value) && (!log || value > 0));
  const left = LEFT + 14, bottom = height - BELOW, top = Math.max(...known, log ? 1e-9 : 1e-6);
  const low = log ? Math.log10(Math.max(Math.min(...known, top), top / 1e9)) - 0.1 : 0, high = log ? Math.log10(top) + 0.1 : top * 1.05;
  const x = (step) => left + (step / Math.max(1, nTokens() - 1)) * (width - left - 8);
  const y = (value) => bottom - (((log ? Math.log10(Math.max(value, 10 ** low)) : value) - low) / (high - low)) * (bottom - ABOVE);
  context.fillStyle = ink("soft");
  context.strokeStyle = ink("line");
  context.textAlign = "right";
  const marks = log ? ticks(Math.ceil(low), Math.floor(high), 5).map((power) => 10 ** power) : [0, top / 2, top];
  for (const value of marks.length ? marks : [top]) {
    context.fillText(value >= 1e4 || (value && value < 1e-3) ? value.toExponential(0) : digits(value), left - 6, y(value) + 4);
    context.beginPath();
    context.moveTo(left, y(value));
    context.lineTo(width - 8, y(value));
    context.stroke();
  }
  context.textAlign = "center";
  for (const step of ticks(0, nTokens() - 1, width / 80)) context.fillText(step, x(step), height - 6);
  context.strokeStyle = ink("ink");
  context.setLineDash([2, 3]);
  context.beginPath();
  context.moveTo(x(at.step), ABOVE);
  context.lineTo(x(at.step), bottom);
  context.stroke();
  context.setLineDash([]);
  canvas.cellAt = (event) => ({ step: Math.round(((event.clientX - canvas.getBoundingClientRect().left - left) / (width - left - 8)) * (nTokens() - 1)) });
  return { context, x, y };
}

function line(context, points, colour, width) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}

function drawScores() {
  const head = scoredHead(), T = nTokens(), S = trace.steps.length, begin = (at.layer * trace.nKv + head) * T;
  const own = [...trace.steps].map((step, s) => [step, trace.snapshots[((at.layer * trace.nKv + head) * S + s) * T + at.token]]).filter(([, v]) => Number.isFinite(v));
  const bars = [...Array(T).keys()].map((step) => [step, trace.threshold[begin + step]]).filter(([, v]) => Number.isFinite(v));
  const values = [...own, ...bars].map(([, value]) => value), log = values.some((value) => value > 0);
  const { context, x, y } = axes(byId("scores"), 240, values, log), drawn = (points) => points.map(([step, value]) => [x(step), y(value)]);
  line(context, drawn(bars), ink("threshold"), 1);
  line(context, drawn(own), ink("token"), 2);
  const step = gone(at.layer, head, at.token), end = own.at(-1);
  if (step < T && end) {
    context.font = "bold 15px system-ui, sans-serif";
    context.fillStyle = ink("token");
    context.fillText("×", x(droppedIn(at.layer, at.token)), y(end[1]) + 5);
  }
  byId("scores_read").textContent = `Orange: what attention gave token ${at.token} in layer ${at.layer}, KV head ${head}, in all` +
    `${step < T ? ", up to the cross where it went" : ""}. Grey: the highest score that each step dropped. ${trace.stepsTold}`;
  byId("scores").setAttribute("aria-label", own.length ? `Score of token ${at.token} over the steps: ${digits(own[0][1])} at step ${own[0][0]}, ` +
    `${digits(end[1])} at step ${end[0]}.` : `No score of token ${at.token} is known.`);
  table(byId("scores_table"), ["step", "score", "highest score dropped"], own.map(([s, value]) => [s, digits(value), digits(trace.threshold[begin + s])]));
}

function drawLoss() {
  const all = [...trace.kl], { context, x, y } = axes(byId("loss"), 180, all, false);
  context.strokeStyle = ink("token");
  context.lineWidth = Math.max(1, Math.min(4, 600 / nTokens()));
  context.beginPath();
  all.forEach((value, step) => { if (Number.isFinite(value)) { context.moveTo(x(step), y(0)); context.lineTo(x(step), y(value)); } });
  context.stroke();
  const worst = all.map((value, step) => [step, value]).filter(([, value]) => Number.isFinite(value)).sort((a, b) => b[1] - a[1]).slice(0, 10);
  byId("loss").setAttribute("aria-label", worst.length ? `KL divergence at each token; the highest is ${digits(worst[0][1])} nats at token ${worst[0][0]}.` : "Not measured.");
  if (!byId("loss_table").firstChild) table(byId("loss_table"), ["token", "reads", "KL, nats"], worst.map(([step, value]) => [step, trace.tokens[step], digits(value)]));
}

start().catch((error) => {
  byId("problem").hidden = false;
  byId("problem").textContent = `The trace in this file cannot be shown: ${error.message}.`;
});
