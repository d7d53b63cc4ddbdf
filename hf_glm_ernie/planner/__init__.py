"""How much memory a model takes, and which devices hold it."""

from .devices import DevicePlan, Plan, plan

__all__ = ["DevicePlan", "Plan", "plan"]
