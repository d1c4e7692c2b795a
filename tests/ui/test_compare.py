"""Runs side by side: the numbers are the capsules', the files say the same, the browser's list may be anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.plots import NATS_PER_BIT
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.journal import Journal, new_run_id
from dpexplore.serving.model_pool import ModelPool
from dpexplore.tuning import TuneConfig
from dpexplore.ui.components.compare_runs import (
    KeptRun,
    curve_table,
    differences,
    entropy_figure,
    grouped,
    kl_figure,
    label,
    letter,
    summary_table,
    write_tables,
)
from dpexplore.ui.components.kept_runs import MOST_RUNS, Choice, Library
from dpexplore.ui.tabs.compare import EMPTY, compare_table, compared

METHODS = {
    "soft": TuneConfig(length=2, restarts=2, steps=6),
    "hard": TuneConfig(method="hard", length=2, restarts=3, steps=4),
    "hybrid": TuneConfig(method="hybrid", slots="soft*1 hard*1", restarts=1, steps=5),
}


@pytest.fixture(scope="module")
def app(tiny_lm: Callable[[str], LanguageModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppContext]:
    lm = tiny_lm("llama")
    folder = tmp_path_factory.mktemp("runs")
    context = AppContext(pool=ModelPool(lambda _name, progress: lm), model="tiny", journal=Journal(folder))
    context.pool.load("tiny")
    yield context
    context.close()


@pytest.fixture(scope="module")
def capsules(app: AppContext) -> dict[str, dict[str, Any]]:
    """Run id -> capsule of a finished run, one for each method, in one session."""
    found = {}
    for config in METHODS.values():
        live = app.begin("s", "tiny", "entropy(bits=3, seed=0)", config)
        *_, last = app.watch("s", live)
        assert last.result is not None
        found[live.id] = last.result.capsule
    return found


def test_a_sessions_finished_runs_are_kept_and_nobody_elses(app: AppContext, capsules: dict) -> None:
    assert app.sessions.finished("s") == list(capsules)
    assert app.sessions.finished("somebody else") == []


def test_capsules_from_elsewhere_never_push_out_runs_and_take_their_room_once(
    app: AppContext, capsules: dict, tmp_path: Path
) -> None:
    capsule = next(iter(capsules.values()))
    size = len(json.dumps(capsule))
    journal = Journal(tmp_path / "runs", most_bytes=2 * size, most_imported_bytes=6 * size)
    run_id = new_run_id()
    file = journal.open(run_id, "tiny", {})
    assert file is not None
    file.end(capsule, None)
    hers = journal.add({**capsule, "created": "hers"}, "2.2.2.2")
    assert {journal.add(capsule, "1.1.1.1") for _ in range(20)} == {journal.add(capsule, "1.1.1.1")}
    for number in range(20):
        journal.add({**capsule, "created": str(number)}, "1.1.1.1")
    kept = sum(path.stat().st_size for path in (tmp_path / "runs").iterdir())
    assert kept < 7 * size
    for each in (run_id, hers):
        record = journal.read(each)
        assert record is not None
        assert record.capsule is not None


def test_runs_are_told_apart_by_what_differs(app: AppContext, capsules: dict) -> None:
    soft, hard, hybrid = Library(app).runs(list(capsules))
    again = replace(soft, run_id="x")
    for other, what, labels in (
        (hard, ["slots", "restarts"], ("soft*2 · 2 restarts", "hard*2 · 3 restarts")),
        (replace(soft, recipe="entropy(bits=5)"), ["target"], (soft.recipe, "entropy(bits=5)")),
        (replace(soft, model="gpt2"), ["model"], (soft.model, "gpt2")),
        (again, [], ("soft*2", "soft*2")),
    ):
        assert differences([soft, other]) == what
        assert tuple(label(run, [soft, other]) for run in (soft, other)) == labels
    figure: Any = kl_figure([soft, hard, again], [0, 2])
    names = [trace.name for trace in figure.data]
    assert names == ["A  soft*2", "C  soft*2"]  # only what is shown counts
    assert "differ in slots and restarts" in compare_table([soft, hard, hybrid], frozenset())
    assert "the same target, model, slots" in compare_table([soft, again], frozenset())
    assert "differ" not in compare_table([soft], frozenset())


def test_runs_are_grouped_by_what_some_of_them_share(app: AppContext, capsules: dict) -> None:
    soft, hard, hybrid = Library(app).runs(list(capsules))
    elsewhere, further = (replace(run, recipe="entropy(bits=5)") for run in (hard, soft))
    runs = [soft, elsewhere, hybrid, further]
    assert grouped(runs) == [(f"target {soft.recipe}", [0, 2]), ("target entropy(bits=5)", [1, 3])]
    assert grouped(runs[:3]) == [("", [0, 1, 2])]  # a heading for every run says nothing
    table = compare_table(runs, frozenset())
    assert [table.index(f"Show run {name}'") for name in "ACBD"] == sorted(
        table.index(f"Show run {name}'") for name in "ABCD"
    )
    assert table.count("dpx-group") == 2


def test_a_run_that_still_moves_is_not_dropped_from_the_browsers_list(app: AppContext, tmp_path: Path) -> None:
    live = app.begin("mover", "tiny", "entropy(bits=3, seed=0)", TuneConfig(length=2, steps=100_000, patience=None))
    stored, *_ = compared(Library(app), Choice((live.id, "A" * 22)), "step", tmp_path)
    assert stored["runs"] == [live.id]
    live.cancel()


def test_the_tables_are_the_capsules(app: AppContext, capsules: dict, tmp_path: Path) -> None:
    runs = Library(app).runs(list(capsules))
    table = summary_table(runs)
    assert list(table["run"]) == ["A", "B", "C"]
    for (_, row), capsule in zip(table.iterrows(), capsules.values(), strict=True):
        assert row["kl_nats"] == capsule["result"]["kl_nats"]
        assert row["method"] == capsule["config"]["method"]
        assert row["evaluations"] == capsule["result"]["evaluations"]
        restarts = capsule["result"]["kl_nats_per_restart"]
        assert row["kl_mean_nats"] == pytest.approx(sum(restarts) / len(restarts))
        assert pd.isna(row["kl_reencoded_nats"]) == (capsule["result"]["kl_reencoded_nats"] is None)
    curves = curve_table(runs)
    for run_id, capsule in capsules.items():
        own: Any = curves[curves["run_id"] == run_id]
        cells = [kl for row in capsule["history"]["kl_nats"] for kl in row if kl is not None]
        assert sorted(own["kl_nats"]) == sorted(cells)
        first: Any = own[(own["step"] == 1) & (own["restart"] == 1)].iloc[0]
        assert first["entropy_bits"] == pytest.approx(capsule["history"]["entropy_nats"][0][0] / NATS_PER_BIT)
    files = write_tables(runs, tmp_path)
    for name, expected in (("runs", table), ("curves", curves)):
        pd.testing.assert_frame_equal(pd.read_parquet(files[f"{name} parquet"]), expected, check_dtype=False)
        pd.testing.assert_frame_equal(pd.read_csv(files[f"{name} csv"]), expected, check_dtype=False)


def test_the_curves_are_the_best_so_far(app: AppContext, capsules: dict) -> None:
    runs = Library(app).runs(list(capsules))
    for run, capsule in zip(runs, capsules.values(), strict=True):
        kls, entropies = run.best_so_far()
        assert kls == sorted(kls, reverse=True)  # type: ignore[type-var]
        assert kls[-1] == pytest.approx(
            min(kl for row in capsule["history"]["kl_nats"] for kl in row if kl is not None)
        )
        assert entropies[-1] == pytest.approx(capsule["result"]["entropy_nats"], rel=1e-3)
        assert run.axis("step") == list(range(1, len(kls) + 1))
        assert run.axis("evaluations")[-1] == pytest.approx(run.evaluations * len(kls) / run.steps)
    figure: Any = kl_figure(runs, [0, 2])
    assert [trace.name[0] for trace in figure.data] == ["A", "C"]
    assert len({(trace.line.color, trace.line.dash) for trace in figure.data}) == 2
    entropies_figure: Any = entropy_figure(runs, [1])
    assert entropies_figure.data[0].y[-1] == runs[1].best_so_far()[1][-1]
    for figure, kind in ((kl_figure(runs, [0]), "kl"), (entropies_figure, "h")):
        assert json.loads(str(figure.to_json()))["layout"]["meta"]["measures"] == [["y", kind, "nats"]]


def test_ticking_and_taking_off(app: AppContext, capsules: dict, tmp_path: Path) -> None:
    library, ids = Library(app), list(capsules)
    choice = Choice().with_runs(ids).changed({"toggle": ids[0]})
    stored, table, kl, _, note, *files = compared(library, choice, "step", tmp_path)
    assert table.count("<tr>") == 4
    assert table.count(" checked>") == 2
    assert len(json.loads(kl)["data"]) == 2
    assert note == ""
    assert all(Path(file["value"]).exists() for file in files)
    again = Choice.read(json.loads(json.dumps(stored)))
    assert again == choice
    assert again.changed({"toggle": ids[0]}).hidden == frozenset()
    assert again.changed({"drop": ids[1]}).run_ids == (ids[0], ids[2])


def test_nothing_to_compare_says_what_to_do(app: AppContext, tmp_path: Path) -> None:
    stored, table, kl, entropy, _, *files = compared(Library(app), Choice(("A" * 22, "..")), "step", tmp_path)
    assert table == EMPTY
    assert (kl, entropy) == ("", "")
    assert stored == {"runs": [], "hidden": []}
    assert not any(file["interactive"] for file in files)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_the_browsers_list_may_be_anything(stored: Any) -> None:
    for value in (stored, {"runs": stored, "hidden": stored}):
        choice = Choice.read(value)
        assert len(choice.run_ids) <= MOST_RUNS
        assert Choice.read(choice.stored()).run_ids == choice.run_ids


def test_a_capsule_is_added_and_a_damaged_one_is_not(app: AppContext, capsules: dict, tmp_path: Path) -> None:
    library, capsule = Library(app), next(iter(capsules.values()))
    path = tmp_path / "capsule.json"
    path.write_text(json.dumps(capsule), encoding="utf-8")
    run_id = library.add_capsule(path)
    for reader in (library, Library(app)):  # the second one reads it from the disk
        (run,) = reader.runs([run_id])
        assert run.kl_nats == capsule["result"]["kl_nats"]
    broken = json.loads(json.dumps(capsule))
    del broken["history"]
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        library.add_capsule(path)


def test_whatever_a_capsule_says_is_escaped(app: AppContext, capsules: dict) -> None:
    evil = "'\"><img src=x onerror=alert(1)>"
    capsule = json.loads(json.dumps(next(iter(capsules.values()))))
    capsule["target"]["recipe"] = capsule["model"]["name"] = capsule["config"]["method"] = evil
    capsule["result"]["slots"] = evil
    run = KeptRun.of("A" * 22, capsule)
    assert "<img" not in compare_table([run], frozenset())
    assert "<img" not in str(kl_figure([run], [0]).to_json())


def test_letters() -> None:
    assert [letter(place) for place in (0, 25, 26, 51, 52)] == ["A", "Z", "AA", "AZ", "BA"]
