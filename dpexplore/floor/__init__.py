"""The certified softmax floor: how close a head can come to a target, whatever the prompt."""

from dpexplore.floor.certificate import Certificate, certify
from dpexplore.floor.products import HeadProducts
from dpexplore.floor.solver import FloorResult, FloorSolver

__all__ = ["Certificate", "FloorResult", "FloorSolver", "HeadProducts", "certify"]
