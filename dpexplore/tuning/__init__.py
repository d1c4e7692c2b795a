"""Tuning prompts: config, the batched engine, decoding and the run's record."""

from dpexplore.tuning.config import PRESETS, TuneConfig, fig4_slots
from dpexplore.tuning.engine.engine import Engine, Run, tune
from dpexplore.tuning.engine.server import EngineServer
from dpexplore.tuning.knobs import KNOBS, METHODS, Knob
from dpexplore.tuning.record.replay import Replay, load_capsule, replay, restore, resume
from dpexplore.tuning.record.steps import NearestToken, TuneResult, TuneStep
from dpexplore.tuning.slots import Slot, Slots

__all__ = [
    "KNOBS",
    "METHODS",
    "PRESETS",
    "Engine",
    "EngineServer",
    "Knob",
    "NearestToken",
    "Replay",
    "Run",
    "Slot",
    "Slots",
    "TuneConfig",
    "TuneResult",
    "TuneStep",
    "fig4_slots",
    "load_capsule",
    "replay",
    "restore",
    "resume",
    "tune",
]
