"""Figures and claims, against results that were made up to show them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kaleido.errors import ChromeNotFoundError

from dpexplore.cli import main
from dpexplore.errors import InputError
from dpexplore.experiments import ModelFacts, Store, export, known_specs, load_spec
from dpexplore.experiments.claim import claims_markdown
from dpexplore.experiments.claims import claims_of
from dpexplore.experiments.data import SweepData, read_sweeps
from dpexplore.experiments.drawing import ON_DARK
from dpexplore.experiments.figures import DRAWERS, draw_all, draw_sweep
from dpexplore.experiments.gallery import SHIPPED_FIGURES, figures_in, gallery_of, shipped_gallery
from dpexplore.experiments.readings import FAMILIES
from tests.browser.driver import find_chromium
from tests.made_up_results import fill_store

ALL = tuple(f"{name}-small" for name in known_specs())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return fill_store(tmp_path_factory.mktemp("runs"), *ALL)


@pytest.fixture(scope="module")
def sweeps(store: Store) -> dict[str, SweepData]:
    return {data.figure: data for data in read_sweeps(store)}


# Data


def test_a_target_counts_with_its_best_restart(store: Store, sweeps: dict[str, SweepData]) -> None:
    best: dict[str, float] = defaultdict(lambda: math.inf)
    entropy: dict[str, float] = {}
    listed = {name for listing in store.listings() if listing.sweep == "fig1-small" for name in listing.ids}
    for row in store.read().to_pylist():
        if row["id"] in listed and row["kind"] == "tune" and row["kl_nats"] < best[row["recipe"]]:
            best[row["recipe"]], entropy[row["recipe"]] = row["kl_nats"], row["entropy_nats"] / math.log(2)
    targets = sweeps["fig1"].targets
    assert dict(zip(targets["recipe"], targets["kl_nats"], strict=True)) == pytest.approx(dict(best))
    assert dict(zip(targets["recipe"], targets["achieved_bits"], strict=True)) == pytest.approx(entropy)


def test_floors_serve_every_sweep_of_the_same_target(sweeps: dict[str, SweepData]) -> None:
    """Fig. 5 asks for no floors; those of Fig. 1 are of the same targets."""
    assert sweeps["fig5"].targets["floor_nats"].notna().all()


def test_a_sweep_that_is_under_way_is_drawn_as_far_as_it_is(tmp_path: Path) -> None:
    whole = fill_store(tmp_path / "whole", "fig1-small")
    part = Store(tmp_path / "part")
    rows = [row for row in whole.read().to_pylist() if "seed=0" in row["recipe"]]
    with part.locked():
        part.commit(rows)
        part.write_listing(whole.listings()[0])
    (data,) = read_sweeps(part)
    assert (data.done, data.asked) == (len(rows), whole.read().num_rows)
    assert f"{len(rows)} of {data.asked} problems" in data.coverage
    drawn = list(draw_all(part))
    assert [figure.name for figure in drawn] == ["fig1-small", "fig1-small-floor"]
    assert set(drawn[0].drawn.table["targets"]) == {1}


def test_a_store_in_which_nothing_is_done_has_no_figures(tmp_path: Path) -> None:
    whole, asked = fill_store(tmp_path / "whole", "fig1-small"), Store(tmp_path / "asked")
    with asked.locked():
        asked.write_listing(whole.listings()[0])
    assert list(read_sweeps(asked)) == []
    assert list(draw_all(asked)) == []


# Figures


def test_every_figure_is_drawn_with_its_numbers_and_a_caption(store: Store) -> None:
    drawn = {figure.name: figure for figure in draw_all(store)}
    assert set(drawn) == {f"{name}-small{ending}" for name, endings in DRAWERS.items() for ending in endings}
    for name, figure in drawn.items():
        assert len(figure.drawn.table) > 0, name
        assert figure.drawn.figure.data, name
        assert figure.drawn.caption.startswith(("Fig. ", "Ours.")), name
        assert figure.drawn.figure.layout.meta["dark"] == ON_DARK
        assert "nan" not in figure.drawn.caption
    traces: Any = drawn["fig1-small"].drawn.figure.data
    assert traces[0].name == "certified floor"


def test_the_curve_of_fig_1_is_the_mean_over_targets(sweeps: dict[str, SweepData]) -> None:
    data = sweeps["fig1"]
    (figure,) = [each for each in draw_sweep(data) if each.name == "fig1-small"]
    traces: Any = figure.drawn.figure.data
    (curve,) = [trace for trace in traces if trace.name == "smollm2-135m-instruct"]
    means: dict[float, list[float]] = defaultdict(list)
    for row in data.targets.itertuples():
        means[float(str(row.bits))].append(float(str(row.kl_nats)))
    assert list(curve.x) == sorted(means)
    assert list(curve.y) == pytest.approx([sum(means[bits]) / len(means[bits]) for bits in sorted(means)])


# Claims


def test_results_that_show_the_claims_support_them(sweeps: dict[str, SweepData]) -> None:
    for figure in ("fig1", "fig4", "fig5", "fig7", "fig8", "fig9", "fig11"):
        claims = claims_of(sweeps[figure])
        assert claims
        for claim in claims:
            if "R²" in claim.claim:  # twelve targets cannot show that a correlation is weak
                continue
            assert claim.verdict == "supported", claim.claim
            assert claim.reading, claim.claim
            assert claim.low <= claim.value <= claim.high
            assert f"{claim.value:.2f}" in claim.finding
            json.dumps(claim.to_dict(), allow_nan=False)


def test_results_that_show_the_opposite_do_not(sweeps: dict[str, SweepData]) -> None:
    for figure in ("fig7", "fig8", "fig9"):
        data = sweeps[figure]
        rows = data.rows.copy()
        rows["kl_nats"] = 20 - rows["kl_nats"]
        found = claims_of(dataclasses.replace(data, rows=rows))
        easier = [claim for claim in found if "easier" in claim.claim]
        assert easier
        assert {claim.verdict for claim in easier} == {"not supported"}


def test_a_claim_is_decided_only_where_both_vanilla_families_agree(sweeps: dict[str, SweepData]) -> None:
    data = sweeps["fig9"]
    hard = data.rows.assign(
        kl_nats=data.rows["kl_nats"].where(data.rows["group"] != "vanilla by temperature", data.rows["kl_nats"] / 9)
    )
    old = data.rows[data.rows["group"] != "vanilla by temperature"]  # as stores of before are
    for rows, why in ((hard, "do not agree"), (old, "no data for vanilla by temperature")):
        found = [each for each in claims_of(dataclasses.replace(data, rows=rows)) if "easier" in each.claim]
        assert {claim.verdict for claim in found} == {"undecided"}
        (gradient, *_) = [claim for claim in found if claim.reading == "vanilla by gradient descent"]
        assert gradient.low > 0
        assert why in gradient.note


def test_a_claim_about_hard_prompts_is_decided_only_where_both_epochs_of_eq_4_agree(
    sweeps: dict[str, SweepData],
) -> None:
    data = sweeps["fig4"]
    text = "Soft prompts come closer than hybrid ones, and those closer than hard ones"
    swept = data.rows["epoch"] == "sweep"
    ends = ["; an epoch is one token", "; an epoch is one sweep"]
    found = [each for each in claims_of(data) if each.claim == text]
    assert [(each.verdict, each.reading.removeprefix("vanilla by gradient descent")) for each in found] == [
        ("supported", end) for end in ends
    ]
    assert all("5 soft tokens" in each.note for each in found)  # soft prompts serve both
    hard_wins = data.rows.assign(kl_nats=data.rows["kl_nats"].where(~swept, data.rows["kl_nats"] / 9))
    for rows, why in ((hard_wins, "do not agree"), (data.rows[~swept], "no data for an epoch of one sweep")):
        found = [each for each in claims_of(dataclasses.replace(data, rows=rows)) if each.claim == text]
        assert {each.verdict for each in found} == {"undecided"}
        assert why in found[0].note


def test_each_epoch_of_eq_4_has_a_figure_of_its_own(sweeps: dict[str, SweepData]) -> None:
    data = sweeps["fig8"]
    drawn = {each.name: each for each in draw_sweep(data)}
    for name, epoch in (("fig8-small", "token"), ("fig8-small-sweep", "sweep")):
        own = data.targets[data.targets["epoch"] == epoch]
        assert sorted(drawn[name].drawn.table["kl_nats"]) == pytest.approx(sorted(own["kl_nats"]))
        assert all(claim.reading.endswith(f"an epoch is one {epoch}") for claim in drawn[name].claims)


def test_minima_over_unequal_restarts_are_not_compared(sweeps: dict[str, SweepData]) -> None:
    data = sweeps["fig9"]
    tune = data.rows["kind"] == "tune"
    first = data.rows["restart"] == 0
    few = data.rows[(data.rows["group"] != "vanilla") | first | ~tune]  # one restart of every vanilla target
    found = dataclasses.replace(data, rows=few)
    assert found.restarts_each == 1
    assert (
        found.targets["kl_nats"].tolist()
        == dataclasses.replace(data, rows=data.rows[first | ~tune]).targets["kl_nats"].tolist()
    )
    one_short = data.rows.drop(data.rows.index[tune & ~first & (data.rows["seed"] == 3)][0])
    found = dataclasses.replace(data, rows=one_short)
    assert (found.restarts_each, found.left_out) == (data.restarts_each, 1)
    assert len(found.targets) == len(data.targets) - 1


def test_the_exact_answer_is_decided_where_both_families_agree(sweeps: dict[str, SweepData]) -> None:
    """Made-up direct tokens are at the head's optimum, and the floor 14 % below them."""
    data = sweeps["exact"]
    found = claims_of(data)
    assert len(found) == 3 * len(FAMILIES) * len(data.models)
    verdicts = {claim.claim.partition(" (")[0]: claim.verdict for claim in found}
    assert list(verdicts.values()) == ["supported", "not supported", "supported"]
    rows = data.rows.copy()
    rows.loc[(rows["group"] == "direct") & (rows["family"] == "temperature"), "kl_nats"] += 0.5
    reached = [each for each in claims_of(dataclasses.replace(data, rows=rows)) if "reaches the" in each.claim]
    assert {claim.verdict for claim in reached} == {"undecided"}
    assert [claim.value for claim in reached[:2]] == pytest.approx([0.0, 0.5], abs=0.01)


