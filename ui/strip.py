"""A prompt as a strip of tokens that shows which are kept and which are dropped, and tells which one was clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import streamlit as st

State = Literal["kept", "dropped", "sink", "recent", "future"]
_STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class TokenCell:
    """One token as the strip draws it.

    `index` is its position in the prompt; `text` has its newlines, tabs, control and direction characters made visible
    already (a line breaks after "↵"); `note` says more than the state ("dropped at step 40 by token 39; score 0.031");
    neighbours of equal `group` are pieces of one character; `contested`: another pipeline decides differently; `paired`: it
    dropped the selected token, or was dropped by it.
    """

    index: int
    text: str
    state: State
    note: str
    group: int
    contested: bool
    paired: bool = False

    def __post_init__(self) -> None:
        if self.state not in _STATES:
            raise ValueError(f"token {self.index} has state {self.state!r}; allowed are {', '.join(_STATES)}")


def token_strip(tokens: Sequence[TokenCell], *, selected: int | None, key: str, label: str) -> int | None:
    """Draw the tokens, `selected` outlined, and return the index that was clicked in this very rerun, else None.

    The strip remembers no click: what is outlined is always `selected`. So store the click and run again:

        clicked = token_strip(cells, selected=st.session_state.token, key="strip_a", label="Tokens")
        if clicked is not None and clicked != st.session_state.token:
            st.session_state.token = clicked
            st.rerun()

    `key` is unique on the page and has no double underscore (Streamlit's own separator); `label` is shown above.
    A `selected` that is not among the tokens outlines nothing. Does not work inside `st.form`, which drops triggers.
    Raises ValueError for such a key and for two tokens of one index.
    """
    if "__" in key:
        raise ValueError(f"key is {key!r}; Streamlit allows no double underscore in it: use single ones")
    index = [token.index for token in tokens]
    if len(set(index)) < len(index):
        twice = next(i for i in index if index.count(i) > 1)
        raise ValueError(f"token index {twice} appears more than once; give each token its position in the prompt")
    data = {
        "label": label,
        "selected": selected,
        "index": index,
        "text": [token.text for token in tokens],
        "group": [token.group for token in tokens],
        "state": [token.state for token in tokens],
        "note": [token.note for token in tokens],
        "contested": [token.contested for token in tokens],
        "paired": [token.paired for token in tokens],
    }
    # Without a callback the result has no `clicked`. A click on a token that has gone since is nobody's click.
    clicked = _component(key=key, data=data, on_clicked_change=lambda: None).clicked
    return clicked if clicked in index else None


_HTML = f"""
<div class="strip">
  <div class="head">
    <span class="label" id="label"></span>
    <span class="legend">
      {"".join(f'<span class="cell {state}">{state}</span>' for state in _STATES)}
      <span class="cell kept contested">contested</span>
      <span class="cell kept paired">paired</span>
    </span>
  </div>
  <div class="list" role="listbox" aria-orientation="horizontal" aria-labelledby="label"></div>
  <div class="tip" popover="manual" aria-hidden="true"><b></b> <bdi></bdi><span></span></div>
</div>
"""

_CSS = """
.strip {
  --ink: var(--st-text-color);
  --paper: var(--st-background-color);
  --soft: color-mix(in srgb, var(--ink) 74%, var(--paper));
  --faint: color-mix(in srgb, var(--ink) 56%, var(--paper));
  --line: color-mix(in srgb, var(--ink) 26%, var(--paper));
  --fill: color-mix(in srgb, var(--ink) 6%, var(--paper));
  --row: 22px;
  color: var(--ink);
  font: 14px/var(--row) var(--st-font);
}
.head { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 16px; }
.label { margin-bottom: 4px; }
.strip { container-type: inline-size; }
@container (max-width: 700px) {  /* two strips side by side begin at the same height, whatever their labels */
  .label { flex-basis: 100%; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
}
.legend { --row: 16px; font-size: 12px; }
.strip:not(.disputed) .legend .contested, .strip:not(.pairs) .legend .paired { display: none; }
.paired { box-shadow: inset 0 -4px 0 var(--st-primary-color), inset 0 4px 0 var(--st-primary-color); }
.list {
  position: relative;
  box-sizing: border-box;
  max-height: 320px;
  overflow: auto;
  padding: 8px 4px 3px 8px;
  border: 1px solid var(--line);
  border-radius: var(--st-base-radius);
  direction: ltr;
}
.list:empty::before { content: "no tokens"; color: var(--soft); }
.list .cell { cursor: pointer; scroll-margin: 9px; }
.cell {
  position: relative;
  display: inline-block;
  box-sizing: border-box;
  vertical-align: top;
  min-width: 16px;
  max-width: 100%;
  margin: 0 4px 5px 0;
  padding: 1px 4px;
  border: 1px solid transparent;
  border-radius: 4px;
  font-family: var(--st-code-font);
  line-height: var(--row);
  white-space: break-spaces;
  overflow-wrap: anywhere;
  unicode-bidi: isolate;
}
.kept, .recent { border-color: var(--line); background: var(--fill); }
.recent { text-decoration: underline 2px; text-underline-offset: 4px; text-decoration-skip-ink: none; }
.sink { padding: 0 2px; border: 3px double var(--ink); font-weight: 700; line-height: calc(var(--row) - 2px); }
.dropped { border: 1px dashed var(--faint); color: var(--soft); }
/* From edge to edge: a line-through over a leading space would read as a minus sign. */
.dropped::before { content: ""; position: absolute; inset: 54% 0 auto; border-top: 1px solid; pointer-events: none; }
.future { border: 1px dotted var(--line); color: var(--faint); }
.contested::after {
  content: "";
  position: absolute;
  inset: -4px;
  border: 2px dotted var(--soft);
  border-radius: 7px;
  pointer-events: none;
}
.group { display: inline-flex; flex-wrap: wrap; vertical-align: top; max-width: 100%; margin-right: 4px; }
.group .cell { margin-right: 0; }
.group .cell:not(:first-child) { margin-left: -1px; border-top-left-radius: 0; border-bottom-left-radius: 0; }
.group .cell:not(:last-child) { border-top-right-radius: 0; border-bottom-right-radius: 0; }
.list .cell:hover { background: color-mix(in srgb, var(--ink) 14%, var(--paper)); }
.list .cell:focus { outline: none; }
.list .cell:focus-visible { z-index: 2; box-shadow: 0 0 0 2px var(--paper), 0 0 0 5px var(--ink); }
.list .cell[aria-selected="true"] { z-index: 1; outline: 3px solid var(--st-primary-color); }
.list .cell[aria-selected="true"]::after { inset: -7px; border-radius: 9px; }
.tip { display: none; }
.tip:popover-open {
  position: fixed;
  display: block;
  box-sizing: border-box;
  max-width: min(420px, 90vw);
  margin: 0;
  padding: 4px 8px;
  border: 1px solid transparent;
  border-radius: 4px;
  background: var(--ink);
  color: var(--paper);
  font-size: 13px;
  line-height: 18px;
  overflow-wrap: anywhere;
  pointer-events: none;
}
.tip bdi { font-family: var(--st-code-font); white-space: pre-wrap; }
@media (forced-colors: active) {
  .list .cell:focus-visible { outline: 3px dashed Highlight; }
}
"""

_JS = """
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
"""

_component = st.components.v2.component("sparselens_token_strip", html=_HTML, css=_CSS, js=_JS)
