"""Where the time and the memory of a model go: counted from its configuration, and measured in a run."""

from .account import Phase, Row, decode, prefill, train_step
from .calls import Pass, Setting, forward_calls
from .costs import Cost
from .formats import FORMATS, Format, weight_format
from .memory import InferenceMemory, TrainingMemory, inference_memory, training_memory
from .parameters import Component, count_parameters, parameters

__all__ = [
    "FORMATS", "Component", "Cost", "Format", "InferenceMemory", "Pass", "Phase", "Row", "Setting",
    "TrainingMemory", "count_parameters", "decode", "forward_calls", "inference_memory", "parameters",
    "prefill", "train_step", "training_memory", "weight_format",
]  # fmt: skip