def test_untrained_sources_decide_nothing(sweeps: dict[str, SweepData]) -> None:
    claims = claims_of(sweeps["fig10"])
    untrained = [claim for claim in claims if "untrained" in claim.note]
    assert {"random:" in claim.claim for claim in untrained} == {True}
    assert {claim.verdict for claim in untrained} == {"undecided"}
    assert all(math.isfinite(claim.value) for claim in claims)
    trained = [claim for claim in claims if claim not in untrained]
    assert {claim.claim.split()[3] for claim in trained} == {"gemma-3-270m"}
    assert {claim.verdict for claim in trained} == {"supported"}


def test_a_model_is_not_among_the_sources_of_its_own_migrated_targets() -> None:
    spec = load_spec("fig10-small")
    assert spec.sources == ("gemma-3-270m", "smollm2-135m-instruct", "random:smollm2-135m-instruct")
    for own, other in (spec.sources[:2], spec.sources[1::-1]):
        groups = tuple(dataclasses.replace(group, models=(own,)) for group in spec.groups)
        facts = ModelFacts(own, "an identity", "float32", 100)
        asked = [labels for _, _, labels in dataclasses.replace(spec, groups=groups).problems(facts)]
        assert {labels["source"] for labels in asked} == {other, "random:smollm2-135m-instruct"}


