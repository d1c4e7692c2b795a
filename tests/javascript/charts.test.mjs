import assert from "node:assert/strict";
import { test } from "node:test";
import { chart, page } from "./page.mjs";

const NATS_PER_BIT = Math.log(2);

function mounted(kind, options) {
  const shown = page(["charts.js"], options), props = { value: "" };
  let changed = () => {};
  const root = chart("counted");
  shown.draws = shown.costs = 0;
  shown.rows = [];
  shown.window.dpxCharts.kinds.counted = () => ({
    reset: () => (shown.rows = []), take: (row) => shown.rows.push(row), draw: () => { shown.draws++; shown.here.now += shown.costs; },
  });
  shown.window.dpxCharts.mount({ querySelector: () => root }, props, (_name, call) => (changed = call));
  shown.tell = (text) => { props.value = text; changed(); };
  return shown;
}

test("a chart is not drawn under a hand that drags, and not held up for ever by a cover that was left behind", () => {
  const shown = mounted();
  shown.pass(0);
  const before = shown.draws;
  shown.here.cover = true;
  shown.tell('{"run":"a"}\n[1]\n');
  shown.pass(9_000);
  assert.equal(shown.draws, before);
  shown.pass(1_200);
  assert.equal(shown.draws, before + 1);
  shown.tell('{"run":"a"}\n[1]\n[2]\n');
  shown.pass(500);
  assert.equal(shown.draws, before + 1);
  shown.here.cover = false; // the hand let go
  shown.pass(200);
  assert.equal(shown.draws, before + 2);
});

test("a chart that is slow to draw rests, so that the page stays its user's", () => {
  const shown = mounted();
  shown.pass(0);
  shown.costs = 500; // milliseconds a drawing
  shown.tell('{"run":"a"}\n[1]\n');
  shown.pass(50);
  const before = shown.draws;
  shown.tell('{"run":"a"}\n[1]\n[2]\n');
  shown.pass(1_500);
  assert.equal(shown.draws, before);
  shown.pass(1_000);
  assert.equal(shown.draws, before + 1);
});

test("a stream is read once, and another name starts afresh", () => {
  const shown = mounted();
  shown.tell('{"run":"a"}\n[1]\n[2'); // the last line is still on its way
  assert.equal(JSON.stringify(shown.rows), JSON.stringify([{ run: "a" }, [1]]));
  shown.tell('{"run":"a"}\n[1]\n[2]\n');
  assert.equal(JSON.stringify(shown.rows), JSON.stringify([{ run: "a" }, [1], [2]]));
  shown.tell('{"run":"b"}\n[7]\n');
  assert.equal(JSON.stringify(shown.rows), JSON.stringify([{ run: "b" }, [7]]));
});

function figured(width, classes = [], extra = {}, label = "certified floor 0.69 nats") {
  const div = { clientWidth: width }, root = chart("figure", { ".dpx-figure": div });
  const { window, drawn } = page(["charts.js"], { classes });
  const figure = window.dpxCharts.kinds.figure(root);
  Object.assign(root.dataset, extra);
  figure.take({
    data: [{ name: "one", x: [1, 2], y: [1, null], hovertemplate: "%{y} nats" }, { name: "two", x: [1], y: [2] }, { x: [1], y: [3], showlegend: false, name: "hidden" }],
    layout: {
      meta: { measures: [["y", "kl", "nats"]] }, margin: { t: 8 }, legend: { y: 1.02 }, yaxis: { title: { text: "KL (nats)" } },
      annotations: [{ text: label, yref: "y", y: NATS_PER_BIT }], shapes: [{ yref: "y", y0: NATS_PER_BIT, y1: NATS_PER_BIT }],
    },
  });
  figure.draw();
  return drawn.at(-1);
}

test("on a phone a figure's legend stands below it, an entry a line, with room for each", () => {
  const { layout } = figured(360);
  assert.equal(layout.legend.orientation, "v");
  assert.equal(layout.legend.yref, "container");
  assert.equal(layout.margin.b, 64 + 20 * 2);
  assert.equal(layout.margin.t, 8);
  assert.equal(figured(900).layout.legend.orientation, undefined);
});

test("a figure follows the page's unit: values, levels, labels and titles", () => {
  const { data, layout } = figured(900, ["kl-bits"]);
  assert.ok(Math.abs(data[0].y[0] - 1 / NATS_PER_BIT) < 1e-12);
  assert.equal(data[0].y[1], null);
  assert.equal(data[0].hovertemplate, "%{y} bits");
  assert.equal(layout.yaxis.title.text, "KL (bits)");
  assert.ok(Math.abs(layout.shapes[0].y0 - 1) < 1e-12);
  assert.equal(layout.annotations[0].text, "certified floor 1.00 bits");
  assert.equal(figured(900).layout.annotations[0].text, "certified floor 0.69 nats");
});

test("a number in a label is rounded once, in the unit that is shown", () => {
  const text = "target 1.791500 nats"; // 2.5846 bits; from "1.792 nats" it would be 2.59
  assert.equal(figured(900, ["kl-bits"], {}, text).layout.annotations[0].text, "target 2.58 bits");
  assert.equal(figured(900, [], {}, text).layout.annotations[0].text, "target 1.79 nats");
});

test("on a logarithmic axis annotations stand at the logarithm", () => {
  const { layout } = figured(900, [], { scale: "log" });
  assert.equal(layout.yaxis.type, "log");
  assert.ok(Math.abs(layout.annotations[0].y - Math.log10(NATS_PER_BIT)) < 1e-12);
});

function lived(floor, head, kl) {
  const { window, drawn } = page(["charts.js"]);
  const live = window.dpxCharts.kinds.live(chart("live", { ".dpx-kl": {}, ".dpx-entropy": {} }));
  live.take({ run: "a", restarts: 2, steps: 100, entropy: 2 });
  kl.forEach((value, i) => live.take([i + 1, [value, value + 1], [1, 1], 0]));
  live.take({ floor, head });
  live.draw();
  return drawn.at(-2);
}

test("the labels of floor and head optimum do not lie on each other", () => {
  const low = lived(0.1, 0.12, [9, 5, 1]).layout.annotations; // both at the bottom: one line at the top
  assert.equal(low.length, 1);
  assert.match(low[0].text, /certified floor 0\.10 nats.*head optimum ≈ 0\.12/);
  const [floor, head] = lived(0.1, 6, [9, 8, 7]).layout.annotations; // the floor's to the left of its line, above it
  assert.deepEqual([floor.x, floor.yanchor], [0.01, "bottom"]);
  assert.ok(head.y > floor.y);
  const high = lived(4, 6, [9, 8, 7]).layout.annotations;
  assert.deepEqual([high[0].yanchor, high[1].yanchor], ["top", "bottom"]);
});

test("the best restart is drawn last and in the colour of what is achieved", () => {
  const { data } = lived(0, 0, [3, 2]);
  assert.equal(data.at(-1).name, "restart 1");
  assert.equal(data.at(-1).line.width, 3);
  assert.deepEqual([...data.at(-1).y], [3, 2]);
});
