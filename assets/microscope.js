/* The KL microscope: two tables of tokens, and the probability of the chosen ones through the run. */
(() => {
  if (window.dpxMicroscope) return;
  const MOST = 3; // followed at once; more lines than this cannot be told apart

  const make = (tag, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };
  const number = (x) => (x >= 0.0995 ? x.toFixed(3) : x >= 0.000995 ? String(Number(x.toFixed(5))) : x > 0 ? x.toExponential(1) : "0");
  const signed = (share) => `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(1)} %`;
  const visible = (text) => JSON.stringify(text).slice(1, -1).replace(/\\"/g, '"').replace(/\\\\/g, "\\").replace(/ /g, "␣");

  window.dpxMicroscope = (element, props, watch) => {
    const root = element.querySelector(".dpx-microscope"), empty = root.querySelector(".dpx-empty-card");
    let told = null, followed = [], plot = null;

    function bars(row, top) {
      const line = (value, role) => make("span", { className: "dpx-share" },
        Object.assign(make("span", { className: `is-${role}` }), { style: `width:${(100 * value) / top}%` }));
      const cell = make("td", { className: "is-bars" }, line(row.target, "target"), line(row.achieved, "achieved"));
      cell.setAttribute("aria-hidden", "true");
      return cell;
    }
    function table(rows, caption, top) {
      const heads = [["token", "is-token"], ["target p", "is-num"], ["", "is-bars"], ["achieved q", "is-num"], ["of KL", "is-num"]];
      const body = rows.map((row) => {
        const button = make("button", { type: "button", title: `Follow token ${row.id} through the run` },
          make("code", { className: "dpx-token", textContent: visible(row.text) }));
        button.dataset.follow = row.id;
        button.addEventListener("click", () => toggle(row.id));
        return make("tr", {}, make("td", { className: "is-token" }, button),
          make("td", { className: "is-num", textContent: number(row.target) }), bars(row, top),
          make("td", { className: "is-num", textContent: number(row.achieved) }),
          make("td", { className: "is-num", textContent: signed(row.kl_nats / Math.max(told.kl, 1e-9)) }));
      });
      return make("div", { className: "dpx-table" }, make("table", {}, make("caption", { textContent: caption }),
        make("thead", {}, make("tr", {}, ...heads.map(([text, css]) => Object.assign(make("th", { textContent: text, className: css }), { scope: "col" })))),
        make("tbody", {}, ...body)));
    }
    function toggle(id) {
      followed = followed.includes(id) ? followed.filter((other) => other !== id) : [...followed, id].slice(-MOST);
      draw();
    }
    function build() {
      const rows = [...told.below, ...told.above];
      const top = Math.max(...rows.map((row) => Math.max(row.target, row.achieved)), 1e-9);
      const rest = told.others.kl_nats / Math.max(told.kl, 1e-9);
      plot = make("div", { className: "dpx-follow" });
      const tables = make("div", { className: "dpx-parts" },
        table(told.below, "Said too little: what the KL is paid for", top), table(told.above, "Said too much: where that probability went", top));
      const rests = `All other ${told.others.count.toLocaleString("en")} tokens together: ${signed(rest)} of the KL. A share below zero means that q gives the token more than p asks for.`;
      const side = make("div", { className: "dpx-follow-side" },
        make("p", { className: "dpx-note", textContent: "Probability through the run: q solid, p dotted. Click up to three tokens." }), plot);
      root.replaceChildren(empty, make("div", { className: "dpx-microscope-row" }, tables, side), make("p", { className: "dpx-note", textContent: rests }));
    }
    function draw() {
      root.classList.toggle("is-empty", !told);
      root.dataset.followed = followed.join(" ");
      if (!told) return;
      for (const button of root.querySelectorAll("[data-follow]")) button.setAttribute("aria-pressed", String(followed.includes(Number(button.dataset.follow))));
      const kit = window.dpxCharts.kit, rows = [...told.below, ...told.above].filter((row) => followed.includes(row.id));
      const last = told.steps[told.steps.length - 1] || 1;
      const lines = rows.flatMap((row) => {
        const name = kit.plain(visible(row.text)), strong = followed[followed.length - 1] === row.id;
        return [
          { x: [0, last], y: [row.target, row.target], mode: "lines", type: "scatter", line: { color: kit.colour("target"), dash: "dot", width: strong ? 2.5 : 1.5 }, hovertemplate: `“${name}” target p = %{y:.3g}<extra></extra>` },
          { x: told.steps, y: row.track, mode: told.steps.length < 2 ? "markers" : "lines", type: "scatter", line: { color: kit.colour("achieved"), width: strong ? 3 : 1.5 }, hovertemplate: `“${name}” step %{x}: q = %{y:.3g}<extra></extra>` },
        ];
      });
      // Each label stands at another part of the run, so that tokens that end alike do not cover one another.
      const places = [[1, "right"], [0.5, "center"], [0, "left"]];
      const notes = rows.filter((row) => row.track.length).map((row, i) => {
        const [part, xanchor] = places[i], at = Math.round(part * (row.track.length - 1));
        const text = visible(row.text);
        return kit.note(kit.plain(text.length > 14 ? `${text.slice(0, 13)}…` : text), "achieved", Math.log10(Math.max(row.track[at], 1e-12)), { xref: "x", x: told.steps[at], xanchor });
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
