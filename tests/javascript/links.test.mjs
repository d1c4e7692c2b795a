import assert from "node:assert/strict";
import { test } from "node:test";
import { page } from "./page.mjs";

const RUN = "Ab_-5678901234567890xy";

test("an address leads back to the run that is shown, and keeps what else it asks for", () => {
  const { queryOf, isRun } = page(["share.js"]).window.dpxShare;
  assert.equal(queryOf("?d=1abc&hide=examples", RUN), `?hide=examples&run=${RUN}`);
  assert.equal(queryOf(`?run=${RUN}`, RUN), null);
  assert.equal(queryOf("", "capsule 2026-11-27"), null); // an opened file has no address
  assert.ok(!isRun("../../etc/passwd-12345678"));
});

test("a control of the list of runs tells what it is for, and of which run", () => {
  const { told } = page(["runs.js"]).window.dpxRuns;
  const said = (dataset, value) => ({ ...told({ dataset: { run: RUN, ...dataset }, value }) });
  assert.deepEqual(said({ act: "name" }, "flat"), { act: "name", run: RUN, text: "flat" });
  assert.deepEqual(said({ act: "model" }, "gpt2"), { act: "same", run: RUN, how: "model", model: "gpt2" });
  assert.deepEqual(said({ act: "same", how: "hard" }), { act: "same", run: RUN, how: "hard" });
  assert.deepEqual(said({ act: "drop" }), { act: "drop", run: RUN });
});

test("a picture for paper is dark on white and leaves the page's figure as it is", () => {
  const shown = { paper_bgcolor: "rgba(0,0,0,0)", xaxis: { gridcolor: "#333", title: "step" }, yaxis2: {}, legend: { y: 1 } };
  const paper = page(["compare.js"]).window.dpxCompare.onPaper(shown);
  assert.equal(paper.paper_bgcolor, "#fff");
  assert.deepEqual({ ...paper.xaxis }, { gridcolor: "#DDDBD3", title: "step", linecolor: "#1C1C1A", tickcolor: "#1C1C1A", zerolinecolor: "#DDDBD3" });
  assert.equal(paper.yaxis2.linecolor, "#1C1C1A");
  assert.deepEqual({ ...paper.legend }, { y: 1 });
  assert.equal(shown.xaxis.gridcolor, "#333");
});

test("what moves is not read out, and a table stays where its reader has scrolled it", () => {
  const { window } = page(["view.js"]), said = {}, props = { value: "<p data-moving>1</p>" };
  let changed = () => {};
  const root = {
    innerHTML: "", hasAttribute: () => true, setAttribute: (name, value) => (said[name] = value),
    querySelector: () => null,
  };
  window.dpxView({ querySelector: () => root }, props, (_name, call) => (changed = call));
  assert.equal(said["aria-live"], "off");
  assert.equal(root.innerHTML, props.value);
  props.value = "<p>done</p>";
  const kept = [];
  root.querySelector = () => (kept.push({ scrollTop: kept.length ? 0 : 40 }), kept.at(-1));
  changed();
  assert.equal(said["aria-live"], "polite");
  assert.equal(kept[1].scrollTop, 40);
});
