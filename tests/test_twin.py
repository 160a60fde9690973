"""nanoGPT's small recipe step by step beside a PyTorch twin."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
pytest.importorskip("torch", reason="PyTorch trains the twin")

from tinytorch_gpu import Transformer
from tinytorch_gpu.config import preset
from tinytorch_gpu.training import TokenDataset, Trainer, TrainingConfig

TOP = Path(__file__).parent.parent


def twin_of(model: Any, data: TokenDataset, config: TrainingConfig) -> Any:
    spec = importlib.util.spec_from_file_location("torch_twin", TOP / "profiling" / "torch_twin.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Twin(model, data, config)


@pytest.mark.parametrize(
    ("dtype", "steps", "allowed"), [("float64", 100, 1e-6), ("float32", 20, 1e-4)]
)
def test_the_first_losses_are_the_twins(
    data: TokenDataset, dtype: str, steps: int, allowed: float
) -> None:
    """The recipe as it is: 4 layers, 4 heads, 128 wide, windows of 64 in batches of 12, 2000 steps planned."""
    config = TrainingConfig(steps=2000)
    shape = preset("shakespeare-char", vocab_size=data.vocab_size)
    model = Transformer.from_config(shape, "cpu", dtype, seed=config.seed)
    twin, trainer = twin_of(model, data, config), Trainer(model, data, config)
    first = None
    for step in range(steps):
        ours, theirs = trainer.step().loss, twin.step()
        assert abs(ours - theirs) <= allowed, step + 1
        first = first or ours
    assert abs(trainer.evaluate(data.val) - twin.evaluate()) <= 10 * allowed
    assert first is not None and ours < first - 0.2  # both have learned
