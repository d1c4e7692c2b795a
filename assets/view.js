/* HTML from the server, shown as it comes: no template runs over it. */
(() => {
  if (window.dpxView) return;
  /* Where it is a live region, what moves (`data-moving`) is not read out; a table stays where its reader has it. */
  window.dpxView = (element, props, watch) => {
    const root = element.querySelector(".dpx-view"), live = root.hasAttribute("aria-live");
    const show = () => {
      const html = props.value || "";
      if (live) root.setAttribute("aria-live", html.includes("data-moving") ? "off" : "polite");
      const before = root.querySelector(".dpx-table");
      const top = before ? before.scrollTop : 0, held = before && before === document.activeElement;
      root.innerHTML = html;
      const table = root.querySelector(".dpx-table");
      if (table && top) table.scrollTop = top;
      if (table && held) table.focus({ preventScroll: true });
    };
    watch("value", show);
    show();
  };
})();
