/* What the page does without asking the server: units, light and dark, chart switches, copying. */
(() => {
  if (window.dpxPage) return;
  window.dpxPage = true;
  const UNITS = { mixed: [], nats: ["h-nats"], bits: ["kl-bits"] };
  const store = { get: (k) => { try { return localStorage.getItem(k); } catch { return null; } },
                  set: (k, v) => { try { localStorage.setItem(k, v); } catch { /* private windows */ } } };

  const press = (button) => {
    for (const other of button.parentElement.querySelectorAll("button"))
      other.setAttribute("aria-pressed", String(other === button));
  };
  function setUnits(name) {
    document.body.classList.remove("h-nats", "kl-bits");
    document.body.classList.add(...(UNITS[name] || []));
    store.set("dpx-units", name);
    const button = document.querySelector(`[data-units="${name}"]`);
    if (button) press(button);
  }
  function setDark(dark) {
    document.body.classList.toggle("dark", dark);
    store.set("dpx-dark", dark ? "1" : "0");
  }
  async function copy(button) {
    const text = button.dataset.copy;
    try { await navigator.clipboard.writeText(text); }
    catch {
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = before), 1200);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-units],button[data-switch],button[data-copy],button[data-dark],button[data-present]");
    if (!button) return;
    if (button.dataset.units) setUnits(button.dataset.units);
    else if (button.dataset.copy !== undefined) copy(button);
    else if (button.dataset.present !== undefined) present(!document.body.classList.contains("dpx-present"));
    else if (button.dataset.dark !== undefined) setDark(!document.body.classList.contains("dark"));
    else {
      const [target, key, value] = button.dataset.switch.split(":");
      const chart = document.querySelector(`#${target} [data-chart]`);
      if (chart) { chart.dataset[key] = value; press(button); }
    }
  });

  // Weights by hand: native range inputs, so that they can be dragged, nudged by arrow keys and read out.
  window.dpxSliders = (element, props, watch, tell) => {
    const root = element.querySelector(".dpx-sliders");
    let timer = 0;
    const draw = () => {
      const weights = JSON.parse(props.value || "[]");
      if (root.contains(document.activeElement) && root.children.length === weights.length) return; // in the hand
      const top = Math.max(1, ...weights.map((w) => w.weight));
      root.replaceChildren(...weights.map((w, index) => {
        const label = document.createElement("label"), name = document.createElement("code"), range = document.createElement("input");
        name.textContent = w.token.replace(/ /g, "␣");
        Object.assign(range, { type: "range", min: 0, max: top, step: top / 100, value: w.weight });
        range.addEventListener("input", () => {
          clearTimeout(timer);
          timer = setTimeout(() => tell({ index, weight: Number(Number(range.value).toPrecision(3)) }), 60);
        });
        label.append(name, range);
        return label;
      }));
    };
    watch("value", draw);
    draw();
  };

  // Gradio's text boxes tell of input by `keypress` alone: what is pasted, deleted, dropped or dictated
  // would never reach the server. Give them the keypress that such an input comes without.
  let pressed = null;
  document.addEventListener("keypress", (event) => { if (event.isTrusted) pressed = event.target; }, true);
  document.addEventListener("input", (event) => {
    const box = event.target, came = pressed === box;
    pressed = null;
    if (!came && box.matches?.("textarea, input[type=text], input:not([type])") && !box.closest("[role=listbox], .wrap-inner"))
      setTimeout(() => box.dispatchEvent(new KeyboardEvent("keypress", { key: "Unidentified", bubbles: true })), 0);
  }, true);

  /* In front of a class, or inside another page: `?view=lesson-3` opens one lesson alone (or a tab by its name),
   * `?hide=examples,model` takes controls away, `?present=1` makes everything readable from the back row. */
  const PARTS = {
    header: "#header", tabs: "#nav > .tab-wrapper", examples: "#examples", model: "#model-card", target: "#target-card",
    floor: "#floor-card", why: "#why-card", tune: "#tune-card", live: "#live-card", achieved: "#achieved-card",
    result: "#result-card", disc: "#disc-card", words: "#words-card", next: "#onward-card", microscope: "#microscope-card", teacher: ".dpx-teacher", footer: "footer",
  };
  const query = new URLSearchParams(location.search);
  const present = (on) => {
    document.body.classList.toggle("dpx-present", on);
    document.querySelector("[data-present]")?.setAttribute("aria-pressed", String(on));
    const address = new URL(location.href);
    if (on) address.searchParams.set("present", "1"); else address.searchParams.delete("present");
    if (address.href !== location.href) history.replaceState(history.state, "", address);
  };
  function arrange() {
    const hidden = (query.get("hide") || "").split(",").map((name) => PARTS[name.trim()]).filter(Boolean);
    const view = query.get("view") || "", lesson = /^lesson-(\d+)$/.exec(view);
    if (lesson) hidden.push(PARTS.header, PARTS.tabs, PARTS.teacher, ".dpx-lead", `#lessons > .dpx-lesson:not(.is-number-${lesson[1]})`);
    if (hidden.length) document.head.append(Object.assign(document.createElement("style"), { textContent: `${hidden.join(", ")} { display: none !important; }` }));
    if (query.get("present") === "1") present(true);
    const name = lesson ? "lessons" : view.toLowerCase().replaceAll("-", " ");
    if (!name) return;
    const open = () => {
      const tab = [...document.querySelectorAll("#nav > .tab-wrapper button[role=tab]")].find((button) => button.textContent.trim().toLowerCase() === name);
      if (tab) tab.click();
      return Boolean(tab);
    };
    const waiting = new MutationObserver(() => { if (open()) waiting.disconnect(); });
    if (!open()) waiting.observe(document.documentElement, { childList: true, subtree: true });
  }

  /* A floor beside the preview of another target would look like its answer: it goes until its own one comes. */
  function hideStale() {
    const shown = document.querySelector("#floor [data-shape]")?.dataset.shape, preview = document.querySelector("#target-chart [data-chart]")?.dataset.run;
    const stale = Boolean(shown && preview && shown !== preview);
    for (const part of document.querySelectorAll("#floor, #ladder, #why")) part.classList.toggle("dpx-stale", stale);
  }
  const watched = new MutationObserver(() => {
    const chart = document.querySelector("#target-chart [data-chart]"), floor = document.querySelector("#floor .dpx-view");
    if (!chart || !floor) return;
    watched.disconnect();
    new MutationObserver(hideStale).observe(chart, { attributes: true, attributeFilter: ["data-run"] });
    new MutationObserver(hideStale).observe(floor, { childList: true });
  });
  watched.observe(document.documentElement, { childList: true, subtree: true });

  const start = () => {
    arrange();
    setUnits(store.get("dpx-units") || "mixed");
    if (store.get("dpx-dark") && !location.search.includes("__theme")) setDark(store.get("dpx-dark") === "1");
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
  const header = new MutationObserver(() => {
    if (document.querySelector("[data-units]")) { header.disconnect(); setUnits(store.get("dpx-units") || "mixed"); present(document.body.classList.contains("dpx-present")); }
  });
  header.observe(document.documentElement, { childList: true, subtree: true });
})();
