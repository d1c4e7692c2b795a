/* The KL microscope: the KL by rank band, two tables of tokens, and the probability of the chosen ones through the run. */
(() => {
  if (window.dpxMicroscope) return;
  const MOST = 3; // followed at once; more lines than this cannot be told apart

  const make = (tag, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };
  const number = (x) => (x >= 0.0995 ? x.toFixed(3) : x >= 0.000995 ? String(Number(x.toFixed(5))) : x > 0 ? x.toExponential(1) : "0");
  const unit = () => window.dpxCharts.kit.units().kl;
  const signed = (nats, digits = 4) => `${nats < 0 ? "−" : "+"}${Math.abs(nats * unit().per).toFixed(digits)}`;
  const divergence = (nats) => Object.assign(make("td", { className: "is-num", textContent: signed(nats) }), { dpxNats: nats });
  const visible = (text) => JSON.stringify(text).slice(1, -1).replace(/\\"/g, '"').replace(/\\\\/g, "\\").replace(/ /g, "␣");

  window.dpxMicroscope = (element, props, watch) => {
    const root = element.querySelector(".dpx-microscope"), empty = root.querySelector(".dpx-empty-card");
    let told = null, followed = [], plot = null, rest = null;

    function bars(row, top) {
      const line = (value, role) => make("span", { className: "dpx-share" },
        Object.assign(make("span", { className: `is-${role}` }), { style: `width:${(100 * value) / top}%` }));
      const cell = make("td", { className: "is-bars" }, line(row.target, "target"), line(row.achieved, "achieved"));
      cell.setAttribute("aria-hidden", "true");
      return cell;
    }
    /* The last column: what a token adds to the KL, or, where that is always next to nothing, how much too likely it is. */
    function table(rows, caption, top, last, cell) {
      const heads = [["token", "is-token"], ["target p", "is-num"], ["", "is-bars"], ["achieved q", "is-num"], last];
      const body = rows.map((row) => {
        const button = make("button", { type: "button", title: `Follow token ${row.id} through the run` },
          make("code", { className: "dpx-token", textContent: visible(row.text) }));
        button.dataset.follow = row.id;
        button.addEventListener("click", () => toggle(row.id));
        return make("tr", {}, make("td", { className: "is-token" }, button),
          make("td", { className: "is-num", textContent: number(row.target) }), bars(row, top),
          make("td", { className: "is-num", textContent: number(row.achieved) }),
          cell(row));
      });
      return make("div", { className: "dpx-table" }, make("table", {}, make("caption", { textContent: caption }),
        make("thead", {}, make("tr", {}, ...heads.map(([text, css]) => Object.assign(make("th", { textContent: text, className: css }), { scope: "col" })))),
        make("tbody", {}, ...body)));
    }
    /* Head against tail: what each power of ten of ranks adds to the KL. */
    function bandsTable() {
      const widest = Math.max(...told.bands.map((band) => Math.abs(band.kl_nats)), 1e-12);
      const ranks = (band) => (band.first === band.last ? `${band.first}` : `${band.first.toLocaleString("en")} to ${band.last.toLocaleString("en")}`);
      const body = told.bands.map((band) => {
        const width = `width:${(100 * Math.abs(band.kl_nats)) / widest}%`;
        const bar = make("td", { className: "is-bars" }, make("span", { className: "dpx-share" },
          Object.assign(make("span", { className: band.kl_nats < 0 ? "is-target" : "is-achieved" }), { style: width })));
        bar.setAttribute("aria-hidden", "true");
        return make("tr", {}, make("td", { textContent: ranks(band) }), make("td", { className: "is-num", textContent: number(band.target) }),
          make("td", { className: "is-num", textContent: number(band.achieved) }), bar, divergence(band.kl_nats));
      });
      const heads = [["rank in the target", ""], ["target p", "is-num"], ["achieved q", "is-num"], ["", "is-bars"], ["", "is-num is-unit"]];
      return make("div", { className: "dpx-table dpx-bands" }, make("table", {}, make("caption", { textContent: "Head or tail: where along the ranks the KL lies" }),
        make("thead", {}, make("tr", {}, ...heads.map(([text, css]) => Object.assign(make("th", { textContent: text, className: css }), { scope: "col" })))),
        make("tbody", {}, ...body)));
    }
    function toggle(id) {
      followed = followed.includes(id) ? followed.filter((other) => other !== id) : [...followed, id].slice(-MOST);
      draw();
    }
    function build() {
      if (told.nothing_left) {
        plot = null;
        root.replaceChildren(empty, make("p", { className: "dpx-note dpx-nothing-left", textContent: "Nothing left to explain: the prompt says the target to three decimals, and shares of the rest would only show rounding." }));
        return;
      }
      const rows = [...told.below, ...told.above];
      const top = Math.max(...rows.map((row) => Math.max(row.target, row.achieved)), 1e-9);
      plot = make("div", { className: "dpx-follow" });
      const tables = make("div", { className: "dpx-parts" },
        table(told.below, "Said too little: what the KL is paid for", top, ["", "is-num is-unit"], (row) => divergence(row.kl_nats)),
        table(told.above, "Said too much: where that probability went", top, ["q − p", "is-num"],
          (row) => make("td", { className: "is-num", textContent: `+${number(row.achieved - row.target)}` })));
      rest = make("p", { className: "dpx-note" });
      const side = make("div", { className: "dpx-follow-side" },
        make("p", { className: "dpx-note", textContent: "Probability through the run: q as a line, p dotted. Click up to three tokens." }), plot);
      root.replaceChildren(empty, make("div", { className: "dpx-microscope-row" }, tables, side), rest, bandsTable());
    }
    function draw() {
      root.classList.toggle("is-empty", !told);
      root.dataset.followed = followed.join(" ");
      if (!told || !plot) return;
      for (const cell of root.querySelectorAll("td.is-num")) if (cell.dpxNats !== undefined) cell.textContent = signed(cell.dpxNats);
      for (const head of root.querySelectorAll(".is-unit")) head.textContent = `KL (${unit().name})`;
      rest.textContent = `All other ${told.others.count.toLocaleString("en")} tokens together: ${signed(told.others.kl_nats)} of ${(told.kl * unit().per).toFixed(4)} ${unit().name}. Below zero: q gives more than p asks for.`;
      for (const button of root.querySelectorAll("[data-follow]")) {
        const place = followed.indexOf(Number(button.dataset.follow));
        button.style.color = place < 0 ? "" : `var(--dpx-follow-${place + 1})`;
      }
      for (const button of root.querySelectorAll("[data-follow]")) button.setAttribute("aria-pressed", String(followed.includes(Number(button.dataset.follow))));
      const kit = window.dpxCharts.kit, rows = [...told.below, ...told.above].filter((row) => followed.includes(row.id));
      const role = (row) => `follow-${followed.indexOf(row.id) + 1}`;
      const last = told.steps[told.steps.length - 1] || 1;
      const lines = rows.flatMap((row) => {
        const name = kit.plain(visible(row.text)), own = kit.colour(role(row)), strong = followed[followed.length - 1] === row.id;
        return [
          { x: [0, last], y: [row.target, row.target], mode: "lines", type: "scatter", line: { color: own, dash: "dot", width: strong ? 2.5 : 1.5 }, hovertemplate: `“${name}” target p = %{y:.3g}<extra></extra>` },
          { x: told.steps, y: row.track, mode: told.steps.length < 2 ? "markers" : "lines", type: "scatter", line: { color: own, width: strong ? 3 : 1.5 }, hovertemplate: `“${name}” step %{x}: q = %{y:.3g}<extra></extra>` },
        ];
      });
      // Each label stands at another part of the run, so that tokens that end alike do not cover one another.
      const places = [[1, "right"], [0.5, "center"], [0, "left"]];
      const notes = rows.filter((row) => row.track.length).map((row, i) => {
        const [part, xanchor] = places[i], at = Math.round(part * (row.track.length - 1));
        const text = visible(row.text);
        return kit.note(kit.plain(text.length > 14 ? `${text.slice(0, 13)}…` : text), role(row), Math.log10(Math.max(row.track[at], 1e-12)), { xref: "x", x: told.steps[at], xanchor });
      });
      kit.plotly().react(plot, lines, kit.layout("step", "probability", { x: { rangemode: "tozero" }, y: { type: "log", exponentformat: "power" }, annotations: notes }), kit.config);
    }
    const take = () => {
      told = props.value ? JSON.parse(props.value) : null;
      followed = told ? [told.below[0], told.above[0]].filter(Boolean).map((row) => row.id) : [];
      if (told) build(); else root.replaceChildren(empty);
      draw();
    };
    watch("value", take);
    take();
    let pending = false;
    const redraw = () => { if (!pending) { pending = true; requestAnimationFrame(() => { pending = false; draw(); }); } };
    new MutationObserver(redraw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  };
})();
