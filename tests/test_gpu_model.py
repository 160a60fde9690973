"""The whole model on a GPU, and on the emulated one, against the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Tensor, Transformer, TransformerConfig, device, ops

FAMILIES: dict[str, dict[str, Any]] = {
    "course": {},
    "gpt2": {"position": "learned", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True},
    "llama": {"num_kv_heads": 2, "norm": "rms", "position": "rotary", "activation": "swiglu",
              "ffn_bias": False, "tie_embeddings": True},
    "exact gelu, post-norm, windowed": {"activation": "gelu", "pre_norm": False,
                                        "sliding_window": 3, "qk_norm": True},
}  # fmt: skip
IDS = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]


@pytest.fixture(params=FAMILIES, ids=str)
def pair(request: Any, gpu: str) -> tuple[Transformer, Transformer]:
    """The same model on both devices."""
    config = TransformerConfig(50, 32, 4, 2, 48, 64, **FAMILIES[request.param])
    there = Transformer.from_config(config, device=gpu, seed=1)
    assert there.device.kind == gpu
    return Transformer.from_config(config, device="cpu", seed=1), there


def test_logits(pair: Any) -> None:
    here, there = (model(IDS).detach().cpu().numpy() for model in pair)
    np.testing.assert_allclose(there, here, atol=1e-5)


def test_gradients_of_a_training_step(pair: Any) -> None:
    found = []
    for model in pair:
        targets = Tensor(np.arange(10) + 1).to(model.device)
        ops.cross_entropy(model(IDS).reshape(-1, 50), targets).backward()
        found.append({n: p.grad.cpu().numpy() for n, p in model.named_parameters()})
    for name, gradient in found[0].items():
        np.testing.assert_allclose(found[1][name], gradient, atol=1e-5, err_msg=name)


TRAINING: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.2},
    "label smoothing and targets to ignore": {"label_smoothing": 0.1, "ignore_index": 3},
    "recomputation": {"recompute": True, "dropout": 0.2},
    "bfloat16": {"dtype": "bfloat16", "dropout": 0.2},
}  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("how", TRAINING)
def test_a_training_step_of_each_kind(gpu: str, family: str, how: str) -> None:
    """Loss, gradients and the position of the random numbers afterwards, after two batches."""
    options = dict(TRAINING[how])
    dtype, again = options.pop("dtype", "float32"), options.pop("recompute", False)
    dropout, found = options.pop("dropout", 0.0), []
    config = TransformerConfig(50, 32, 4, 2, 48, 64, dropout=dropout, **FAMILIES[family])
    for place in ("cpu", gpu):
        model = Transformer.from_config(config, device=place, dtype=dtype, seed=1)
        model.recompute = again
        for _ in range(2):
            targets = Tensor(np.arange(10) + 1).to(model.device)
            loss = ops.cross_entropy(model(IDS).reshape(-1, 50), targets, **options)
            loss.backward()
        gradients = {n: p.grad.cpu().numpy() for n, p in model.named_parameters()}
        found.append((loss.item(), model.generator.offset, gradients))
    (here, offset, wanted), (there, same_offset, gradients) = found
    assert same_offset == offset
    # In 16 bits a GPU computes in 16 bits too: a few roundings a layer.
    allowed = 1e-5 if dtype == "float32" else 4 * 2.0**-8
    assert abs(there - here) < allowed * abs(here)
    for name, gradient in wanted.items():
        wide = gradient.astype(np.float32)
        scale = max(1.0, np.abs(wide).max())
        np.testing.assert_allclose(
            gradients[name].astype(np.float32), wide, atol=allowed * scale, err_msg=name
        )


def test_gradients_of_two_leaves_are_two_arrays(gpu: str) -> None:
    a, b = (Tensor(np.ones(3), requires_grad=True, device=gpu) for _ in range(2))
    for _ in range(2):
        (a + b).backward(device(gpu).asarray([1.0, 2.0, 3.0], "float64"))
    a.grad.data[...] *= 5
    assert b.grad.tolist() == [2, 4, 6]


@pytest.mark.parametrize("prompts", [IDS, [[1, 2, 3], [4]]], ids=["even", "ragged"])
def test_greedy_ids_are_the_same(pair: Any, prompts: Any) -> None:
    here, there = (model.generate(prompts, 6, temperature=0) for model in pair)
    for a, b in zip(here, there, strict=True):
        assert a.numpy().tolist() == b.cpu().numpy().tolist()


def test_sampled_ids_are_the_same(pair: Any) -> None:
    options = {"temperature": 0.8, "top_k": 10, "top_p": 0.9, "min_p": 0.01, "seed": 3}
    here, there = (m.generate(IDS, 6, repetition_penalty=1.1, **options) for m in pair)
    assert here.numpy().tolist() == there.cpu().numpy().tolist()


def test_dropout_draws_the_same_numbers(gpu: str) -> None:
    config = TransformerConfig(50, 32, 4, 2, 48, 64, dropout=0.2)
    here, there = (
        Transformer.from_config(config, device=place, seed=1)(IDS).detach().cpu().numpy()
        for place in ("cpu", gpu)
    )
    np.testing.assert_allclose(there, here, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_file_loads(tiny_gguf: Path, dtype: str, gpu: str) -> None:
    here, there = (
        Transformer.from_pretrained(tiny_gguf, device=place, dtype=dtype) for place in ("cpu", gpu)
    )
    logits = [model(IDS).detach().cpu().numpy() for model in (here, there)]
    # In 16 bits a GPU computes in 16 bits too: a few roundings a layer.
    allowed = {"float32": 1e-4, "float16": 4 * 2.0**-11, "bfloat16": 4 * 2.0**-8}[dtype]
    scale = max(1, np.abs(logits[0]).max())
    np.testing.assert_allclose(logits[1].astype(np.float32), logits[0], atol=allowed * scale)
    assert there.token_embedding.weight.device == device(gpu)


def test_moving_there_and_back(gpu: str) -> None:
    model = Transformer(50, 32, 4, 2, 48, 64, device="cpu", seed=1)
    before = model(IDS).detach().numpy()
    model.to(gpu)
    assert model.device == device(gpu)
    np.testing.assert_allclose(model(IDS).detach().cpu().numpy(), before, atol=1e-5)
    model.to("cpu")
    np.testing.assert_array_equal(model(IDS).detach().numpy(), before)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decode_step_waits_for_the_host_once(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """One wait, for the copy of the tokens; nothing goes to the device: its numbers are there already."""
    import cupy

    from tinytorch_gpu.cuda.copies import CudaReader

    config = TransformerConfig(50, 32, 4, 2, 48, 64, **FAMILIES[family])
    model = Transformer.from_config(config, device="cuda", seed=1)
    options = {"temperature": 0.7, "top_k": 5, "repetition_penalty": 1.1, "seed": 1}
    steps = model.generate([[1, 2, 3]], 8, stream=True, **options)
    for _ in range(3):  # the prompt, and a step that is captured
        next(steps)
    waits, wait, make = [], CudaReader.wait, cupy.asarray

    def only_from_the_device(x: Any, *rest: Any, **more: Any) -> Any:
        assert isinstance(x, cupy.ndarray), f"a copy of {x!r} to the device in a decode step"
        return make(x, *rest, **more)

    monkeypatch.setattr(CudaReader, "wait", lambda self: waits.append(1) or wait(self))
    for name in ("asarray", "array"):
        monkeypatch.setattr(cupy, name, only_from_the_device)
    next(steps)
    assert len(waits) == 1


def test_arrays_of_two_devices_are_named(gpu: str) -> None:
    with pytest.raises(ValueError, match=f"arrays on ({gpu} and on cpu|cpu and on {gpu})"):
        Tensor(np.ones(3)).to(gpu) + Tensor(np.ones(3))
