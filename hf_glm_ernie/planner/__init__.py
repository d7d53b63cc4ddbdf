"""How much memory a model takes, which devices hold it, and how fast they can be."""

from .devices import plan
from .report import DevicePlan, Plan
from .speed import Step
from .speed_table import Speed

__all__ = ["DevicePlan", "Plan", "Speed", "Step", "plan"]
