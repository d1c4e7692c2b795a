/* The list of a browser's runs: names to type over, buttons to show, stop, take off, and to ask for the same again. */
(() => {
  if (window.dpxRuns) return;

  /* What a control tells the server: its data attributes are the action and the run's id. */
  const told = (control) => {
    const { act, run, how } = control.dataset;
    if (act === "name") return { act, run, text: control.value };
    if (act === "model") return { act: "same", run, how: "model", model: control.value };
    return act === "same" ? { act, run, how } : { act, run };
  };

  const runs = (element, props, watch, tell) => {
    const root = element.querySelector(".dpx-view");
    // What is being typed or chosen is not drawn over; and a button stays under the hand while numbers beside it move.
    const held = () => root.contains(document.activeElement) && document.activeElement.matches("input, select");
    const MOVING = ".dpx-run-state, p[data-moving]";
    const still = (list) => {
      const copy = list.cloneNode(true);
      for (const part of copy.querySelectorAll(MOVING)) part.replaceChildren();
      return copy.innerHTML;
    };
    const show = () => {
      const next = document.createElement("div");
      next.innerHTML = props.value || "";
      if (still(next) === still(root)) {
        const parts = next.querySelectorAll(MOVING);
        root.querySelectorAll(MOVING).forEach((part, i) => { if (part.innerHTML !== parts[i].innerHTML) part.innerHTML = parts[i].innerHTML; });
      } else if (!held()) root.replaceChildren(...next.childNodes);
    };
    watch("value", show);
    show();
    root.addEventListener("focusout", () => setTimeout(show, 0));
    root.addEventListener("change", (event) => {
      const control = event.target.closest("[data-act]");
      if (control) tell(told(control));
      if (control && control.tagName === "SELECT") control.value = "";
    });
    root.addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.matches("input")) event.target.blur(); });
    root.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-act]");
      if (button) tell(told(button), button.dataset.act === "show" ? "select" : "input");
    });
    // The run that the page shows is one of this browser's from its first moment.
    let seen = "";
    const follow = () => {
      const run = document.querySelector("#live-chart [data-chart]")?.dataset.run;
      if (run === seen || !window.dpxShare.isRun(run)) return;
      seen = run;
      tell({ act: "seen", run });
    };
    new MutationObserver(follow).observe(document.body, { subtree: true, attributes: true, attributeFilter: ["data-run"] });
    follow();
  };
  window.dpxRuns = Object.assign(runs, { told });
})();
