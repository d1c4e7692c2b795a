/* Pictures of the head's geometry: the model's last states seen from the best one, and three words in their triangle. */
(() => {
  if (!window.dpxCharts || window.dpxGeometry) return;
  const { kinds, kit } = window.dpxCharts;
  const LEVELS = 9; // contours, from the lowest KL on the map to the highest that is worth a line
  const LEAST_RANGE = 3; // nats above the lowest that are always shown

  const radians = (degrees) => (degrees * Math.PI) / 180;
  const at = (point) => [point.r * Math.cos(radians(point.a)), point.r * Math.sin(radians(point.a))];
  /* A step of 1, 2 or 5 times a power of ten. */
  const nice = (width) => {
    const power = 10 ** Math.floor(Math.log10(width)), rest = width / power;
    return power * (rest > 5 ? 10 : rest > 2 ? 5 : rest > 1 ? 2 : 1);
  };
  const rim = () => Array.from({ length: 91 }, (_, i) => [Math.cos((i * Math.PI) / 90), Math.sin((i * Math.PI) / 90)]);
  /* What lies outside the half disc, as a polygon: along the rim and back around it. */
  const outside = () => [...rim(), [-1.3, 0], [-1.3, 1.3], [1.3, 1.3], [1.3, 0]];
  /* A share of one colour over another, both `#rrggbb`, as an opaque colour. */
  const mixed = (over, under, share) => {
    const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    const [top, below] = [parts(over), parts(under)];
    return `rgb(${top.map((v, i) => Math.round(share * v + (1 - share) * below[i])).join(",")})`;
  };
  /* A path from state to state along the arcs between them. */
  const along = (points) => points.flatMap((point, i) => {
    const next = points[i + 1];
    return next ? Array.from({ length: 8 }, (_, k) => at({ r: point.r + (k / 8) * (next.r - point.r), a: point.a + (k / 8) * (next.a - point.a) })) : [at(point)];
  });
  const lengths = (m) => (m >= 1e4 ? `${(m / 1000).toLocaleString("en")},000` : m.toLocaleString("en"));

  /* The half disc of last states: the star is the best one, the walk is the run's, everything by length and angle. */
  kinds.disc = (root) => {
    const div = root.querySelector(".dpx-disc");
    let told = null, rev = 0;
    const reset = () => (told = null);
    const take = (row) => (told = row);
    function map(u) {
      const low = Math.min(...told.map.kl.flat()), last = told.walk.at(-1);
      const high = Math.max(low + LEAST_RANGE, last ? 1.08 * last.k : 0); // more lines near the star as a run comes closer
      const size = nice(((high - low) * u.per) / LEVELS), start = Math.ceil((low * u.per) / size) * size;
      const shade = (share) => mixed(kit.colour("floor"), kit.css("--dpx-paper"), share);
      return {
        type: "contour", x: told.map.x, y: told.map.y, z: told.map.kl.map((row) => row.map((v) => v * u.per)),
        contours: { start, end: high * u.per, size, coloring: "fill", showlabels: true, labelfont: { size: kit.textSize() - 1, color: kit.css("--body-text-color") } },
        colorscale: [[0, shade(0.55)], [0.4, shade(0.22)], [1, shade(0.03)]], zmin: low * u.per, zmax: high * u.per, zauto: false,
        line: { color: shade(0.5), width: 0.7 }, showscale: false, hoverinfo: "skip",
      };
    }
    function draw() {
      rev++;
      root.classList.toggle("is-empty", !told);
      root.dataset.points = told ? 1 + told.walk.length : 0;
      if (!told) return kit.plotly().purge(div);
      root.dataset.steps = told.walk.length ? told.walk.at(-1).s : "";
      const u = kit.units().kl, traces = [], say = (nats) => `${(nats * u.per).toFixed(2)} ${u.name}`;
      if (told.map) traces.push(map(u));
      const arc = rim(), beyond = outside();
      traces.push({ x: beyond.map(([x]) => x), y: beyond.map(([, y]) => y), mode: "none", type: "scatter", fill: "toself", fillcolor: kit.css("--dpx-paper"), hoverinfo: "skip" });
      traces.push({ x: arc.map(([x]) => x), y: arc.map(([, y]) => y), mode: "lines", type: "scatter", line: { color: kit.css("--body-text-color-subdued"), width: 1.5 }, hoverinfo: "skip" });
      const path = (points, own) => ({ x: points.map((p) => at(p)[0]), y: points.map((p) => at(p)[1]), type: "scatter", mode: "markers", ...own });
      const line = (points, own) => ({ x: along(points).map(([x]) => x), y: along(points).map(([, y]) => y), type: "scatter", mode: "lines", hoverinfo: "skip", line: own });
      const where = (p) => `${p.a.toFixed(1)}° from the best state`;
      if (told.direct.length) traces.push(line(told.direct, { color: kit.colour("head"), width: 2, dash: "dot" }), path(told.direct, {
        marker: { symbol: "diamond", size: 8, color: kit.colour("head") },
        text: told.direct.map((p) => `one token, ${lengths(p.m)} times as long as a word: KL ${say(p.k)}<br>${where(p)}`), hovertemplate: "%{text}<extra></extra>",
      }));
      if (told.walk.length) traces.push(line(told.walk, { color: kit.colour("achieved"), width: 4 }), path(told.walk, {
        marker: { color: kit.colour("achieved"), size: told.walk.map((_, i) => (i === told.walk.length - 1 ? 13 : 6)), line: { color: kit.css("--dpx-paper"), width: told.walk.map((_, i) => (i === told.walk.length - 1 ? 2 : 0)) } },
        text: told.walk.map((p) => `step ${p.s}: KL ${say(p.k)}<br>${where(p)}`), hovertemplate: "%{text}<extra></extra>",
      }));
      if (told.ball.r < 0.999) traces.push(path([told.ball], {
        marker: { symbol: "x", size: 10, color: kit.colour("floor") }, hovertemplate: `the certified floor ${say(told.floor)}: here, inside, where no prompt ends<extra></extra>`,
      }));
      traces.push({ x: [1], y: [0], mode: "markers", type: "scatter", marker: { symbol: "star", size: 20, color: kit.colour("head"), line: { color: kit.css("--dpx-paper"), width: 1 } }, hovertemplate: `the best state: KL ≈ ${say(told.best)}<extra></extra>`, cliponaxis: false });
      const notes = [];
      const label = (text, role, point, own) => notes.push(kit.note(text, role, point[1], { xref: "x", x: point[0], ...own }));
      label(`best state ≈ ${say(told.best)}`, "head", [1, -0.03], { xanchor: "right", yanchor: "top" });
      if (told.walk.length) {
        const last = told.walk.at(-1);
        label(`your run, step ${last.s}: ${say(last.k)}`, "achieved", at({ ...last, r: 0.93 }), { xanchor: last.a > 90 ? "left" : "right", yanchor: "top" });
      }
      const base = kit.layout("", "", { annotations: notes });
      const axis = (range) => ({ range, showgrid: false, zeroline: false, showticklabels: false, ticks: "", fixedrange: true, title: { text: "" } });
      kit.plotly().react(div, traces, {
        ...base, margin: { l: 4, r: 4, t: 4, b: 4 }, dragmode: false,
        xaxis: { ...axis([-1.06, 1.08]) }, yaxis: { ...axis([-0.16, 1.04]), scaleanchor: "x", scaleratio: 1 },
        shapes: [{ type: "line", x0: -1, x1: 1, y0: 0, y1: 0, line: { color: kit.css("--dpx-grid"), width: 1 } }],
        datarevision: rev,
      }, { ...kit.config, displayModeBar: false });
    }
    return { reset, take, draw };
  };
  /* Three words in their triangle: what the model can say of them, the target, and a point to drag. */
  const SVG = "http://www.w3.org/2000/svg", SIDE = 300, HIGH = (SIDE * Math.sqrt(3)) / 2;
  const CORNERS = [[0, HIGH], [SIDE, HIGH], [SIDE / 2, 0]];
  const NUDGE = 0.02; // of the whole, for one press of an arrow key
  const LEAST = 0.002; // no word is dragged out of a target altogether
  const spot = (q) => [0, 1].map((k) => q.reduce((sum, share, i) => sum + share * CORNERS[i][k], 0));
  const draw = (tag, attributes, ...children) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  /* The shares of a point of the picture, pulled into the triangle. */
  function shares(x, y) {
    const top = 1 - y / HIGH, right = x / SIDE - top / 2;
    const held = [1 - top - right, right, top].map((share) => Math.max(share, LEAST)), sum = held[0] + held[1] + held[2];
    return held.map((share) => share / sum);
  }
  const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

  window.dpxTriangle = (element, props, watch, tell) => {
    const root = element.querySelector(".dpx-triangle");
    let told = null, held = null, timer = 0;
    const send = () => {
      clearTimeout(timer);
      timer = setTimeout(() => tell({ ids: told.ids, shares: held.map((share) => Number(share.toPrecision(4))) }), 60);
    };
    function show() {
      root.dataset.words = told ? told.words.join(" ") : "";
      if (!told) return root.replaceChildren();
      const p = held || told.target, name = (i) => told.words[i].replace(/ /g, "␣");
      const points = (list) => list.map((q) => spot(q).map((v) => v.toFixed(2)).join(",")).join(" ");
      const mark = (q, role, own) => { const [cx, cy] = spot(q); return draw("circle", { cx, cy, class: `is-${role}`, ...own }); };
      const handle = draw("g", { class: "is-handle", tabindex: 0, role: "slider", "aria-label": "Target within the triangle; arrow keys move it", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * p[0]), "aria-valuetext": [0, 1, 2].map((i) => `${told.words[i]} ${percent(p[i])}`).join(", ") },
        mark(p, "grip", { r: 18 }), mark(p, "target", { r: 9 }));
      const corner = (i, x, y, anchor) => draw("text", { x, y, "text-anchor": anchor }, draw("tspan", { class: "is-word" }, name(i)), draw("tspan", { class: "is-share", dx: 6 }, percent(p[i])));
      const svg = draw("svg", { viewBox: `-30 -26 ${SIDE + 60} ${HIGH + 56}`, "aria-hidden": "false" },
        draw("polygon", { points: CORNERS.map((c) => c.join(",")).join(" "), class: "is-ground" }),
        draw("polygon", { points: points(told.outline), class: "is-region" }),
        corner(0, -28, HIGH + 22, "start"), corner(1, SIDE + 28, HIGH + 22, "end"), corner(2, SIDE / 2, -10, "middle"));
      if (told.closest) svg.append(mark(told.closest, "floor", { r: 6 }));
      if (told.achieved) svg.append(mark(told.achieved, "achieved", { r: 6 }));
      svg.append(handle);
      const focused = root.contains(document.activeElement);
      root.replaceChildren(svg);
      if (focused) handle.focus({ preventScroll: true });
      handle.addEventListener("keydown", nudge);
    }
    function nudge(event) {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const [x, y] = spot(held || told.target);
      held = shares(x + step[0] * NUDGE * SIDE, y + step[1] * NUDGE * SIDE);
      show(); send();
    }
    let dragging = false;
    const move = (event) => {
      const svg = root.querySelector("svg"), box = svg.getScreenCTM();
      held = shares((event.clientX - box.e) / box.a, (event.clientY - box.f) / box.d);
      show(); send();
    };
    root.addEventListener("pointerdown", (event) => {
      if (!told || !event.target.closest(".is-handle, .is-region, .is-ground")) return;
      event.preventDefault();
      dragging = true;
      root.setPointerCapture(event.pointerId);
      move(event);
    });
    root.addEventListener("pointermove", (event) => { if (dragging) move(event); });
    for (const end of ["pointerup", "pointercancel"]) root.addEventListener(end, () => { dragging = false; });
    const take = () => {
      told = props.value ? JSON.parse(props.value) : null;
      // What comes back for an earlier place of the hand leaves the point where the hand has it now.
      if (!dragging && held && told && told.target.every((share, i) => Math.abs(share - held[i]) < 0.005)) held = null;
      if (!dragging && held && told && told.ids.join() !== (root.dataset.ids || "")) held = null;
      root.dataset.ids = told ? told.ids.join() : "";
      show();
    };
    watch("value", take);
    take();
  };
  window.dpxGeometry = true;
})();
