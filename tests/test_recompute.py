"""Recomputed blocks: the same numbers to the last bit, from less memory."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Tensor, Transformer, TransformerConfig, no_grad, ops
from tinytorch_gpu.core.recompute import recompute
from tinytorch_gpu.rng import Generator

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"position": "learned", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True},
    "llama": {"num_kv_heads": 2, "norm": "rms", "position": "rotary", "activation": "swiglu",
              "ffn_bias": False, "tie_embeddings": True},
    "post-norm": {"pre_norm": False, "qk_norm": True, "position": "rotary", "sliding_window": 3},
}  # fmt: skip
IDS = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])


def step(model: Transformer) -> tuple[Any, dict[str, Any]]:
    """The loss of one batch and the gradient of each parameter, on the host."""
    model.zero_grad()
    targets = model.device.asarray((IDS + 1).reshape(-1))
    loss = ops.cross_entropy(model(IDS).reshape(-1, 50), targets, label_smoothing=0.1)
    loss.backward()
    return loss.item(), {n: p.grad.cpu().numpy() for n, p in model.named_parameters()}


def assert_same(found: Any, wanted: Any) -> None:
    assert found[0] == wanted[0]
    for name, gradient in wanted[1].items():
        np.testing.assert_array_equal(found[1][name], gradient, err_msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_changes_no_bit(family: str, dtype: str, dropout: float) -> None:
    config = TransformerConfig(50, 32, 4, 3, 48, 64, dropout=dropout, **FAMILIES[family])
    plain, again = (Transformer.from_config(config, "cpu", dtype, seed=1) for _ in range(2))
    again.recompute = True
    for _ in range(2):  # the second step draws where the first has stopped
        assert_same(step(again), step(plain))
        assert again.generator.offset == plain.generator.offset


def test_on_a_gpu(gpu: str) -> None:
    config = TransformerConfig(50, 32, 4, 2, 48, 64, dropout=0.2, **FAMILIES["gpt2"])
    plain, again = (Transformer.from_config(config, gpu, seed=1) for _ in range(2))
    again.recompute = True
    (loss, gradients), (wanted, all_wanted) = step(again), step(plain)
    assert again.generator.offset == plain.generator.offset
    # Without gradients some products run by another kernel, which adds up in another order.
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    for name, gradient in all_wanted.items():
        np.testing.assert_allclose(gradients[name], gradient, atol=1e-6, err_msg=name)


def forward_memory(model: Transformer, length: int) -> tuple[int, int]:
    """Bytes that a forward leaves behind for the backward, and the most during both."""
    ids = np.arange(4 * length).reshape(4, length) % 50
    for _ in range(2):  # the first makes what is kept for later steps
        model.zero_grad()
        tracemalloc.start()
        loss = ops.cross_entropy(model(ids).reshape(-1, 50), ids.reshape(-1))
        kept = tracemalloc.get_traced_memory()[0]
        loss.backward()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return kept, peak


def test_what_is_kept_is_the_input_of_each_block() -> None:
    made = {}
    for layers in (4, 8):
        config = TransformerConfig(50, 64, 4, layers, 256, 128, **FAMILIES["gpt2"])
        model = Transformer.from_config(config, "cpu", seed=1)
        made[layers] = [forward_memory(model, 128)]
        model.recompute = True
        made[layers].append(forward_memory(model, 128))
    input_of_a_block = 4 * 128 * 64 * 4
    kept = (made[8][1][0] - made[4][1][0]) / 4
    assert input_of_a_block <= kept < 1.05 * input_of_a_block
    assert (made[8][0][0] - made[4][0][0]) / 4 > 10 * input_of_a_block
    assert made[8][1][1] < made[8][0][1] / 3


# --- the function itself ---------------------------------------------------------------------


@pytest.fixture
def x() -> Tensor:
    return Tensor(np.random.default_rng(0).normal(size=(3, 4)), requires_grad=True)


def doubled_tanh(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: (y * weight).tanh() + y


def test_gradients_of_inputs_and_of_what_the_function_uses(x: Tensor) -> None:
    weight = Tensor(np.arange(1.0, 5.0), requires_grad=True)
    (doubled_tanh(weight)(x * 2) * x).sum().backward()
    wanted = x.grad.data, weight.grad.data
    x.zero_grad(), weight.zero_grad()
    (recompute(doubled_tanh(weight), x * 2) * x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, wanted[0])
    np.testing.assert_array_equal(weight.grad.data, wanted[1])


def test_an_input_without_gradient(x: Tensor) -> None:
    weight = Tensor(np.arange(1.0, 5.0), requires_grad=True)
    x.requires_grad_(False)
    recompute(doubled_tanh(weight), x).sum().backward()
    found = weight.grad.data
    weight.zero_grad()
    doubled_tanh(weight)(x).sum().backward()
    np.testing.assert_array_equal(found, weight.grad.data)
    assert x.grad is None


def test_nothing_that_needs_a_gradient(x: Tensor) -> None:
    x.requires_grad_(False)
    recompute(lambda y: y * 2, x).sum().backward()
    assert x.grad is None


def test_no_grad_outside_and_inside(x: Tensor) -> None:
    with no_grad():
        assert not recompute(doubled_tanh(x), x).requires_grad

    def partly(y: Tensor) -> Tensor:
        with no_grad():
            fixed = y.exp()
        return fixed * y

    recompute(partly, x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, np.exp(x.data))


def test_it_can_go_back_twice_only_if_told(x: Tensor) -> None:
    out = recompute(lambda y: y.exp(), x).sum()
    out.backward(retain_graph=True)
    out.backward()
    np.testing.assert_array_equal(x.grad.data, 2 * np.exp(x.data))
    with pytest.raises(RuntimeError, match="retain_graph"):
        out.backward()


def test_one_inside_another(x: Tensor) -> None:
    generator = Generator(x.device, 3)

    def inner(y: Tensor) -> Tensor:
        return ops.dropout(y.tanh(), generator.next(), p=0.5)

    def outer(y: Tensor) -> Tensor:
        return recompute(inner, inner(y), generator).exp()

    made = []
    for run in (outer, lambda y: recompute(outer, y, generator), lambda y: inner(inner(y)).exp()):
        generator.offset = 7
        x.zero_grad()
        run(x).sum().backward()
        made.append((x.grad.data, generator.offset))
    for gradient, offset in made:
        np.testing.assert_array_equal(gradient, made[0][0])
        assert offset == 9


def test_draws_between_forward_and_backward_stay_where_they_are(x: Tensor) -> None:
    generator = Generator(x.device, 3)
    out = recompute(lambda y: ops.dropout(y, generator.next(), p=0.5), x, generator)
    generator.next()
    out.backward(np.ones((3, 4)))
    assert generator.offset == 2
    np.testing.assert_array_equal(x.grad.data != 0, out.data != 0)


def test_an_error_in_the_second_run_leaves_the_generator_as_it_was(x: Tensor) -> None:
    generator, runs = Generator(x.device, 3), []

    def fails_later(y: Tensor) -> Tensor:
        runs.append(generator.next())
        if len(runs) > 1:
            raise ArithmeticError("the second run")
        return y * 2

    out = recompute(fails_later, x, generator)
    with pytest.raises(ArithmeticError, match="second run"):
        out.sum().backward()
    assert generator.offset == 1
    assert (x * 2).requires_grad
