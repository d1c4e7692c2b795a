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
    const button = event.target.closest("button[data-units],button[data-switch],button[data-copy],button[data-dark]");
    if (!button) return;
    if (button.dataset.units) setUnits(button.dataset.units);
    else if (button.dataset.copy !== undefined) copy(button);
    else if (button.dataset.dark !== undefined) setDark(!document.body.classList.contains("dark"));
    else {
      const [target, key, value] = button.dataset.switch.split(":");
      const chart = document.querySelector(`#${target} [data-chart]`);
      if (chart) { chart.dataset[key] = value; press(button); }
    }
  });

  const start = () => {
    setUnits(store.get("dpx-units") || "mixed");
    if (store.get("dpx-dark") && !location.search.includes("__theme")) setDark(store.get("dpx-dark") === "1");
  };
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", start) : start();
  const header = new MutationObserver(() => {
    if (document.querySelector("[data-units]")) { header.disconnect(); setUnits(store.get("dpx-units") || "mixed"); }
  });
  header.observe(document.documentElement, { childList: true, subtree: true });
})();
