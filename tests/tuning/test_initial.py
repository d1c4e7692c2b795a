"""Where restarts begin: random tokens, Gaussian vectors, a text, the best of several."""

from __future__ import annotations

import pytest
import torch

from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning import (
    TuneConfig,
    tune,
)
from dpexplore.tuning.init.layout import NO_TOKEN, Layout, initial_prompt


def test_initial_prompts_are_ordinary_tokens_and_seeded(lm: LanguageModel) -> None:
    config = TuneConfig(method="hybrid", slots='"I love" hard*20 soft*20', seed=1)
    layout = Layout.of(lm, config)
    before = torch.random.get_rng_state()
    ids, embeds = initial_prompt(lm, layout, config, restart=0)
    again, _ = initial_prompt(lm, layout, config, restart=0)
    other, _ = initial_prompt(lm, layout, config, restart=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(ids, again)
    assert not torch.equal(ids, other)
    assert set(ids[layout.hard].tolist()) <= set(lm.ordinary_ids.tolist())
    assert (ids[layout.soft] == NO_TOKEN).all()
    text = lm.bos_ids + lm.encode("I love", bos=False)
    assert ids[: len(text)].tolist() == text
    fixed = ids != NO_TOKEN
    assert torch.allclose(embeds[fixed], lm.embed(ids[fixed][None])[0])


def test_gaussian_initialisation_has_the_embeddings_scale(lm: LanguageModel) -> None:
    config = TuneConfig(length=50, restarts=1, init="gaussian")
    draws = torch.cat([initial_prompt(lm, Layout.of(lm, config), config, i)[1][-50:] for i in range(20)])
    table = lm.embedding_table[lm.ordinary_ids]
    assert torch.allclose(draws.std(0), table.std(0), rtol=0.15)
    assert not torch.isclose(draws[0], table, atol=1e-6).all(1).any()


# Beginnings.


def test_text_is_where_the_first_restart_begins(lm: LanguageModel) -> None:
    config = TuneConfig(method="hybrid", slots='soft*2 "the" hard*3', init="text", init_text="I love")
    layout = Layout.of(lm, config)
    ids, embeds = initial_prompt(lm, layout, config, restart=0)
    text = lm.encode("I love", bos=False)
    wanted = (text * 5)[:5]
    free = layout.soft | layout.hard
    assert ids[layout.hard].tolist() == wanted[2:]
    assert torch.equal(embeds[free], lm.embed(torch.tensor([wanted]))[0])
    other, _ = initial_prompt(lm, layout, config, restart=1)
    again, _ = initial_prompt(lm, layout, config, restart=1)
    assert torch.equal(other, again)


@pytest.mark.parametrize(("evaluations", "screened"), [(None, 6), (1000, 6), (60, 3), (10, 1)])
def test_screening_begins_at_the_best_of_the_drawn(
    lm: LanguageModel, target: Target, evaluations: int | None, screened: int
) -> None:
    config = TuneConfig(
        method="soft", length=3, restarts=2, steps=1, screen=6, seed=4, evaluations=evaluations, patience=None
    )
    run = tune(lm, target, config)
    (step,) = list(run)
    alone = screened == 1  # nothing to choose from: not scored twice
    assert step.evaluations == [1 if alone else screened + 1] * 2
    for restart in range(2):
        drawn = [initial_prompt(lm, run.layout, config, restart, draw)[1] for draw in range(screened)]
        losses = run.objective.score(lm, torch.stack(drawn), [run.objective] * screened).loss
        assert step.kl_nats[restart] == pytest.approx(float(losses.min()), abs=1e-4)
