"""The deployment: its manifest (`Spacefile`), what visitors of a public server may do, and the way to a Space."""

from dpexplore.space.manifest import Limits, Manifest, load_manifest
from dpexplore.space.visitors import VisitorRules, running_on_a_space

__all__ = ["Limits", "Manifest", "VisitorRules", "load_manifest", "running_on_a_space"]
