"""Sweeps for real, on tiny models: what is computed, and that nothing is lost or doubled however they are ended."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import dpexplore as dp
from dpexplore.cli import main
from dpexplore.experiments import Problem, Spec, Store, load_spec, plan_sweep, run_sweep, worker
from dpexplore.experiments.executors import LocalExecutor
from dpexplore.models import LanguageModel
from dpexplore.tuning import Engine, TuneConfig
from tests.made_up_results import fill_store

FIRST_TOLERANCE = 1e-5
"""Between the first KL of one batch and the same of another: float32 rounding."""
TOLERANCE = 1e-4
"""Nats between a result of one batch and the same result of another: AdamW amplifies the rounding of a batch."""
FLOOR_TOLERANCE = 1e-3
"""Nats between two certified floors of one target: each is this close to the best one, in whatever batch."""
STEPS = 12


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory: pytest.TempPathFactory, tiny_folders: Callable[[str], Path]) -> Path:
    return write_spec(tmp_path_factory.mktemp("spec"), [str(tiny_folders("llama"))])


def write_spec(folder: Path, models: list[str], **changes: Any) -> Path:
    """Soft, hybrid and hard problems, floors and shapes."""
    over = {"seed": {"count": 2}, "bits": [1, 4, 7]}
    size = {
        "models": models,
        "restarts": 2,
        "tune": {"method": "soft", "length": 3, "steps": STEPS},
        "kinds": ["tune", "floor"],
        "groups": {
            "vanilla": {"recipe": "entropy(bits=$bits, seed=$seed)", "over": over},
            "generated": {"recipe": "random_prompt(length=4, seed=$seed)", "over": {"seed": {"count": 2}}},
            "hybrid": {"recipe": "entropy(bits=4, seed=0)", "tune": {"method": "hybrid", "slots": "soft*1 hard*2"}},
            "shape": {"recipe": 'capture("the sea")', "kinds": ["shape"]},
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps({"title": "tiny", "figure": "fig1", "sizes": {"small": size | changes}}))
    return path


def sweep(spec: Spec, folder: Path, rows: int = 64, **how: Any) -> Any:
    return run_sweep(spec, Store(folder), LocalExecutor("cpu", rows), **how)


@pytest.fixture(scope="module")
def undisturbed(spec_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Id -> row of a sweep that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    report = sweep(load_spec(str(spec_file)), folder)
    assert (report.failed, report.done) == ([], report.total)
    return by_id(folder)


def by_id(folder: Path) -> dict[str, dict[str, Any]]:
    rows = Store(folder).read().to_pylist()
    return {row["id"]: row for row in rows}


def assert_the_same(folder: Path, expected: dict[str, dict[str, Any]]) -> None:
    """Every problem is there exactly once, with the numbers of an undisturbed sweep."""
    stored = [
        name for path in sorted(folder.glob("results/*.parquet")) for name in pq.read_table(path)["id"].to_pylist()
    ]
    assert sorted(stored) == sorted(expected)
    for name, row in by_id(folder).items():
        for column in ("kl_nats", "entropy_nats", "first_kl_nats", "floor_nats", "target_entropy_nats"):
            if expected[name][column] is not None:
                near = {"floor_nats": FLOOR_TOLERANCE, "first_kl_nats": FIRST_TOLERANCE}.get(column, TOLERANCE)
                assert row[column] == pytest.approx(expected[name][column], abs=near), (column, row["recipe"])
        for column in ("kind", "recipe", "restart", "settings", "steps", "prompt_ids", "names"):
            assert row[column] == expected[name][column]


def test_results_are_those_of_tuning_each_alone(
    undisturbed: dict[str, dict[str, Any]], tiny_lm: Callable[[str], LanguageModel]
) -> None:
    lm = tiny_lm("llama")
    tuned = [row for row in undisturbed.values() if row["kind"] == "tune"]
    assert len(tuned) == 2 * (2 * 3 + 2 + 1)
    for row in tuned:
        config = TuneConfig.from_dict({"restarts": 1, **json.loads(row["settings"])})
        target = dp.parse_recipe(row["recipe"]).build(lm)
        run = dp.tune(lm, target, config)
        assert run.result.kl_nats == pytest.approx(row["kl_nats"], abs=1e-4)
        assert run.result.entropy_nats == pytest.approx(row["entropy_nats"], abs=1e-3)
        assert target.entropy_nats == pytest.approx(row["target_entropy_nats"], abs=1e-9)
    assert all(row["prompt_ids"] is None for row in tuned)  # all hold soft tokens, which have no ids


def test_floors_lie_below_every_loss_of_their_target(undisturbed: dict[str, dict[str, Any]]) -> None:
    floors = {row["recipe"]: row["floor_nats"] for row in undisturbed.values() if row["kind"] == "floor"}
    losses = [row for row in undisturbed.values() if row["kind"] == "tune"]
    assert {row["recipe"] for row in losses} <= set(floors)
    for row in losses:
        assert floors[row["recipe"]] <= row["kl_nats"] + 1e-6


def test_a_shape_is_the_targets_probabilities_by_rank(
    undisturbed: dict[str, dict[str, Any]], tiny_lm: Callable[[str], LanguageModel]
) -> None:
    (row,) = [row for row in undisturbed.values() if row["kind"] == "shape"]
    lm = tiny_lm("llama")
    probs = lm.log_probs_of_ids(torch.tensor([lm.encode("the sea")]))[0].exp().sort(descending=True).values
    ranks = [int(name) for name in row["names"]]
    assert ranks[0] == 1
    assert ranks[-1] == lm.vocab_size
    assert row["values"] == pytest.approx([float(probs[rank - 1]) for rank in ranks], abs=1e-6)


def test_the_size_of_the_batch_changes_nothing(
    spec_file: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]]
) -> None:
    sweep(load_spec(str(spec_file)), tmp_path, 5)
    assert_the_same(tmp_path, undisturbed)


def test_two_shards_of_a_worker_share_its_batch(
    tiny_folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one's problems fill the places that the first one's leave: nobody waits for the straggler."""
    monkeypatch.setattr(worker, "TELL_SECONDS", 0.0)
    steps: list[int] = []
    monkeypatch.setattr(Engine, "step", lambda engine, step=Engine.step: step(engine) and steps.append(len(steps)))
    hand = worker.Worker(str(tiny_folders("llama")), "cpu", max_rows=3)
    facts = hand.facts()

    def problems(*lengths: int) -> list[Problem]:
        return [
            Problem.tune(facts, f"entropy(bits=2, seed={seed})", TuneConfig(length=3, steps=length, patience=None), 0)
            for seed, length in enumerate(lengths)
        ]

    straggling, short = problems(60, 10, 10), problems(5, 6, 7, 8, 9)
    events = chain.from_iterable(zip_longest(hand.run(straggling), hand.run(short)))
    rows = [row for event in events if isinstance(event, worker.Results) for row in event.rows]
    assert {row["id"]: row["steps"] for row in rows} == {each.id: each.config.steps for each in straggling + short}
    assert len(steps) == 60


