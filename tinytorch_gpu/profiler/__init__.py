"""Where the time and the memory of a model go: counted from its configuration, and measured in a run.

Counted: ``parameters``, the phases ``prefill``, ``decode`` and ``train_step`` with their operations and bytes,
``training_memory`` and ``inference_memory``, ``roofline`` times on a device, ``scaling`` studies and
``deployment``. Measured: ``measure_generation``, ``measure_training``, ``measure_device``. The course's
profilers are thin calls of both.
"""

from .account import Phase, Row, decode, encode, prefill, train_step
from .calls import Pass, Setting
from .costs import Cost
from .course import (
    AttentionProfiler,
    EmbeddingProfiler,
    Profiler,
    TokenizationProfiler,
    TransformerProfiler,
)
from .deployment import Fit, deployment
from .formats import FORMATS, Format
from .machine import measure_device
from .memory import InferenceMemory, TrainingMemory, inference_memory, training_memory
from .parameters import Component, count_parameters, parameters
from .roofline import Roofline, Timed, roofline
from .runs import Run, measure_generation, measure_training
from .spec import DeviceSpec, read_spec
from .spec_table import DEVICES, named_device
from .studies import (
    Study,
    Workload,
    scaling,
    standard_studies,
    training_against_inference,
    width_against_depth,
)
from .walk import forward_calls

__all__ = [
    "DEVICES", "FORMATS", "AttentionProfiler", "Component", "Cost", "DeviceSpec", "EmbeddingProfiler", "Fit",
    "Format", "InferenceMemory", "Pass", "Phase", "Profiler", "Roofline", "Row", "Run", "Setting", "Study",
    "Timed", "TokenizationProfiler", "TrainingMemory", "TransformerProfiler", "Workload", "count_parameters",
    "decode", "deployment", "encode", "forward_calls", "inference_memory", "measure_device", "measure_generation",
    "measure_training", "named_device", "parameters", "prefill", "read_spec", "roofline", "scaling",
    "standard_studies", "train_step", "training_against_inference", "training_memory",
    "width_against_depth",
]  # fmt: skip
