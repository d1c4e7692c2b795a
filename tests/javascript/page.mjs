/* A page without a browser: what the scripts of assets/ ask of one, and what they have drawn. */
import { readFileSync } from "node:fs";
import { createContext, runInContext } from "node:vm";

const ASSETS = new URL("../../assets/", import.meta.url);

/* Run some of the scripts; `classes` are those of the page's body, `styles` its CSS variables. */
export function page(scripts, { classes = [], styles = {} } = {}) {
  const drawn = [], frames = [], timers = [], here = { now: 0, cover: false };
  const body = { classList: { contains: (name) => classes.includes(name) } };
  class Observer { observe() {} }
  const window = {
    Plotly: { react: (div, data, layout) => drawn.push({ div, data, layout }), purge: (div) => drawn.push({ div }) },
    document: { body, addEventListener() {}, querySelector: (what) => (what === ".dragcover" && here.cover ? {} : null) },
    getComputedStyle: () => ({ fontSize: "12px", getPropertyValue: (name) => styles[name] || (name.startsWith("--dpx-") ? "#102030" : "") }),
    performance: { now: () => here.now },
    requestAnimationFrame: (call) => frames.push(call),
    setTimeout: (call, wait) => timers.push({ call, at: here.now + wait }),
    URLSearchParams, MutationObserver: Observer, ResizeObserver: Observer,
  };
  window.window = window;
  createContext(window);
  for (const name of scripts) runInContext(readFileSync(new URL(name, ASSETS), "utf8"), window, { filename: name });
  /* Let time pass: timers that are due, then the frames that were asked for. */
  const pass = (wait) => {
    const until = here.now + wait;
    for (;;) {
      while (frames.length) frames.shift()();
      timers.sort((a, b) => a.at - b.at);
      if (!timers.length || timers[0].at > until) break;
      const { call, at } = timers.shift();
      here.now = at;
      call();
    }
    here.now = until;
  };
  return { window, drawn, here, pass };
}

/* The element of a chart, with parts by their selectors. */
export const chart = (kind, parts = {}) => ({
  dataset: { chart: kind }, isConnected: true, classList: { toggle() {} }, querySelector: (what) => parts[what] || null,
});