def test_a_claim_without_data_says_what_it_needs(sweeps: dict[str, SweepData]) -> None:
    (claim,) = [claim for claim in claims_of(sweeps["fig13"]) if "instruction-tuned" in claim.claim]
    assert claim.verdict == "undecided"
    assert "no such pair" in claim.finding


def test_adjectives_against_the_easiest_other_part_of_speech(sweeps: dict[str, SweepData]) -> None:
    claim = claims_of(sweeps["fig13"])[0]
    means = sweeps["fig13"].targets.groupby("tag")["kl_nats"].mean()
    assert claim.value == pytest.approx(means.drop("ADJ").min() - means["ADJ"])
    assert claim.verdict == "supported"


# Files


def test_files_of_every_figure(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["figures", "--store", str(store.folder), "--out", str(tmp_path / "out"), "--formats", "html,json"]) == 0
    )
    told = capsys.readouterr().out
    names = [figure.name for figure in draw_all(store)]
    for name in names:
        assert name in told
        assert len(pd.read_csv(tmp_path / "out" / f"{name}.csv")) > 0
        assert "plotly" in (tmp_path / "out" / f"{name}.html").read_text()
    index = (tmp_path / "out" / "index.html").read_text()
    assert all(f"id='{name}'" in index for name in names)
    claims = pd.read_csv(tmp_path / "out" / "claims.csv")
    assert set(claims["verdict"]) <= {"supported", "not supported", "undecided"}
    table = (tmp_path / "out" / "claims.md").read_text()
    assert [row.split(" | ")[0].removeprefix("| ") for row in table.splitlines()[2:]] == list(claims["claim"])
    shown = figures_in(tmp_path / "out")
    assert [figure.name for figure in shown] == names
    assert shown == gallery_of(store)


