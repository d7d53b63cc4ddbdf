"""How much memory a model takes, and which devices hold it."""

from .devices import plan
from .report import DevicePlan, Plan

__all__ = ["DevicePlan", "Plan", "plan"]
