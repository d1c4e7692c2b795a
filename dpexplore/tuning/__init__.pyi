from .config import PRESETS, TuneConfig, fig4_slots
from .engine.engine import Engine, Run, tune
from .engine.server import EngineServer
from .knobs import KNOBS, METHODS, Knob
from .record.replay import Replay, replay, restore, resume
from .record.schema import load_capsule
from .record.steps import NearestToken, TuneResult, TuneStep
from .slots import Slot, Slots

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
