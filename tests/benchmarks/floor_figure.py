"""The documents' figure: the paper's Fig. 1 for the default model, with its explanation drawn underneath.

    python -m tests.benchmarks.floor_figure            # tunes, then draws assets/floor_over_entropy.png and .csv
    python -m tests.benchmarks.floor_figure --draw     # draws again from the CSV

Soft tuning by the `paper` preset (prefix 5, AdamW 0.1, best of 5 restarts), one vanilla target (Eq. 1) for each
entropy; all targets are tuned together. Drawing needs a Chromium (see tests/browser/driver.py).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright

import dpexplore as dp
from dpexplore.plots import FloorPoint, colour, floor_curve
from tests.browser.driver import chromium_path

ASSETS = Path(__file__).resolve().parents[2] / "assets"
CSV, PNG = ASSETS / "floor_over_entropy.csv", ASSETS / "floor_over_entropy.png"
COLUMNS = ("entropy_bits", "floor_nats", "head_optimum_nats", "soft_nats", "soft_restarts_mean_nats")
BITS = (0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15.4)


def measure(seed: int) -> list[dict[str, float]]:
    """Floor, head optimum and tuned loss at every entropy, in nats."""
    lm = dp.load_model(dp.DEFAULT_MODEL)
    targets = [dp.entropy(bits=bits, seed=seed).build(lm) for bits in BITS]
    floors = dp.softmax_floor(lm, targets)
    engine = dp.Engine(lm)
    runs = [engine.submit(target, dp.TuneConfig.preset("paper", seed=seed)) for target in targets]
    step = 0
    while engine.step():
        step += 1
        if step % 20 == 0:
            print(f"step {step}: {engine.active_rows} rows running", flush=True)
    rows = []
    for target, floor, run in zip(targets, floors, runs, strict=True):
        restarts = [kl for kl in run.result.kl_nats_per_restart if kl is not None]
        values = (target.entropy_bits, floor.lower_bound_nats, floor.head_optimum_nats, run.result.kl_nats)
        rows.append(dict(zip(COLUMNS, (*values, sum(restarts) / len(restarts)), strict=True)))
    return rows


def figure(rows: list[dict[str, float]]) -> go.Figure:
    points = [FloorPoint(row["entropy_bits"], row["floor_nats"], row["head_optimum_nats"]) for row in rows]
    drawn = floor_curve({"certified floor": points})
    drawn.add_scatter(
        x=[row["entropy_bits"] for row in rows],
        y=[row["soft_nats"] for row in rows],
        name="tuned soft prompt, best of 5",
        mode="lines+markers",
        line={"color": colour("achieved"), "width": 2},
    )
    return drawn.update_layout(
        template="none",
        title={"text": "How close SmolLM2-135M-Instruct can come to a vanilla target, by any prompt"},
        yaxis={"title": {"text": "KL(p‖q) (nats)"}},
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"t": 90},
    )


def draw(rows: list[dict[str, float]]) -> None:
    """Render by headless Chromium, which Plotly draws in everywhere else too."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 920, "height": 500}, device_scale_factor=2)
        page.set_content(figure(rows).to_html(include_plotlyjs=True, full_html=True, default_height="480px"))
        page.wait_for_selector(".main-svg")
        page.screenshot(path=PNG)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="draw from the CSV, without tuning")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.draw:
        with CSV.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter[str](file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(measure(options.seed))
    with CSV.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    draw(rows)
    for row in rows:
        share = row["floor_nats"] / row["soft_nats"]
        print(f"{row['entropy_bits']:5.1f} bits: reached {row['soft_nats']:.2f} nats, {share:.0%} of it certified")


if __name__ == "__main__":
    main()
