"""How much memory a model takes in use and in training, which devices hold it, and how fast they can be."""

from .devices import plan
from .report import DevicePlan, Plan
from .speed import Step
from .speed_table import Speed
from .training import plan_training
from .training_report import TrainingPlan, TrainingRow
from .training_speed import TrainingSpeed
from .training_state import State

__all__ = [
    "DevicePlan",
    "Plan",
    "Speed",
    "State",
    "Step",
    "TrainingPlan",
    "TrainingRow",
    "TrainingSpeed",
    "plan",
    "plan_training",
]
