const strips = new WeakMap();

// Streamlit calls this at every change of data or theme, each time on the same elements.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".strip");
  if (!strips.has(root)) strips.set(root, new Strip(root));
  const strip = strips.get(root);
  strip.send = (index) => setTriggerValue("clicked", index);
  strip.update(data);
}

class Strip {
  constructor(root) {
    this.root = root;
    this.list = root.querySelector(".list");
    this.tip = root.querySelector(".tip");
    this.data = {};
    this.cells = [];
    this.stop = 0; // the one cell that Tab reaches
    this.place = this.place.bind(this);
    const on = (event, act) => this.list.addEventListener(event, act);
    const at = (event) => this.cells.indexOf(event.target.closest(".cell"));
    on("click", (event) => at(event) >= 0 && this.choose(at(event)));
    on("keydown", (event) => at(event) >= 0 && this.press(event, at(event)));
    // Not mouseover, which also fires when the page moves under a pointer at rest.
    on("mousemove", (event) => this.cells[at(event)] !== this.shown && this.show(this.cells[at(event)]));
    on("mouseleave", () => this.show(null));
    on("focusin", (event) => event.target.matches(":focus-visible") && this.show(event.target));
    on("focusout", () => this.show(null));
    on("scroll", this.place);
  }

  update(data) {
    const last = this.data;
    this.data = data;
    this.root.querySelector(".label").textContent = data.label;
    this.root.classList.toggle("disputed", data.contested.includes(true));
    this.root.classList.toggle("pairs", data.paired.includes(true));
    const keys = { gated: "gates", hidden: "hides", unread: "skips" };
    for (const state in keys) this.root.classList.toggle(keys[state], data.state.includes(state));
    const rebuilt = ["index", "text", "group"].some((name) => !same(last[name], data[name]));
    if (rebuilt) this.build(last.index?.[this.stop]);
    this.cells.forEach((_, i) => {
      if (rebuilt || ["state", "note", "contested", "paired"].some((name) => last[name][i] !== data[name][i])) this.paint(i);
    });
    if (rebuilt || last.selected !== data.selected) this.select();
    this.show(this.cells.includes(this.shown) ? this.shown : null);
  }

  build(focused) {
    const { index, text, group } = this.data;
    const hadFocus = this.cells.includes(this.root.getRootNode().activeElement);
    const all = document.createDocumentFragment();
    let joined = null;
    this.cells = text.map((shown, i) => {
      const cell = element("span", { role: "option", dir: "auto", tabindex: -1, "aria-selected": false });
      cell.textContent = shown;
      if (group[i] !== group[i - 1]) joined = group[i] === group[i + 1] ? all.appendChild(element("span")) : null;
      if (joined) joined.className = "group";
      (joined ?? all).append(cell);
      if (shown.endsWith("\u21b5")) {
        all.append(element("br"));
        joined = null;
      }
      return cell;
    });
    this.list.replaceChildren(all);
    this.stop = Math.max(0, index.indexOf(focused));
    this.cells[this.stop]?.setAttribute("tabindex", 0);
    if (hadFocus) this.cells[this.stop]?.focus({ preventScroll: true });
  }

  paint(i) {
    const { index, text, state, note, contested, paired } = this.data;
    const more = note[i].startsWith(state[i]) ? note[i] : [state[i], note[i]].filter(Boolean).join("; ");
    const cell = this.cells[i];
    cell.className = `cell ${state[i]}${contested[i] ? " contested" : ""}${paired[i] ? " paired" : ""}`;
    const marks = `${contested[i] ? "; contested" : ""}${paired[i] ? "; paired" : ""}`;
    cell.said = [`token ${index[i]} `, `\u00ab${text[i]}\u00bb`, `, ${more}${marks}`];
    cell.setAttribute("aria-label", cell.said.join(""));
  }

  select() {
    const at = this.data.index.indexOf(this.data.selected);
    this.list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", false);
    if (at < 0) return;
    const cell = this.cells[at];
    cell.setAttribute("aria-selected", true);
    if (!this.list.contains(this.root.getRootNode().activeElement)) this.stopAt(at);
    // Not scrollIntoView, which would scroll the page too.
    const box = this.list.getBoundingClientRect();
    const { top, bottom, height } = cell.getBoundingClientRect();
    if (top < box.top || bottom > box.bottom) this.list.scrollTop += top - box.top - (box.height - height) / 2;
  }

  stopAt(i) {
    this.cells[this.stop]?.setAttribute("tabindex", -1);
    this.stop = i;
    this.cells[i].setAttribute("tabindex", 0);
  }

  choose(i) {
    this.stopAt(i);
    this.send(this.data.index[i]);
  }

  press(event, i) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape") return this.show(null);
    const to = {
      ArrowLeft: i - 1,
      ArrowRight: i + 1,
      Home: 0,
      End: this.cells.length - 1,
      ArrowUp: this.beyond(i, -1),
      ArrowDown: this.beyond(i, 1),
      Enter: i,
      " ": i,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (event.key === "Enter" || event.key === " ") return this.choose(i);
    if (!this.cells[to]) return;
    this.stopAt(to);
    this.cells[to].focus({ preventScroll: true }); // the browser's own would centre it
    this.cells[to].scrollIntoView({ block: "nearest" });
  }

  // The nearest cell of the next row in that direction.
  beyond(i, step) {
    const middle = (cell) => cell.offsetLeft + cell.offsetWidth / 2;
    const from = this.cells[i];
    let best = i, row = null;
    for (let j = i + step; this.cells[j]; j += step) {
      const cell = this.cells[j];
      if (cell.offsetTop === from.offsetTop) continue;
      row ??= cell.offsetTop;
      if (cell.offsetTop !== row) break;
      const gain = Math.abs(middle(cell) - middle(from)) < Math.abs(middle(this.cells[best]) - middle(from));
      if (best === i || gain) best = j;
    }
    return best;
  }

  show(cell) {
    this.shown = cell;
    if (!cell) return this.tip.hidePopover?.();
    [...this.tip.children].forEach((part, i) => (part.textContent = cell.said[i]));
    this.tip.showPopover?.();
    this.place();
  }

  place() {
    if (!this.shown) return;
    const [cell, list, tip] = [this.shown, this.list, this.tip].map((part) => part.getBoundingClientRect());
    if (cell.bottom < list.top || cell.top > list.bottom) return this.show(null);
    const below = cell.bottom + 8 + tip.height < innerHeight;
    this.tip.style.left = `${Math.max(4, Math.min(cell.left, innerWidth - tip.width - 4))}px`;
    this.tip.style.top = `${below ? cell.bottom + 8 : cell.top - 8 - tip.height}px`;
    document.addEventListener("scroll", this.place, { capture: true, once: true, passive: true });
  }
}

const same = (a, b) => a?.length === b.length && a.every((value, i) => value === b[i]);

function element(tag, attributes = {}) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
