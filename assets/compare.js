/* The table of compared runs, and its figures as pictures for paper. */
(() => {
  if (window.dpxCompare) return;
  const INK = "#1C1C1A", GRID = "#DDDBD3", WIDTH = 1000, HEIGHT = 600;

  /* A figure's layout with dark ink on white, whatever the page's own colours are. */
  const onPaper = (shown) => {
    const layout = JSON.parse(JSON.stringify(shown));
    Object.assign(layout, { paper_bgcolor: "#fff", plot_bgcolor: "#fff", width: WIDTH, height: HEIGHT, autosize: false });
    layout.font = { family: "Helvetica, Arial, sans-serif", color: INK, size: 15 };
    layout.margin = { l: 70, r: 24, t: 60, b: 60 };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key)))
      Object.assign(layout[name], { gridcolor: GRID, linecolor: INK, tickcolor: INK, zerolinecolor: GRID });
    return layout;
  };

  const compare = (element, props, watch, tell) => {
    const root = element.querySelector(".dpx-view");
    const show = () => { root.innerHTML = props.value || ""; };
    watch("value", show);
    show();
    root.addEventListener("change", (event) => {
      const box = event.target.closest("input[data-run-id]");
      if (box) tell({ toggle: box.dataset.runId });
    });
    root.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-drop]");
      if (button) tell({ drop: button.dataset.drop });
    });
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-image]");
    if (!button) return;
    const [id, format] = button.dataset.image.split(":");
    const plot = document.querySelector(`#${id} .js-plotly-plot`);
    if (!plot || !plot.data.length) return;
    const figure = { data: plot.data, layout: onPaper(plot.layout) };
    const url = await window.Plotly.toImage(figure, { format, width: WIDTH, height: HEIGHT, scale: format === "png" ? 3 : 1 });
    Object.assign(document.createElement("a"), { href: url, download: `dpexplore-${id}.${format}` }).click();
  });
  window.dpxCompare = Object.assign(compare, { onPaper });
})();
