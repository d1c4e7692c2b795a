"""What a page asks for beside the run that it shows: more runs, the same with one thing changed; each in its turn."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from dpexplore.errors import InputError
from dpexplore.experiments.costs import seconds_of_run, slot_tokens
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.journal import new_run_id
from dpexplore.serving.model_pool import INTERNAL_ERROR
from dpexplore.serving.share import Setup
from dpexplore.serving.workspace import Asked, clean_name, rule_of, usual_name
from dpexplore.targets import Target, parse_recipe
from dpexplore.targets.sources import Entropy
from dpexplore.tuning import TuneConfig

logger = logging.getLogger(__name__)

SHARES = (0.25, 0.5, 0.75)
"""Of the most entropy that a target can have: what `three entropies` are."""
HOWS = ("soft", "hard", "direct", "entropies", "model")


def ask(app: AppContext, session: str, setups: Sequence[Setup]) -> list[Asked]:
    """Runs that begin one after the other as there is room. InputError if one of them could not be, or is too large."""
    asked = []
    for setup in setups:
        seconds = None
        if app.pool.is_loaded(setup.model):  # what another model says to it is known once it is loaded
            app.check(setup.model, setup.recipe, setup.config)
            seconds = seconds_of_run(app.pool.get(setup.model).lm, setup.config)
        elif app.rules:
            app.rules.check_run(setup.config)
        asked.append(Asked(new_run_id(), session, usual_name(setup), setup, seconds))
    app.workspace.add(*asked)
    return asked


def advance(app: AppContext, session: str) -> None:
    """Begin what may begin now of a page's runs. Called at every look at them, so that nothing begins unseen."""
    while (asked := app.workspace.claim(session)) is not None:
        try:
            if not _begun(app, asked):
                return
        except InputError as error:
            asked.error = str(error)
        except Exception:
            logger.exception("a run that waited could not begin")
            asked.error = INTERNAL_ERROR
        finally:
            asked.claimed = False


def _begun(app: AppContext, asked: Asked) -> bool:
    """Begin a run; False if its model is still loading, or there is no room yet."""
    setup = asked.setup
    asked.loading = asked.loading or app.pool.start_loading(setup.model)
    if not asked.loading.done.is_set():
        return False
    if asked.loading.error:
        raise InputError(asked.loading.error)
    asked.loading = None
    try:
        app.check_room(asked.session)
    except InputError:
        return False
    asked.live = app.begin(
        asked.session, setup.model, setup.recipe, setup.config, run_id=asked.run_id, name=asked.name, beside=True
    )
    asked.seconds = seconds_of_run(asked.live.run.lm, asked.live.run.config)
    return True


def look(app: AppContext, session: str, run_ids: Sequence[str]) -> bool:
    """A page looks at its runs, of which it knows the ids: what has ended is noted, what waits may begin.

    Returns whether one of them waits or moves.
    """
    app.workspace.adopt(session, run_ids)
    for asked in app.workspace.of(session):
        if asked.live is None:
            continue
        asked.live.glance()
        last = asked.live.last_view
        if last is not None:
            app.note_end(session, asked.live, last)
            asked.error = last.error
            asked.live = None
            if asked.error is None:
                app.workspace.remove(asked.run_id)
    advance(app, session)
    return any(asked.waits or asked.moves for asked in app.workspace.of(session))


def rename(app: AppContext, run_id: str, text: object) -> None:
    """Name a run that waits, moves or has ended. InputError for an empty name."""
    name = clean_name(text)
    if not name:
        raise InputError("A run needs a name; type one.")
    asked, live = app.workspace.find(run_id), app.sessions.find(run_id)
    if asked is not None:
        asked.name = name
    if live is not None:
        live.name = name
    elif asked is None or asked.live is not None:  # there is no journal of what has not begun
        app.journal.rename(run_id, name)


def stop(app: AppContext, run_id: str) -> None:
    """Let a run that moves keep its best so far, and one that waits not begin."""
    asked, live = app.workspace.find(run_id), app.sessions.find(run_id)
    if live is not None:
        live.cancel()
    elif asked is not None:
        app.workspace.remove(run_id)


# The same, but for one thing.


def the_same_with(app: AppContext, setup: Setup, how: str, model: str = "") -> list[Setup]:
    """A setup with another method, model, or at three entropies. InputError for what it cannot be."""
    if how == "model":
        if not model or model == setup.model:
            raise InputError("Choose another model than the run's own.")
        return [replace(setup, model=model)]
    if how == "entropies":
        target, lm = app.target(setup.model, setup.recipe), app.pool.get(setup.model).lm
        return [replace(setup, recipe=text) for text in at_three_entropies(target, lm.vocab_size)]
    if how not in HOWS:
        raise InputError(f"A run can be asked for again with one of {', '.join(HOWS)}.")
    return [replace(setup, config=with_rule(setup, how))]


def with_rule(setup: Setup, rule: str) -> TuneConfig:
    """The same effort by another rule: as many tokens, restarts and steps, where the rule has a use for them."""
    config = setup.config
    if rule == "direct":
        return TuneConfig.preset("direct", seed=config.seed)
    if rule_of(config) == "direct":  # solved in a few steps of one token: no measure for a search
        return TuneConfig.preset("fast", method=rule, seed=config.seed)
    return replace(config, method=rule, slots=None, length=slot_tokens(config))


def at_three_entropies(target: Target, vocab_size: int) -> list[str]:
    """Recipes of a target like this one, but at `SHARES` of the most entropy it can have.

    A vanilla target is built for that entropy; any other one is made sharper or flatter by its temperature.
    InputError for one that is all on one token.
    """
    recipe = parse_recipe(target.recipe)
    if isinstance(recipe, Entropy):
        return [str(replace(recipe, bits=round(share * math.log2(vocab_size), 2))) for share in SHARES]
    tokens = int((target.probs > 0).sum())
    if tokens < 2:
        raise InputError("This target is all on one token, so it has one entropy only; use another one.")
    return [str(recipe.temperature(temperature_for(target, share * math.log(tokens)))) for share in SHARES]


def temperature_for(target: Target, entropy_nats: float) -> float:
    """The temperature at which a target has an entropy, three digits; entropy rises with temperature."""
    log_p = target.probs.double().log()
    low, high = math.log(1e-3), math.log(1e3)
    for _ in range(40):
        middle = (low + high) / 2
        q = (log_p / math.exp(middle)).softmax(0)
        nats = float(-(q * q.clamp_min(1e-300).log()).sum())
        low, high = (middle, high) if nats < entropy_nats else (low, middle)
    return float(f"{math.exp(low):.3g}")
