/* Copy a link to the setup or to the run; and the page's own address follows the run that it shows. */
(() => {
  if (window.dpxShare) return;
  const isRun = (name) => /^[A-Za-z0-9_-]{22}$/.test(name || "");
  const base = () => location.origin + location.pathname;
  const chart = () => document.querySelector("#live-chart [data-chart]");

  /* The query that leads back to a run, whatever else is in the address; null where the address has it already. */
  const queryOf = (search, run) => {
    const query = new URLSearchParams(search);
    if (!isRun(run) || query.get("run") === run) return null;
    query.delete("d");
    query.set("run", run);
    return `?${query}`;
  };

  const share = (element, props, watch, tell) => {
    const root = element.querySelector(".dpx-share-links");
    const [setup, run] = root.querySelectorAll("button"), said = root.querySelector("span");
    let timer = 0;
    const offer = async (link, what) => {
      clearTimeout(timer);
      try { await navigator.clipboard.writeText(link); said.textContent = `${what} copied`; }
      catch {
        const field = Object.assign(document.createElement("input"), { value: link, readOnly: true });
        field.setAttribute("aria-label", what);
        said.replaceChildren(field); field.select();
        if (!document.execCommand("copy")) return;
        said.textContent = `${what} copied`;
      }
      timer = setTimeout(() => (said.textContent = ""), 4000);
    };
    setup.addEventListener("click", () => tell({}));
    run.addEventListener("click", () => offer(`${base()}?run=${chart().dataset.run}`, "Link to the run"));
    watch("value", () => {
      const told = JSON.parse(props.value || "{}");
      if (told.d) offer(`${base()}?d=${told.d}`, "Link to this setup");
      else if (told.problem) said.textContent = told.problem;
    });
    const follow = () => {
      const name = chart()?.dataset.run, query = queryOf(location.search, name);
      run.disabled = !isRun(name);
      if (query) history.replaceState(history.state, "", query);
    };
    new MutationObserver(follow).observe(document.body, { subtree: true, attributes: true, attributeFilter: ["data-run"] });
    follow();
  };
  window.dpxShare = Object.assign(share, { isRun, queryOf });
})();