@pytest.mark.browser
def test_pictures_are_drawn_by_the_browser_that_is_there(tmp_path: Path) -> None:
    if find_chromium() is None:
        pytest.skip("no Chromium was found; install one or name it in DPEXPLORE_CHROMIUM")
    store = fill_store(tmp_path / "runs", "fig12-small")
    written = export.write_figures(store, tmp_path / "out", ["png", "svg"])
    assert written.note == ""
    assert (tmp_path / "out" / "fig12-small.png").read_bytes().startswith(b"\x89PNG")
    assert "NOUN" in (tmp_path / "out" / "fig12-small.svg").read_text()


def test_without_a_browser_everything_else_is_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ChromeNotFoundError

    monkeypatch.setattr("kaleido.start_sync_server", refuse)
    assert main(["figures", "--store", str(store.folder), "--out", str(tmp_path)]) == 0
    assert "none was found" in capsys.readouterr().err
    assert (tmp_path / "fig1-small.html").is_file()
    assert (tmp_path / "fig1-small.csv").is_file()
    assert not list(tmp_path.glob("*.png"))


def test_what_cannot_be_drawn_is_one_sentence(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results to draw"):
        export.write_figures(Store(tmp_path / "nothing"), tmp_path / "out")
    with pytest.raises(InputError, match="'pdf' is not a figure format"):
        export.write_figures(store, tmp_path / "out", ["pdf"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        export.write_figures(store, tmp_path / "file", ["json"])


def test_the_shipped_figures_are_whole_and_their_claims_stand_in_the_documents() -> None:
    shown = shipped_gallery()
    assert {figure.name.split("-")[0] for figure in shown} >= {"exact", "fig1", "fig3", "fig12"}
    assert all(json.loads(figure.figure)["data"] for figure in shown)
    for folder, page in zip(SHIPPED_FIGURES, ("direct", "gallery", "gallery"), strict=True):
        for figure in figures_in(folder):
            assert (folder / f"{figure.name}.png").is_file()
            assert (folder / f"{figure.name}.csv").is_file()
        document = (folder.parents[1] / "docs" / f"{page}.md").read_text(encoding="utf-8")
        assert f'--8<-- "assets/{folder.name}/claims.md"' in document


def test_the_shipped_claims_are_those_of_the_shipped_results() -> None:
    gallery = SHIPPED_FIGURES[-1]
    found = [claim for data in read_sweeps(Store(gallery / "store")) for claim in claims_of(data)]
    shipped = (gallery / "claims.md").read_text(encoding="utf-8")
    assert sorted(claims_markdown(found).splitlines()) == sorted(shipped.splitlines())  # there in the figures' order
