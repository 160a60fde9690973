"""The references against PyTorch: results and gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Tensor, ops

torch = pytest.importorskip("torch", reason="PyTorch is what these compare with")
F: Any = torch.nn.functional  # pyright: ignore

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape)


def same(
    ours: Callable[..., Any], theirs: Callable[..., Any], *arrays: Any, atol: float = 1e-10
) -> None:
    """Both functions of ``arrays`` give the same, and so do the gradients of a random mix of it."""
    mine = [Tensor(a, requires_grad=True) for a in arrays]
    torchs = [torch.tensor(a, requires_grad=True) for a in arrays]
    out, expected = ours(*mine), theirs(*torchs)
    assert tuple(out.shape) == tuple(expected.shape)
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), atol=atol)
    mix = np.random.default_rng(1).standard_normal(out.shape)
    out.backward(mix)
    expected.backward(torch.tensor(mix))
    for a, b in zip(mine, torchs, strict=True):
        np.testing.assert_allclose(a.grad.data, b.grad.numpy(), atol=atol)


@pytest.mark.parametrize("shape", [(3, 5), (1, 5), (2, 3, 5), (5,)])
def test_linear(shape: tuple[int, ...]) -> None:
    same(ops.linear, F.linear, normal(*shape), normal(4, 5), normal(4))
    same(ops.linear, F.linear, normal(*shape), normal(4, 5))


@pytest.mark.parametrize("shape", [(3, 5), (1, 5), (2, 3, 6)])
def test_norms(shape: tuple[int, ...]) -> None:
    x, gamma, beta = normal(*shape), normal(shape[-1]), normal(shape[-1])
    width = shape[-1:]
    same(lambda *a: ops.layer_norm(*a, eps=1e-3), lambda x, g, b: F.layer_norm(x, width, g, b, 1e-3),
         x, gamma, beta)  # fmt: skip
    same(
        lambda *a: ops.rms_norm(*a, eps=1e-3), lambda x, g: F.rms_norm(x, width, g, 1e-3), x, gamma
    )
    same(lambda *a: ops.add_layer_norm(*a)[1],
         lambda x, r, g, b: F.layer_norm(x + r, width, g, b), x, normal(*shape), gamma, beta)  # fmt: skip
    same(lambda *a: ops.add_rms_norm(*a, eps=1e-5)[1] + ops.add_rms_norm(*a, eps=1e-5)[0],
         lambda x, r, g: F.rms_norm(x + r, width, g, 1e-5) + x + r, x, normal(*shape), gamma)  # fmt: skip


ACTIVATIONS: dict[str, Any] = {
    "relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "absolute": torch.abs,
    "swiglu": lambda x: F.silu(x[..., :3]) * x[..., 3:],
    "geglu": lambda x: F.gelu(x[..., :3], approximate="tanh") * x[..., 3:],
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    x = np.concatenate([normal(2, 6), [[-40.0, -4, -0.46875, 0.46875, 4, 40]]])
    same(getattr(ops, name), ACTIVATIONS[name], x)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "sigmoid", "swiglu"])
def test_activations_do_not_overflow(name: str) -> None:
    x = np.array([[-3e38, -1e4, -89.0, 89, 1e4, 1.0]], np.float32)
    with np.errstate(all="raise", under="ignore", over="ignore"):
        out = getattr(ops, name)(Tensor(x)).numpy()
    np.testing.assert_allclose(out, ACTIVATIONS[name](torch.tensor(x)).numpy(), rtol=1e-5)


MASKS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "(T, S)": lambda: np.tril(np.ones((3, 5)), 1),
    "(B, T, S)": lambda: np.stack([np.tril(np.ones((3, 5)), k) for k in (0, 2)]),
    "(B, H, T, S)": lambda: (RANDOM.random((2, 4, 3, 5)) < 0.7) | (np.arange(5) == 0),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention(mask: str, kv_heads: int, scale: float | None) -> None:
    allowed = MASKS[mask]()
    q, k, v = normal(2, 3, 4, 6), normal(2, 5, kv_heads, 6), normal(2, 5, kv_heads, 6)
    theirs = None if allowed is None else torch.tensor(allowed != 0)
    if theirs is not None and theirs.ndim == 3:
        theirs = theirs[:, None]

    def reference(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, theirs, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)

    same(lambda q, k, v: ops.attention(q, k, v, allowed, scale=scale), reference, q, k, v)
    same(lambda q, k, v: ops.attention_with_weights(q, k, v, allowed, scale=scale)[0], reference,
         q, k, v)  # fmt: skip


def test_causal_attention() -> None:
    q, k, v = (normal(2, 5, 3, 4) for _ in range(3))

    def reference(*qkv: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in qkv)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    same(lambda *qkv: ops.attention(*qkv, causal=True), reference, q, k, v)


def test_attention_with_a_bias() -> None:
    arrays = normal(2, 3, 4, 6), normal(2, 5, 4, 6), normal(2, 5, 4, 6), normal(1, 4, 3, 5)

    def reference(q: Any, k: Any, v: Any, bias: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2)

    same(lambda q, k, v, bias: ops.attention(q, k, v, None, bias), reference, *arrays)


def test_attention_weights() -> None:
    q, k, v = (normal(1, 3, 2, 4) for _ in range(3))

    def weights(q: Any, k: Any, v: Any) -> Any:
        scores = torch.einsum("bthd,bshd->bhts", q, k) / 2
        return torch.softmax(scores, -1) + 0 * v.sum()

    same(lambda *qkv: ops.attention_with_weights(*qkv)[1], weights, q, k, v)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_cross_entropy(smoothing: float, ignore_index: int) -> None:
    targets = np.array([0, 2, -100 if ignore_index == -100 else 2, 4])
    options = {"ignore_index": ignore_index, "label_smoothing": smoothing}
    same(lambda x: ops.cross_entropy(x, targets, **options),
         lambda x: F.cross_entropy(x, torch.tensor(targets), **options), normal(4, 5))  # fmt: skip


def test_embedding() -> None:
    ids = np.array([[1, 5, 1], [0, 2, 1]])
    same(lambda w: ops.embedding(ids, w, padding=2),
         lambda w: F.embedding(torch.tensor(ids), w, padding_idx=2), normal(6, 3))  # fmt: skip


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax_and_reductions(axis: int) -> None:
    x = normal(2, 3, 4)
    same(lambda x: x.softmax(axis), lambda x: x.softmax(axis), x)
    for name in ("sum", "mean"):
        same(lambda x: getattr(x, name)(axis), lambda x: getattr(x, name)(axis), x)  # noqa: B023
    equal = np.array([[[1.0, 1, 0], [2, 2, 2]]])
    same(lambda x: x.max(axis), lambda x: x.amax(axis), equal)
    same(lambda x: x.min(axis), lambda x: x.amin(axis), equal)
    same(lambda x: x.var(axis), lambda x: x.var(axis, correction=0), x)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3])
def test_powers_of_zero(exponent: int) -> None:
    same(lambda x: x**exponent, lambda x: x**exponent, np.array([0.0, -1.5, 2.0]))


def test_rotary() -> None:
    x, angles = normal(2, 3, 2, 6), np.arange(3)[:, None] * np.array([1.0, 0.3, 0.1])

    def rotate_half(x: Any) -> Any:
        both = torch.tensor(np.concatenate([angles, angles], axis=1))[None, :, None]
        turned = torch.cat((-x[..., 3:], x[..., :3]), dim=-1)
        return x * both.cos() + turned * both.sin()

    same(lambda x: ops.rotary(x, np.cos(angles), np.sin(angles), np.arange(3)), rotate_half, x)
