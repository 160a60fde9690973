"""Models without norms or additions by configuration: what they compute, and that they are saved whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Transformer, TransformerConfig
from tinytorch_gpu.checkpoint import open_model
from tinytorch_gpu.checkpoint.save import save

IDS = np.array([[1, 2, 3, 4]])


def model_of(**choices: Any) -> Transformer:
    return Transformer.from_config(
        TransformerConfig(30, 16, 2, 2, 24, 16, position="learned", **choices), "cpu", seed=1
    )


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_without_residuals_each_part_takes_the_place_of_its_input(
    norm: str, pre_norm: bool
) -> None:
    block = model_of(norm=norm, residual=False, pre_norm=pre_norm).transformer_blocks[0]
    x = np.random.default_rng(0).standard_normal((1, 4, 16)).astype(np.float32)
    if pre_norm:
        expected = block.ffn(block.norm2(block.attention(block.norm1(x))))
    else:
        expected = block.norm2(block.ffn(block.norm1(block.attention(x))))
    np.testing.assert_allclose(block(x).detach().numpy(), expected.detach().numpy(), atol=1e-6)


def test_without_norms_a_block_adds_its_parts() -> None:
    for pre_norm in (True, False):
        model = model_of(norm="none", pre_norm=pre_norm)
        block = model.transformer_blocks[0]
        x = np.random.default_rng(0).standard_normal((1, 4, 16)).astype(np.float32)
        middle = block.attention(x).detach().numpy() + x
        expected = block.ffn(middle).detach().numpy() + middle
        np.testing.assert_allclose(block(x).detach().numpy(), expected, atol=1e-5)
        assert not any("norm" in name for name in model.state_dict())


@pytest.mark.parametrize("choices", [{"norm": "none"}, {"residual": False}], ids=str)
def test_they_are_saved_generate_and_learn(choices: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model = model_of(**choices)
    save(model, tmp_path)
    loaded = open_model(tmp_path).load("cpu", "float32")
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded(IDS).detach().numpy(), model(IDS).detach().numpy())
    steps = model.generate(IDS[0], 6, temperature=0).numpy()[0]
    whole = [int(model(steps[None, :n])[0, -1].detach().numpy().argmax()) for n in range(4, 10)]
    assert steps[4:].tolist() == whole
    model(IDS).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(ValueError, match="norm must be one of layer, rms, none, not 'batch'"):
        model_of(norm="batch")