def test_stopped_and_continued_everything_is_there_once(
    spec_file: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time after one batch of four problems, with the next one half way."""
    monkeypatch.setattr(worker, "FLUSH_SECONDS", 0.0)
    for _ in range(3):
        asked = iter(range(10**6))
        report = sweep(load_spec(str(spec_file)), tmp_path, 4, stop=lambda: next(asked) > STEPS + STEPS // 2)  # noqa: B023
        assert report.stopped
        assert report.computed < report.total - report.before
    report = sweep(load_spec(str(spec_file)), tmp_path)
    assert report.before > 0
    assert report.done == report.total
    assert_the_same(tmp_path, undisturbed)
    again = sweep(load_spec(str(spec_file)), tmp_path)
    assert again.computed_in_all == 0


def test_a_damaged_shard_is_reported_and_done_again(
    spec_file: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]]
) -> None:
    sweep(load_spec(str(spec_file)), tmp_path)
    shard = next(tmp_path.glob("results/*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-40])
    report = sweep(load_spec(str(spec_file)), tmp_path)
    assert [Path(path).parent.name for path in report.set_aside] == ["corrupt"]
    assert_the_same(tmp_path, undisturbed)


def test_a_problem_that_cannot_be_does_not_stop_the_others(
    tmp_path: Path, tiny_folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    groups = {
        "vanilla": {"recipe": "entropy(bits=$bits, seed=0)", "over": {"bits": [2, 60]}},
        "long": {"recipe": "entropy(bits=2, seed=1)", "tune": {"length": 9999}},
    }
    path = write_spec(tmp_path, ["./nothing-here", str(tiny_folders("llama"))], groups=groups, restarts=1)
    code = main(["sweep", str(path), "--store", str(tmp_path / "runs"), "--device", "cpu", "--json"])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 1
    failed = [event["why"] for event in events if event["event"] == "failed"]
    assert any("nothing-here" in why for why in failed)
    assert any("60 was asked for" in why for why in failed)
    assert any("9,999 tokens" in why or "10,000 tokens" in why for why in failed)
    assert events[-1]["event"] == "end"
    done = Store(tmp_path / "runs").read().to_pylist()
    assert sorted((row["kind"], row["recipe"]) for row in done) == [
        ("floor", "entropy(bits=2, seed=0)"),
        ("floor", "entropy(bits=2, seed=1)"),
        ("tune", "entropy(bits=2, seed=0)"),
    ]
    assert json.loads((tmp_path / "runs" / "failed-tiny-small.json").read_text()) == failed


def test_an_error_within_the_program_loses_nothing_that_is_finished(
    spec_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(worker, "softmax_floor", broken)
    spec = load_spec(str(spec_file))
    at_work = worker.Worker(spec.models[0], "cpu")
    problems = [problem for problem, _, _ in spec.problems(at_work.facts())]
    rows: list[dict[str, Any]] = []

    def work() -> None:
        for event in at_work.run(problems):
            if isinstance(event, worker.Results):
                rows.extend(event.rows)

    with pytest.raises(RuntimeError, match="broken"):
        work()
    assert {row["id"] for row in rows} == {problem.id for problem in problems if problem.kind != "floor"}


def test_a_model_without_floor_says_so_in_its_results(tmp_path: Path, tiny_folders: Callable[[str], Path]) -> None:
    groups = {"vanilla": {"recipe": "entropy(bits=2, seed=0)"}}
    path = write_spec(tmp_path, [str(tiny_folders("gemma2"))], groups=groups, kinds=["floor"])
    report = sweep(load_spec(str(path)), tmp_path / "runs")
    assert report.failed == []
    (row,) = Store(tmp_path / "runs").read().to_pylist()
    assert (row["reason"], row["floor_nats"]) == ("no_head", None)


def test_the_plan_counts_without_computing(
    spec_file: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (plan,) = plan_sweep(load_spec(str(spec_file)), tmp_path)
    assert (plan.problems, plan.done) == (len(undisturbed), 0)
    assert plan.row_steps == STEPS * sum(row["kind"] == "tune" for row in undisturbed.values())
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert plan.memory_bytes is not None
    assert main(["sweep", str(spec_file), "--store", str(tmp_path / "none"), "--dry-run"]) == 0
    assert f"{len(undisturbed):,} problems (0 done)" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_the_plan_of_a_changed_spec_counts_what_both_have_in_common(tmp_path: Path) -> None:
    fill_store(tmp_path, "fig11-small")
    spec = load_spec("fig11-small")
    (plan,) = plan_sweep(spec, tmp_path)
    assert plan.done == plan.problems
    over = {**spec.groups[0].over, "seed": {"count": 10}}
    (wider,) = plan_sweep(replace(spec, groups=(replace(spec.groups[0], over=over),)), tmp_path)
    assert (wider.problems, wider.done) == (2 * plan.problems, plan.done)


def test_progress_adds_up(spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(worker, "TELL_SECONDS", 0.0)
    told: list[tuple[int, float, float | None]] = []
    report = sweep(
        load_spec(str(spec_file)), tmp_path, 4, tell=lambda r: told.append((r.done, r.doing, r.seconds_left))
    )
    counts = [done for done, _, _ in told]
    assert counts == sorted(counts)
    assert counts[-1] == report.total
    assert any(doing > 0 for _, doing, _ in told)
    assert told[-1][2] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("options", "word"),
    [(["--executor", "slurm"], "slurm"), (["--rows", "0"], "rows"), (["--workers", "2"], "--executor ray")],
)
def test_bad_options_end_with_two_and_a_sentence(
    spec_file: Path, tmp_path: Path, options: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(spec_file), "--store", str(tmp_path), *options]) == 2
    complaint = capsys.readouterr().err.strip()
    assert word in complaint
    assert "\n" not in complaint


@contextmanager
def driver(spec: Path, store: Path) -> Iterator[subprocess.Popen[str]]:
    """The command line at work, in a process of its own."""
    command = [sys.executable, "-m", "tests.sweep_driver", str(spec), str(store)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_driver_killed_at_random_moments_loses_nothing(
    spec_file: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]]
) -> None:
    """SIGKILL, some time after a result has been committed; meanwhile a second driver is refused."""
    chance = random.Random(0)
    for round_number in range(2):
        before = len(list(tmp_path.glob("results/*.parquet")))
        with driver(spec_file, tmp_path) as process:
            while process.poll() is None and len(list(tmp_path.glob("results/*.parquet"))) <= before:
                time.sleep(0.02)
            if round_number == 0 and process.poll() is None:
                process.send_signal(signal.SIGSTOP)  # it cannot end while the second one asks
                assert main(["sweep", str(spec_file), "--store", str(tmp_path)]) == 2
                process.send_signal(signal.SIGCONT)
            time.sleep(chance.random())
            process.kill()
    done = Store(tmp_path).done()
    assert done
    assert done <= set(undisturbed)
    sweep(load_spec(str(spec_file)), tmp_path)
    assert_the_same(tmp_path, undisturbed)


def test_ctrl_c_ends_in_order_and_the_same_command_continues(
    spec_file: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]]
) -> None:
    with driver(spec_file, tmp_path) as process:
        while process.poll() is None and not list(tmp_path.glob("results/*.parquet")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    events = [json.loads(line) for line in out.splitlines()]
    assert (process.returncode, events[-1]["stopped"]) in ((130, True), (0, False))
    assert len(Store(tmp_path).done()) == events[-1]["computed"]
    sweep(load_spec(str(spec_file)), tmp_path)
    assert_the_same(tmp_path, undisturbed)
