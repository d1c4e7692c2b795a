"""Recorded passes, through a recorder that needs no card: work done again on the same buffers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dpexplore.models import LanguageModel
from dpexplore.targets import Target, entropy
from dpexplore.tuning import Engine, Run, TuneConfig, tune
from dpexplore.tuning.engine.capture import EAGER_FIRST, CapturedPasses, Outputs


class FakeRecorder:
    """Does the recorded work again into the tensors that it first gave, as a CUDA graph does."""

    def __init__(self, broken: float = 0.0) -> None:
        self.recorded = self.replayed = 0
        self._broken = broken

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        outputs = tuple(output.clone() for output in work())
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            for output, now in zip(outputs, work(), strict=True):
                output.copy_(now + self._broken)

        return replay, outputs


@pytest.fixture(scope="module")
def lm(tiny_lm: Callable[[str], LanguageModel]) -> LanguageModel:
    return tiny_lm("llama")


@pytest.fixture(scope="module")
def target(lm: LanguageModel) -> Target:
    return entropy(bits=3, seed=1).build(lm)


CONFIGS = [
    TuneConfig(length=3, restarts=3, steps=9, patience=3, seed=1),
    TuneConfig(length=3, restarts=2, steps=9, soft_rule="lbfgs", screen=3),
    TuneConfig(length=3, restarts=2, steps=9, objective="js"),
    TuneConfig(method="hard", length=3, restarts=3, steps=9, hard_rule="search", candidates=6, top=20),
]


def recorded_engine(lm: LanguageModel, recorder: FakeRecorder) -> Engine:
    engine = Engine(lm)
    engine.evaluator.passes = CapturedPasses(lm, recorder)
    return engine


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.rules} {config.objective}")
def test_a_recorded_run_is_the_eager_run(lm: LanguageModel, target: Target, config: TuneConfig) -> None:
    recorder = FakeRecorder()
    run, plain = recorded_engine(lm, recorder).submit(target, config), tune(lm, target, config)
    for ours, theirs in zip(run, plain, strict=True):
        assert ours.kl_nats == pytest.approx(theirs.kl_nats, abs=1e-4)
        assert ours.evaluations == theirs.evaluations
    assert recorder.replayed > recorder.recorded > 0
    assert run.status == plain.status
    assert run.result.kl_nats == pytest.approx(plain.result.kl_nats, abs=1e-4)


def test_rows_come_and_go_within_one_recording_and_targets_follow(lm: LanguageModel) -> None:
    """Three to five one-row runs with targets of their own stand in rungs of 4 and 8, with padding in both."""
    recorder = FakeRecorder()
    engine = recorded_engine(lm, recorder)
    problems = [
        (entropy(bits=3, seed=seed).build(lm), TuneConfig(length=3, restarts=1, steps=6 + 4 * seed, patience=None))
        for seed in range(5)
    ]
    runs = engine.submit_many(problems[:3])
    for _ in range(EAGER_FIRST + 2):
        engine.step()
    runs += engine.submit_many(problems[3:])
    while engine.step():
        pass
    assert recorder.recorded >= 2
    for run, problem in zip(runs, problems, strict=True):
        assert isinstance(run, Run)
        alone = list(tune(lm, *problem))
        assert [step.kl_nats[0] for step in run.steps] == pytest.approx([step.kl_nats[0] for step in alone], abs=1e-4)


def test_the_best_prompts_log_q_is_its_own_after_later_replays(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(length=3, restarts=2, steps=8, patience=None)
    run = recorded_engine(lm, FakeRecorder()).submit(target, config)
    for step in run:
        log_q = run.best_log_probs()
        assert log_q is not None
        assert float(-(target.probs * log_q).sum()) - target.entropy_nats == pytest.approx(step.best_kl_nats, abs=1e-4)


@pytest.mark.parametrize("trouble", ["it differs", "it raises"])
def test_what_cannot_be_recorded_runs_eagerly_and_says_so_once(
    lm: LanguageModel, target: Target, trouble: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = FakeRecorder(broken=1.0)
    if trouble == "it raises":
        monkeypatch.setattr(recorder, "record", lambda _work: 1 / 0)
    config = TuneConfig(length=3, restarts=2, steps=8, patience=None)
    engine = recorded_engine(lm, recorder)
    run, other = engine.submit(target, config), engine.submit(target, TuneConfig(length=2, restarts=1, steps=8))
    plain = tune(lm, target, config)
    assert [step.kl_nats for step in run] == [pytest.approx(step.kl_nats, abs=1e-4) for step in plain]
    assert other.result.steps == 8
    assert [record.message.endswith("they run eagerly.") for record in caplog.records] == [True]
