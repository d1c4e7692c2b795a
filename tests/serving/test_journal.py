"""Runs on disk: what a killed server leaves behind, and how little it may cost."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.journal import Journal, Record, RunFile, new_run_id
from dpexplore.serving.model_pool import ModelPool
from dpexplore.serving.run_view import RunView
from dpexplore.tuning import TuneConfig, restore
from dpexplore.ui.components.run_status import status_line
from dpexplore.ui.components.share_bar import arrive, arrive_by_capsule, arrived_views
from tests.live_server import free_port, start_server

pytestmark = [
    # Gradio's client leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

RECIPE = "entropy(bits=2, seed=0)"
METHODS = {
    "soft": TuneConfig(length=2, restarts=2, steps=5),
    "hard": TuneConfig(method="hard", length=2, restarts=2, steps=5),
    "hybrid": TuneConfig(method="hybrid", slots='"the" soft*1 hard*1', restarts=2, steps=5),
}


@pytest.fixture
def app(tiny_lm: Callable[[str], LanguageModel], tmp_path: Path) -> Iterator[AppContext]:
    lm = tiny_lm("llama")
    context = AppContext(
        pool=ModelPool(lambda _name, progress: lm), model="tiny", journal=Journal(tmp_path / "runs"), grace_seconds=0.1
    )
    context.pool.load("tiny")
    yield context
    context.close()


def finished(app: AppContext, config: TuneConfig) -> tuple[str, RunView]:
    live = app.begin("s", "tiny", RECIPE, config)
    *_, last = app.watch("s", live)
    return live.id, last


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_run_comes_back_as_it_was(app: AppContext, method: str) -> None:
    run_id, shown = finished(app, METHODS[method])
    assert app.sessions.find(run_id) is None
    arrival = arrive(app, {"run": run_id})
    assert arrival.setup is not None
    assert arrival.setup.config == METHODS[method]
    again, *marked = arrived_views(app, "another page", arrival.shows)
    assert shown.result is not None
    assert again.result is not None
    assert again.result.capsule == json.loads(json.dumps(shown.result.capsule))
    assert (again.result.log_probs - shown.result.log_probs).abs().max() < 1e-5
    assert again.result.nearest == shown.result.nearest
    assert again.result.kl_reencoded_nats == shown.result.kl_reencoded_nats
    assert shown.live.startswith(again.live)  # the end is marked after the last line that is journaled
    assert shown.ranks.startswith(again.ranks)
    assert len(again.live.splitlines()) >= 6
    assert status_line(again) == status_line(shown)
    for view in marked:  # the run had ended before its floor was known
        assert view.live.startswith(again.live)
        assert view.result is again.result
    floor = app.floors.start(app.pool.get("tiny").lm, app.target("tiny", RECIPE)).result().lower_bound_nats
    mark = next(line for line in [again, *marked][-1].live.splitlines() if line.startswith('{"floor"'))
    assert json.loads(mark)["floor"] == pytest.approx(floor, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_journal_cut_off_anywhere_gives_what_was_whole(app: AppContext, method: str) -> None:
    run_id, _ = finished(app, METHODS[method])
    path = app.journal.folder / f"{run_id}.run"
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    places = sorted({0, 1, len(data) - 1, *(end - 1 for end in ends), *ends, *(end + 3 for end in ends)})
    for place in places:
        path.write_bytes(data[:place])
        record = app.journal.read(run_id)
        lines = data[:place].count(b"\n")
        if not lines:
            assert record is None
            continue
        assert record is not None
        assert 1 + len(record.moments) + len(record.ranks) + (record.best is not None) <= lines
        view, *_ = arrived_views(app, "s", f"run {run_id}")
        if record.capsule is None and record.best is None:
            assert view.result is None
            assert "press Tune to begin it again" in status_line(view)
        else:
            assert view.result is not None
            assert "Cut off" in status_line(view) or record.capsule is not None
            # What is shown is a prompt of the run, and its KL is that prompt's.
            best = record.best or {}
            expected = record.capsule["result"]["kl_nats"] if record.capsule else best["kl_nats"]
            assert view.result.distances["kl"] == pytest.approx(expected, abs=1e-4)


def test_a_failed_run_says_so_again(app: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    live = app.begin("s", "tiny", RECIPE, TuneConfig(length=2, steps=3))
    live.run.fail(InputError("The memory does not hold a single prompt."))
    *_, last = app.watch("s", live)
    again, *_ = arrived_views(app, "s", f"run {live.id}")
    assert "does not hold" in status_line(last)
    assert status_line(again) == status_line(last)


@pytest.mark.parametrize("run_id", ["", "x", "../../etc/passwd", "a" * 22 + "/", "A" * 22, "é" * 22])
def test_ids_that_no_run_has(app: AppContext, run_id: str) -> None:
    assert app.journal.read(run_id) is None
    if run_id:
        assert "has no run" in arrive(app, {"run": run_id}).problem


def test_ids_cannot_be_guessed() -> None:
    ids = {new_run_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(run_id) for run_id in ids} == {22}


def test_the_disk_use_is_bounded(tmp_path: Path) -> None:
    journal = Journal(tmp_path, most_bytes=20_000)
    kept = []
    for number in range(12):
        kept.append(new_run_id())
        file = journal.open(kept[-1], "tiny", {"number": number})
        assert file is not None
        file.update([], '{"x":"' + "x" * 3000 + '"}\n', None)
        file.end(None, "over")
        os.utime(tmp_path / f"{kept[-1]}.run", (number, number))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 20_000 + 3_500
    assert journal.read(kept[0]) is None
    record = journal.read(kept[-1])
    assert record is not None
    assert record.head == {"number": 11}


def test_replaced_best_prompts_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpexplore.serving.journal.STALE_BYTES", 5_000)
    run_id = new_run_id()
    journal = Journal(tmp_path)
    file = journal.open(run_id, "tiny", {})
    assert file is not None
    for number in range(50):
        file.update([{"floor": number}], "", {"number": number, "weight": "x" * 900})
        record = journal.read(run_id)
        assert record is not None
        assert record.best is not None
        assert record.best["number"] == number
        assert record.moments == [{"floor": i} for i in range(number + 1)]
    assert (tmp_path / f"{run_id}.run").stat().st_size < 9_000
    file.close()


def test_a_failing_disk_costs_the_journal_and_not_the_run(
    app: AppContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpexplore.serving.journal.os.fsync", full)
    _, last = finished(app, METHODS["soft"])
    assert last.result is not None
    assert "No space left" in caplog.text
    monkeypatch.setattr(RunFile, "__init__", lambda *_: full(0))
    _, last = finished(app, METHODS["soft"])
    assert last.result is not None


def test_a_capsule_restores_the_whole_run(app: AppContext, tmp_path: Path) -> None:
    _, shown = finished(app, METHODS["hard"])
    assert shown.result is not None
    capsule = {**shown.result.capsule, "model": {**shown.result.capsule["model"], "name": "tiny"}}
    path = tmp_path / "capsule.json"
    path.write_text(json.dumps(capsule), encoding="utf-8")
    arrival = arrive_by_capsule(app, str(path))
    assert arrival.setup is not None
    assert arrival.setup.config == METHODS["hard"]
    again, *_ = arrived_views(app, "s", arrival.shows)
    assert again.result is not None
    assert again.result.prompt_ids == shown.result.prompt_ids
    steps = [json.loads(line) for line in shown.live.splitlines()]
    redrawn = [json.loads(line) for line in again.live.splitlines()]
    kls = [[row[1] for row in rows if isinstance(row, list)] for rows in (steps, redrawn)]
    assert kls[1] == [pytest.approx(row, rel=1e-4) for row in kls[0]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda capsule: capsule["result"].pop("kl_nats"),
        lambda capsule: capsule["restarts"].clear(),
        lambda capsule: capsule["result"].update(prompt_ids=["x"]),
        lambda capsule: capsule["result"].update(best_restart=99),
        lambda capsule: capsule["result"].update(prompt_ids=[10**9]),
    ],
)
def test_a_damaged_capsule_is_one_sentence(app: AppContext, damage: Callable[[dict], Any]) -> None:
    _, shown = finished(app, METHODS["hard"])
    assert shown.result is not None
    capsule = json.loads(json.dumps(shown.result.capsule))
    damage(capsule)
    with pytest.raises(InputError, match="capsule"):
        restore(app.pool.get("tiny").lm, capsule, app.target("tiny", RECIPE))


def test_what_is_no_capsule_is_one_sentence(app: AppContext, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("", "[]", '{"format": "dpexplore capsule", "format_version": 1}', '{"format": "dpexplore capsule"}'):
        path.write_text(text, encoding="utf-8")
        assert "capsule" in arrive_by_capsule(app, str(path)).problem


# A real server, killed.


def test_sigkill_loses_no_finished_run_and_at_most_a_second_of_a_running_one(
    tiny_folders: Callable[[str], Path], tmp_path: Path, app: AppContext
) -> None:
    port = free_port()
    environment = {"DPEXPLORE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    server = start_server(port, "--model", str(tiny_folders("llama")), environment=environment)
    try:
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        result: Any
        row: Any
        *_, result = client.submit(RECIPE, restarts=2, steps=6, length=2, api_name="/tune")
        endless = client.submit(
            RECIPE, restarts=1, steps=10**6, length=2, settings={"patience": None}, api_name="/tune"
        )
        seen: list[tuple[float, dict[str, Any]]] = []
        for row in endless:
            seen.append((time.monotonic(), row))
            if seen[-1][0] - seen[0][0] > 4:
                break
    finally:
        killed = time.monotonic()
        server.send_signal(signal.SIGKILL)
        server.wait()
    record = Journal(tmp_path / "runs").read(result["run"])
    assert record is not None
    assert record.capsule == result["capsule"]
    cut = Journal(tmp_path / "runs").read(seen[0][1]["run"])
    assert cut is not None
    assert cut.interrupted
    before = [row["step"] for when, row in seen if when < killed - 2.5]  # a second, and the loaded machine's delays
    assert before
    assert [step.step for step in cut.steps] == list(range(1, cut.steps[-1].step + 1))
    assert cut.steps[-1].step >= before[-1]
    capsule = cut.as_capsule()
    assert capsule is not None
    lm = app.pool.get("tiny").lm
    result_again = restore(lm, capsule, app.target("tiny", RECIPE))
    assert result_again.kl_nats == pytest.approx(min(step.kl_nats[0] or 0.0 for step in cut.steps), abs=0.5)
    assert result_again.distances["kl"] == pytest.approx(result_again.kl_nats, abs=1e-3)
    # What comes after it shows both.
    after = AppContext(pool=app.pool, model="tiny", journal=Journal(tmp_path / "runs"))
    for left in (record, cut):
        arrival = arrive(after, {"run": left.run_id})
        assert arrival.setup is not None
        assert arrival.setup.recipe == RECIPE
        app.pool._loaded.setdefault(left.model, app.pool.get("tiny"))
        view, *_ = arrived_views(after, "s", arrival.shows)
        assert view.result is not None
        assert ("Cut off" in status_line(view)) == left.interrupted


def test_an_interrupted_record_holds_every_restart_of_every_step(app: AppContext) -> None:
    """More restarts than the chart shows and more steps than it keeps: the record is the run's, not the chart's."""
    config = TuneConfig(length=1, restarts=30, steps=40, screen=1, patience=None)
    live = app.begin("s", "tiny", RECIPE, config)
    *_, last = app.watch("s", live)
    assert last.result is not None
    path = app.journal.folder / f"{live.id}.run"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if not line.startswith(b"end ")))
    record = app.journal.read(live.id)
    assert record is not None
    assert record.interrupted
    assert [step.kl_nats for step in record.steps] == [step.kl_nats for step in live.run.steps]
    capsule = record.as_capsule()
    assert capsule is not None
    history, whole = capsule["history"], last.result.capsule["history"]
    assert history["kl_nats"] == [pytest.approx(row, rel=1e-5) for row in whole["kl_nats"]]
    assert history["entropy_nats"] == [pytest.approx(row, rel=1e-5) for row in whole["entropy_nats"]]
    assert capsule["result"]["kl_nats_per_restart"] == [
        pytest.approx(min(kl for row in whole["kl_nats"] if (kl := row[i]) is not None), rel=1e-5) for i in range(30)
    ]


def test_an_old_journal_opens_and_gives_no_restart_another_ones_numbers(tmp_path: Path) -> None:
    run_id, shown = new_run_id(), 24
    head = {
        "config": {"restarts": 30, "steps": 9},
        "target": {"entropy_nats": 1.0},
        "model": {"dtype": "float32"},
    }
    best = {"restart": 27, "kl_nats": 0.5, "embeds": None, "ids": [1], "steps": 3, "evaluations": 3, "seconds": 1.0}
    rows = [[step, [float(i) for i in range(shown)], [0.0] * shown, 23] for step in (1, 3)]
    lines = [
        "run " + json.dumps({"model": "tiny", "capsule": head}),
        'live {"run":"x"}',
        *("live " + json.dumps(row) for row in rows),
        'live {"floor":0.25,"head":0.5}',
        "best " + json.dumps(best),
    ]
    (tmp_path / f"{run_id}.run").write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = Journal(tmp_path).read(run_id)
    assert record is not None
    assert record.floor_nats == 0.25
    capsule = record.as_capsule()
    assert capsule is not None
    assert [row[5] for row in capsule["history"]["kl_nats"]] == [5.0, None, 5.0]
    assert all(row[23:] == [None] * 7 for row in capsule["history"]["kl_nats"])


def test_a_record_without_a_beginning_is_none(tmp_path: Path) -> None:
    run_id = new_run_id()
    (tmp_path / f"{run_id}.run").write_text("live [1]\nbest {}\n", encoding="utf-8")
    assert Journal(tmp_path).read(run_id) is None
    assert Record(run_id, "m", {}).interrupted
