/* The streaming charts. A component's value is newline-delimited JSON that only grows during a run, so
 * Gradio sends the new lines alone. The first line of a stream names it; another name starts afresh. */
(() => {
  if (window.dpxCharts) return;
  const LN2 = Math.log(2);
  let plotly = null; // a gr.Plot anywhere on the page would overwrite window.Plotly: keep the first one
  const P = () => (plotly = plotly || window.Plotly);

  const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
  const colour = (role) => css(`--dpx-${role}`);
  /* The page's small text, which grows with the screen and in the presenter's view. */
  const textSize = () => parseFloat(getComputedStyle(document.querySelector(".dpx-segmented button") || document.body).fontSize) || 12;
  const dash = (role) => css(`--dpx-${role}-dash`) || "solid";
  const units = () => {
    const has = (c) => document.body.classList.contains(c);
    return {
      kl: has("kl-bits") ? { name: "bits", per: 1 / LN2 } : { name: "nats", per: 1 },
      h: has("h-nats") ? { name: "nats", per: 1 } : { name: "bits", per: 1 / LN2 },
    };
  };
  const tint = (hex, alpha) => {
    const n = parseInt(hex.slice(1), 16);
    return `rgba(${n >> 16},${(n >> 8) & 255},${n & 255},${alpha})`;
  };
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const show = (token) => plain(JSON.stringify(token).slice(1, -1).replace(/\\"/g, '"').replace(/ /g, "␣"));
  const fixed = (x, digits = 2) => (x == null ? "–" : x.toFixed(digits));

  const NARROW = 480; // pixels
  const CONFIG = { responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };

  function layout(xTitle, yTitle, extra = {}) {
    const grid = css("--dpx-grid"), ink = css("--body-text-color"), soft = css("--body-text-color-subdued");
    const axis = (title, own = {}) => ({
      gridcolor: grid, zeroline: false, linecolor: grid, tickcolor: grid, tickfont: { color: soft, size: textSize() - 1 },
      title: { text: title, font: { size: textSize(), color: soft }, standoff: 4 }, automargin: true, ...own,
    });
    return {
      autosize: true, margin: { l: 46, r: 12, t: 8, b: 34 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: css("--font") || "sans-serif", size: textSize() },
      showlegend: false, hovermode: "closest", modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
      hoverlabel: { bgcolor: css("--background-fill-primary"), bordercolor: grid, font: { color: ink, size: textSize() } },
      xaxis: axis(xTitle, extra.x), yaxis: axis(yTitle, extra.y),
      annotations: extra.annotations || [],
    };
  }
  const halo = () => Array(6).fill(`0 0 3px ${css("--dpx-paper")}`).join(", ");
  const note = (text, role, y, own = {}) => ({
    text, showarrow: false, xref: "paper", x: 1, xanchor: "right", y, yanchor: "bottom", borderpad: 1,
    font: { size: textSize(), weight: 600, color: colour(role), shadow: halo() }, ...own,
  });

  /* Where a label of the level `y` is least in the way of lines: left or right of the plot, above or below the level. */
  function clearest(x, series, y, top) {
    const last = x.length ? x[x.length - 1] : 1, tall = 0.13 * top;
    const spots = [["right", "bottom"], ["left", "bottom"], ["right", "top"], ["left", "top"]].filter(([, edge]) => edge === "bottom" || y > tall);
    const met = ([side, edge]) => series.flat().filter((v, i) => {
      if (v == null) return false;
      const at = x[i % x.length] / last, near = side === "right" ? at > 0.6 : at < 0.4;
      return near && (edge === "bottom" ? v > y - tall / 4 && v < y + tall : v < y + tall / 4 && v > y - tall);
    }).length;
    const [side, edge] = spots.reduce((best, spot) => (met(spot) < met(best) ? spot : best));
    return { x: side === "right" ? 1 : 0.01, xanchor: side, yanchor: edge };
  }
  const highest = (series, least) => Math.max(least, ...series.flat().filter(Number.isFinite));

  /* KL and entropy by step, every restart a line, the best one in bold. */
  function live(root) {
    const klDiv = root.querySelector(".dpx-kl"), hDiv = root.querySelector(".dpx-entropy");
    let head, x, kl, h, best, marks, rev = 0;
    const reset = () => { head = null; x = []; kl = []; h = []; best = 0; marks = {}; };
    reset();
    const take = (row) => {
      if (Array.isArray(row)) {
        x.push(row[0]);
        row[1].forEach((v, i) => (kl[i] = kl[i] || []).push(v));
        row[2].forEach((v, i) => (h[i] = h[i] || []).push(v));
        best = row[3];
      } else if (row.run !== undefined) head = row;
      else Object.assign(marks, row);
    };
    const restarts = (series, unit, per) => {
      const order = series.map((_, i) => i).sort((a, b) => (a === best) - (b === best));
      return order.map((i) => ({
        x, y: series[i].map((v) => (v == null ? null : v * per)), mode: x.length < 2 ? "markers" : "lines", type: "scatter",
        name: `restart ${i + 1}`, connectgaps: false,
        line: i === best ? { color: colour("achieved"), width: 3 } : { color: colour("restart"), width: 1.2 },
        marker: { color: i === best ? colour("achieved") : colour("restart"), size: 5 },
        opacity: i === best ? 1 : 0.65,
        hovertemplate: `restart ${i + 1}${i === best ? " (best)" : ""}, step %{x}: %{y:.3f} ${unit}<extra></extra>`,
      }));
    };
    const level = (y, role, unit, name, own = {}) => ({
      x: [0, Math.max(x.length ? x[x.length - 1] : 0, head ? Math.min(head.steps, 20) : 20)], y: [y, y], mode: "lines", type: "scatter",
      line: { color: colour(role), width: 2, dash: dash(role) }, hovertemplate: `${name}: %{y:.3f} ${unit}<extra></extra>`, ...own,
    });
    const draw = () => {
      rev++;
      const u = units(), log = root.dataset.scale === "log", hLog = root.dataset.hscale === "log";
      const lines = restarts(kl, u.kl.name, u.kl.per), notes = [];
      const place = (v) => (log ? Math.log10(Math.max(v, 1e-9)) : v);
      const shown = (role) => marks[role] != null && !(log && marks[role] <= 0);
      const top = highest(kl, 0) * u.kl.per, near = kl.map((one) => one.map((v) => (v == null ? null : v * u.kl.per)));
      const told = { floor: `certified floor ${fixed(marks.floor * u.kl.per)} ${u.kl.name}`, head: `head optimum ≈ ${fixed(marks.head * u.kl.per)}` };
      if (shown("floor")) lines.unshift(level(marks.floor * u.kl.per, "floor", u.kl.name, "certified floor", log ? {} : { fill: "tozeroy", fillcolor: tint(colour("floor"), 0.12) }));
      if (shown("head")) lines.unshift(level(marks.head * u.kl.per, "head", u.kl.name, "head optimum (estimate)"));
      if (shown("floor") && shown("head") && !log && marks.head * u.kl.per < 0.14 * top) { // where the lines are heading: both in one line at the top
        const both = `<span style="color:${colour("floor")}">${told.floor}</span>  ·  ${told.head}`;
        notes.push(note(both, "head", 1, { yref: "paper", yanchor: "top" }));
      } else {
        const low = log || marks.floor * u.kl.per < 0.14 * top;
        if (shown("floor")) notes.push(note(told.floor, "floor", place(marks.floor * u.kl.per), low ? { x: 0.01, xanchor: "left" } : { yanchor: "top" }));
        if (shown("head")) notes.push(note(told.head, "head", place(marks.head * u.kl.per), low ? {} : { ...clearest(x, near, marks.head * u.kl.per, top), yanchor: "bottom" }));
      }
      P().react(klDiv, lines, {
        ...layout("step", `KL(p‖q) (${u.kl.name})`, { x: { rangemode: "tozero" }, y: log ? { type: "log" } : { rangemode: "tozero" }, annotations: notes }),
        uirevision: head ? head.run + (log ? "log" : "") + u.kl.name : "none", datarevision: rev,
      }, CONFIG);
      const curves = restarts(h, u.h.name, u.h.per), hNotes = [];
      if (head && head.entropy != null) {
        const y = head.entropy * u.h.per;
        curves.unshift(level(y, "target", u.h.name, "entropy of the target"));
        const near = h.map((one) => one.map((v) => (v == null ? null : v * u.h.per)));
        hNotes.push(note(`target ${fixed(y)} ${u.h.name}`, "target", hLog ? Math.log10(Math.max(y, 1e-9)) : y, clearest(x, near, y, highest(near, y))));
      }
      P().react(hDiv, curves, {
        ...layout("step", `entropy of q (${u.h.name})`, { x: { rangemode: "tozero" }, y: hLog ? { type: "log" } : { rangemode: "tozero" }, annotations: hNotes }),
        uirevision: head ? head.run + (hLog ? "log" : "") + u.h.name : "none", datarevision: rev,
      }, CONFIG);
      root.dataset.points = x.length;
      root.dataset.run = head ? head.run : "";
      root.classList.toggle("is-empty", !head);
    };
    return { reset, take, draw };
  }

  /* A distribution by rank or token on log axes: the target, and what the prompt achieves over it, at any recorded step. */
  function ranks(root, schedule) {
    const div = root.querySelector(".dpx-ranks"), scrub = scrubber(root.querySelector(".dpx-scrub"), schedule);
    let head, frames, rev = 0;
    const reset = () => { head = null; frames = []; scrub.reset(); };
    reset();
    const take = (row) => { if (row.run !== undefined) head = row; else { frames.push(row); scrub.grow(frames.length); } };
    const p10 = (list) => list.map((v) => (v == null ? null : Math.pow(10, v / 100)));
    const draw = () => {
      rev++;
      const byToken = root.dataset.by === "token", linear = root.dataset.scale === "linear", traces = [], frame = frames[scrub.at()];
      if (head) {
        const tokens = (head.tokens || []).map(show);
        traces.push({
          x: head.ranks, y: p10(head.p), text: tokens, mode: "lines", name: "target p", type: "scatter",
          line: { color: colour("target"), width: 2.5 }, fill: "tozeroy", fillcolor: tint(colour("target"), 0.08),
          hovertemplate: "target: rank %{x}, “%{text}”, p = %{y:.3g}<extra></extra>",
        });
        if (frame) traces.push({
          x: head.ranks, y: p10(byToken ? frame.t : frame.q), text: tokens, name: "achieved q", type: "scatter",
          mode: byToken ? "markers" : "lines", marker: { color: colour("achieved"), size: 5, opacity: 0.85 },
          line: { color: colour("achieved"), width: 2.5 },
          hovertemplate: byToken ? "achieved: “%{text}”, q = %{y:.3g}<extra></extra>" : "achieved: rank %{x}, q = %{y:.3g}<extra></extra>",
        });
      }
      const low = head ? Math.max(-10, Math.min(...head.p.filter((v) => v != null)) / 100 - 0.7) : -6;
      const small = div.clientHeight < 190;
      P().react(div, traces, {
        ...layout(byToken ? "token, by its rank in the target" : "rank", "probability", {
          x: { type: "log", dtick: div.clientWidth < 220 ? 2 : 1, exponentformat: "power", tickangle: 0 },
          y: linear ? { rangemode: "tozero" } : { type: "log", range: [Math.min(low, -4), 0.15], dtick: small ? 2 : undefined, exponentformat: "power" },
        }),
        uirevision: head ? head.run + byToken + linear : "none", datarevision: rev,
      }, CONFIG);
      const u = units().kl;
      scrub.tell(frame ? `step ${frame.s} · KL ${fixed(frame.k == null ? null : frame.k * u.per)} ${u.name}` : "");
      root.dataset.points = head ? head.ranks.length : 0;
      root.dataset.frames = frames.length;
      root.dataset.shown = frame ? frame.s : "";
      root.dataset.run = head ? head.run : "";
      root.classList.toggle("is-empty", !head);
    };
    return { reset, take, draw };
  }

  /* A range over the recorded steps. It stays at the newest one until it is taken back, and again once it is put there. */
  function scrubber(bar, schedule) {
    if (!bar) return { reset() {}, grow() {}, tell() {}, at: () => -1 };
    const range = bar.querySelector("input"), told = bar.querySelector("output"), play = bar.querySelector("button");
    let count = 0, back = null, timer = 0;
    const at = () => (back === null ? count - 1 : back);
    const stop = () => { clearInterval(timer); timer = 0; play.textContent = "▶"; play.setAttribute("aria-label", "Play the run again"); };
    const set = (place) => { back = place >= count - 1 ? null : place; range.value = at(); schedule(); };
    range.addEventListener("input", () => { stop(); set(Number(range.value)); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      play.textContent = "❚❚"; play.setAttribute("aria-label", "Pause");
      set(0);
      timer = setInterval(() => { set(at() + 1); if (back === null) stop(); }, 140);
    });
    return {
      reset() { count = 0; back = null; stop(); bar.hidden = true; },
      grow(now) { count = now; bar.hidden = now < 2; range.max = now - 1; range.value = at(); },
      tell(text) { told.textContent = text; range.setAttribute("aria-valuetext", text); },
      at,
    };
  }

  /* A figure in the colours of the page: on a dark one those that `layout.meta.dark` gives for the ones on paper. */
  function onThisPage(spec) {
    const pairs = Object.entries((spec.layout && spec.layout.meta && spec.layout.meta.dark) || {});
    if (!pairs.length || !document.body.classList.contains("dark")) return spec;
    const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",");
    const recoloured = pairs.reduce(
      (text, [paper, dark]) => text.replaceAll(paper, dark).replaceAll(`rgba(${rgb(paper)},`, `rgba(${rgb(dark)},`),
      JSON.stringify([spec.data, spec.layout.shapes || [], spec.layout.annotations || []]),
    );
    const [data, shapes, annotations] = JSON.parse(recoloured);
    return { data, layout: { ...spec.layout, shapes, annotations } };
  }

  /* A figure in the page's units: `layout.meta.measures` names the axes that show a divergence or an entropy, as
   * [axis, "kl" or "h", the unit they come in]; the numbers in annotations of that unit follow, and are rounded here
   * alone: rounded before as well, 2.585 bits became 2.59. */
  function inPageUnits({ data, layout: own }) {
    for (const [axis, kind, unit] of (own.meta && own.meta.measures) || []) {
      const wanted = units()[kind].name, factor = wanted === unit ? 1 : wanted === "bits" ? 1 / LN2 : LN2;
      const name = `${axis}axis`, renamed = (text) => (text || "").replaceAll(unit, wanted);
      const moved = (mark, keys) => mark[`${axis}ref`] === axis ? { ...mark, ...Object.fromEntries(keys.map((key) => [key, mark[key] * factor])) } : mark;
      const told = (text) => (text || "").replace(new RegExp(`([\\d.]+) ${unit}`), (_, number) => `${fixed(number * factor)} ${wanted}`);
      data = data.map((trace) => ({ ...trace, [axis]: trace[axis].map((v) => (v == null ? null : v * factor)), hovertemplate: renamed(trace.hovertemplate) }));
      own = {
        ...own, [name]: { ...own[name], title: { ...own[name].title, text: renamed(own[name].title.text) } },
        shapes: (own.shapes || []).map((shape) => moved(shape, [`${axis}0`, `${axis}1`])),
        annotations: (own.annotations || []).map((mark) => moved({ ...mark, text: told(mark.text) }, [axis])),
      };
    }
    return [data, own];
  }
  /* The same with its vertical axis logarithmic: annotations stand at the logarithm, shapes at the value itself. */
  function onLogAxis(own) {
    const annotations = (own.annotations || []).map((mark) => (mark.yref === "y" ? { ...mark, y: Math.log10(Math.max(mark.y, 1e-9)) } : mark));
    return { ...own, yaxis: { ...own.yaxis, type: "log", rangemode: "normal" }, annotations };
  }

  /* Breaks a text into lines of at most `width` pixels. */
  function wrapped(text, width) {
    const most = Math.max(24, Math.floor(width / 7));
    const lines = [""];
    for (const word of (text || "").split(" ")) {
      const line = lines.at(-1);
      if (line && line.length + word.length >= most) lines.push(word);
      else lines[lines.length - 1] = line ? `${line} ${word}` : word;
    }
    return lines.join("<br>");
  }

  /* On a narrow screen the legend stands below everything else, an entry a line, and has the room that it needs. */
  function narrowed(data, own) {
    const entries = data.filter((trace) => trace.name && trace.showlegend !== false).length;
    const legend = { ...own.legend, orientation: "v", x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom", tracegroupgap: 0 };
    return { ...own, legend, margin: { ...own.margin, b: 64 + 20 * entries } };
  }

  /* A finished Plotly figure, one JSON line; its inks and units follow the page, and what was zoomed into stays. */
  function figure(root) {
    const div = root.querySelector(".dpx-figure");
    let spec = null, rev = 0;
    const reset = () => (spec = null);
    const take = (row) => (spec = { layout: {}, ...row });
    const draw = () => {
      rev++;
      root.classList.toggle("is-empty", !spec);
      if (!spec) { P().purge(div); return; }
      const grid = css("--dpx-grid"), log = root.dataset.scale === "log";
      let [data, own] = inPageUnits(onThisPage(spec));
      if (log) own = onLogAxis(own);
      const width = div.clientWidth;
      if (width < NARROW) own = narrowed(data, own);
      const title = { ...own.title, text: wrapped((own.title || {}).text, width - 80), font: { size: 13 } };
      const axis = (name) => ({ ...own[name], gridcolor: grid, linecolor: grid, tickcolor: grid, zerolinecolor: grid });
      const axes = new Set(["xaxis", "yaxis", ...Object.keys(own).filter((name) => /^[xy]axis\d+$/.test(name))]);
      const titles = [...axes].map((name) => ((own[name] || {}).title || {}).text).join();
      P().react(div, data, {
        ...own, title, ...Object.fromEntries([...axes].map((name) => [name, axis(name)])),
        font: { ...own.font, color: css("--body-text-color") }, autosize: true,
        uirevision: titles + log, datarevision: rev,
      }, CONFIG);
      root.dataset.points = spec.data.length;
    };
    return { reset, take, draw };
  }

  const KINDS = { live, ranks, figure };
  const LONGEST_DRAG = 10_000;
  const REST = 4; // times as long as a drawing took: a fast run's charts leave the page to its user

  function mount(element, props, watch) {
    const root = element.querySelector("[data-chart]");
    let read = 0, name = "", pending = false, rested = 0;
    const schedule = () => {
      if (pending) return;
      pending = true;
      const since = performance.now();
      requestAnimationFrame(function draw() {
        // What somebody drags is not torn out of their hand: Plotly covers the page meanwhile. A cover that is left
        // behind by a lost end of a drag must not hold the chart up for ever.
        const held = document.querySelector(".dragcover") && performance.now() - since < LONGEST_DRAG;
        if (held || performance.now() < rested) { setTimeout(() => requestAnimationFrame(draw), 100); return; }
        pending = false;
        const began = performance.now();
        if (root.isConnected && P()) chart.draw();
        rested = performance.now() + REST * (performance.now() - began);
      });
    };
    const chart = KINDS[root.dataset.chart](root, schedule);
    const feed = () => {
      const text = props.value || "";
      const first = text.slice(0, Math.max(0, text.indexOf("\n")));
      if (first !== name || text.length < read) { read = 0; name = first; chart.reset(); }
      const end = text.lastIndexOf("\n") + 1;
      for (const line of text.slice(read, end).split("\n")) if (line) chart.take(JSON.parse(line));
      read = Math.max(read, end);
      schedule();
    };
    watch("value", feed);
    feed();
    new MutationObserver(schedule).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    new MutationObserver(schedule).observe(root, { attributes: true, attributeFilter: ["data-scale", "data-hscale", "data-by"] });
    new ResizeObserver(schedule).observe(root);
  }

  window.dpxCharts = { mount, kinds: KINDS, kit: { units, plotly: P, layout, note, colour, css, tint, textSize, plain, config: CONFIG } };
})();
