"""Who gets rows, and what a run reads of its rows: pure parts of the engine."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target, entropy
from dpexplore.tuning import Engine, Run, TuneConfig, tune
from dpexplore.tuning.engine.fairness import Owner
from dpexplore.tuning.engine.log import STEPS_PER_CHUNK, WIDTH, StepLog
from dpexplore.tuning.engine.scheduler import Claim, allocate, queue_positions

OWNERS = [Owner("a", "x", 2), Owner("b", "x", 2), Owner("c", "x", 2), Owner("d", "y", 2)]
CLAIMS = st.lists(
    st.builds(Claim, st.sampled_from(OWNERS), st.sampled_from([3, 5]), st.integers(0, 9), st.integers(0, 9)),
    max_size=12,
)


@given(CLAIMS, st.integers(0, 60), st.integers(1, 30))
def test_rows_are_allocated_within_what_fits_and_what_is_wanted(claims: list[Claim], room: int, fits: int) -> None:
    given_rows = allocate(claims, room, lambda _kind: fits)
    assert all(0 <= rows <= claim.wanted for rows, claim in zip(given_rows, claims, strict=True))
    assert sum(given_rows) <= room
    for kind in (3, 5):
        places = [i for i, claim in enumerate(claims) if claim.kind == kind]
        active = sum(claims[i].active for i in places)
        owners = {claims[i].owner for i in places if claims[i].wanted}
        assert sum(given_rows[i] for i in places) <= (fits if len(owners) > 1 else max(fits, active))
        for owner in OWNERS:  # in order of arrival: nobody gets a row before an earlier run has all of its own
            mine = [i for i in places if claims[i].owner == owner]
            short = [i for i in mine if given_rows[i] < claims[i].wanted]
            assert all(given_rows[i] == 0 for i in mine if short and i > short[0])


@given(CLAIMS)
def test_the_queue_is_what_dealing_one_row_at_a_time_gives(claims: list[Claim]) -> None:
    """Independently: row after row goes to the group with fewest for its weight, there to the owner with fewest."""
    owners = list(dict.fromkeys(claim.owner for claim in claims))
    held = {owner: sum(claim.active for claim in claims if claim.owner == owner) for owner in owners}
    lines = {owner: [i for i, c in enumerate(claims) if c.owner == owner for _ in range(c.waiting)] for owner in owners}
    groups, first = list(dict.fromkeys(owner.group for owner in owners)), dict[int, int]()

    def level(group: str) -> tuple[Fraction, int]:
        own = [owner for owner in owners if owner.group == group]
        return Fraction(sum(held[owner] for owner in own), min(len(own), 2)), groups.index(group)

    for place in range(1, 1 + sum(map(len, lines.values()))):
        owner = min((o for o in owners if lines[o]), key=lambda o: (level(o.group), held[o], owners.index(o)))
        first.setdefault(lines[owner].pop(0), place)
        held[owner] += 1
    positions = queue_positions(claims)
    for i, place in first.items():
        assert positions[i] == place


def test_a_view_reads_every_step_of_its_rows_and_nothing_of_others() -> None:
    log = StepLog()
    early, rng = log.claim(3), np.random.default_rng(0)
    whole, parts = log.view(early[[2, 0]]), []
    written = rng.random((3 * STEPS_PER_CHUNK, 3, WIDTH), dtype=np.float32)
    late = None
    for step, numbers in enumerate(written):
        if step == 70:
            late = log.claim(9)  # more than there was room for
            tail = log.view(late[:1])
        log.append(early, numbers)
        if step % 50 == 0:
            parts.append(whole.take())
    parts.append(whole.take())
    assert np.array_equal(np.concatenate(parts), written[:, [2, 0]])
    assert late is not None
    assert not set(early.tolist()) & set(late.tolist())
    assert np.isnan(tail.take()).all()
    assert whole.take().shape == (0, 2, WIDTH)


@pytest.fixture(scope="module")
def lm(tiny_lm: Callable[[str], LanguageModel]) -> LanguageModel:
    return tiny_lm("llama")


def test_many_runs_submitted_at_once_are_the_runs_alone(lm: LanguageModel) -> None:
    target = entropy(bits=3, seed=1).build(lm)
    problems = [(target, TuneConfig(length=3, restarts=1, steps=4, seed=seed)) for seed in range(4)]
    other = Target(target.probs[:10] / target.probs[:10].sum(), "ten")
    runs = (engine := Engine(lm)).submit_many([*problems[:2], (other, TuneConfig()), *problems[2:]])
    while engine.step():
        pass
    assert isinstance(runs.pop(2), InputError)
    for run, problem in zip(runs, problems, strict=True):
        assert isinstance(run, Run)
        assert run.result.kl_nats == pytest.approx(tune(lm, *problem).result.kl_nats, abs=1e-5)
