"""Training: data, optimizers, the loop, and runs that can be interrupted and go on."""

from .batches import DataLoader, windows
from .config import RECIPES, TrainingConfig
from .data import TokenDataset, char_tokenizer
from .groups import decay_groups
from .loss import CrossEntropyLoss
from .optim import SGD, AdamW, LossScaler, clip_grad_norm
from .run import Run
from .schedules import ConstantSchedule, CosineSchedule
from .step import StepResult
from .trainer import Trainer

__all__ = [
    "RECIPES", "SGD", "AdamW", "ConstantSchedule", "CosineSchedule", "CrossEntropyLoss", "DataLoader", "LossScaler",
    "Run", "StepResult", "TokenDataset", "Trainer", "TrainingConfig", "char_tokenizer", "clip_grad_norm",
    "decay_groups", "windows",
]  # fmt: skip
