"""Each module of the course by itself: what it computes, what it says of itself."""

from typing import Any

import numpy as np
import pytest

from tinytorch_gpu.core.attention import MultiHeadAttention, ScaledDotProductAttention
from tinytorch_gpu.core.embeddings import (
    Embedding,
    LearnedPositionalEmbedding,
    PositionalEncoding,
)
from tinytorch_gpu.core.module import Builder
from tinytorch_gpu.core.tensor import Tensor
from tinytorch_gpu.core.transformers import (
    LayerNorm,
    PositionwiseFeedForward,
    Transformer,
    TransformerBlock,
)


def floats(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


# --- layer norm and feed-forward -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [5, (5,), (4, 5)])
def test_layer_norm(shape: Any) -> None:
    norm, x = LayerNorm(shape, eps=1e-3, build=Builder(dtype="float64")), floats(2, 4, 5)
    axes = (-1,) if not isinstance(shape, tuple) else tuple(range(-len(shape), 0))
    assert norm.normalized_shape == ((5,) if shape == 5 else shape) and norm.eps == 1e-3
    norm.gamma.data[...], norm.beta.data[...] = 2.0, 0.5
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    np.testing.assert_allclose(norm(x).data, (x - mean) / np.sqrt(var + 1e-3) * 2 + 0.5)
    assert norm.get_memory_usage() == {
        "parameter_memory_mb": 2 * norm.size * 8 / 2**20,
        "total_parameters": 2 * norm.size,
        "normalized_shape": norm.normalized_shape,
    }


def test_layer_norms_gradient_knows_the_variance() -> None:
    norm, x, mix = LayerNorm(6, build=Builder(dtype="float64")), floats(3, 6), floats(3, 6, seed=1)
    norm.gamma.data[...] = floats(6, seed=2)
    leaf = Tensor(x, requires_grad=True)
    (norm(leaf) * mix).sum().backward()
    for array, gradient in ((x, leaf.grad), (norm.gamma.data, norm.gamma.grad),
                            (norm.beta.data, norm.beta.grad)):  # fmt: skip
        for index in np.ndindex(array.shape):
            values = []
            for step in (1e-6, -1e-6):
                array[index] += step
                values.append(float((norm(x) * mix).sum().item()))
                array[index] -= step
            assert gradient.data[index] == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("bad", [0, (), (3, 0)])
def test_a_norm_of_nothing_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="normalized_shape"):
        LayerNorm(bad)
    with pytest.raises(ValueError, match="5"):
        LayerNorm(4)(floats(2, 5))


def test_feed_forward() -> None:
    ffn, x = PositionwiseFeedForward(4, 6, build=Builder(dtype="float64")), floats(2, 3, 4)
    assert (ffn.w1.shape, ffn.b1.shape, ffn.w2.shape, ffn.b2.shape) == ((4, 6), (6,), (6, 4), (4,))
    assert not ffn.b1.data.any() and not ffn.b2.data.any()
    assert np.abs(ffn.w1.data).max() <= np.sqrt(6 / 10)
    ffn.b1 = floats(6)
    expected = np.maximum(x @ ffn.w1.data + ffn.b1.data, 0) @ ffn.w2.data + ffn.b2.data
    np.testing.assert_allclose(ffn(x).data, expected)
    other = PositionwiseFeedForward(4, 6, activation="gelu")
    assert other(x.astype(np.float32)).shape == (2, 3, 4)
    with pytest.raises(ValueError, match="'rilu'"):
        PositionwiseFeedForward(4, 6, activation="rilu")
    with pytest.raises(ValueError, match="dropout"):
        PositionwiseFeedForward(4, 6, dropout=1.0)


def test_dropout_is_applied_while_training_only() -> None:
    ffn = PositionwiseFeedForward(4, 6, dropout=0.5, activation="gelu")
    x = floats(50, 4).astype(np.float32)
    out = ffn(x).data
    assert 0.3 < np.mean(out == 0) < 0.7
    ffn.eval()
    np.testing.assert_array_equal(ffn(x).data, ffn(x).data)
    assert (ffn(x).data != 0).all()


def test_a_blocks_memory() -> None:
    usage = TransformerBlock(8, 2, 16).get_memory_usage()
    sizes = {"attention": 4 * 64, "norm": 4 * 8, "ffn": 2 * 128 + 24}
    for name, count in sizes.items():
        assert usage[f"{name}_memory_mb"] == count * 4 / 2**20
    assert usage["total_parameters"] == sum(sizes.values())
    assert usage["total_memory_mb"] == sum(sizes.values()) * 4 / 2**20


def test_a_block_looks_both_ways_and_takes_a_mask() -> None:
    block, x = TransformerBlock(8, 2, 16), floats(1, 4, 8).astype(np.float32)
    out, weights = block(x, return_attention_weights=True)
    assert out.shape == (1, 4, 8) and weights.shape == (1, 2, 4, 4)
    assert (weights.data > 0).all()
    _, masked = block(x, mask=np.tril(np.ones((4, 4))), return_attention_weights=True)
    assert not np.triu(masked.data, 1).any()


# --- attention -----------------------------------------------------------------------------------


def _plain_attention(q: Any, k: Any, v: Any, mask: Any = 1, scale: float | None = None) -> Any:
    scores = q @ np.swapaxes(k, -1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    powers = np.exp(scores) * np.broadcast_to(mask, scores.shape)
    total = powers.sum(-1, keepdims=True)
    weights = powers / np.where(total == 0, 1, total)
    return weights @ v, weights


@pytest.mark.parametrize("heads", [(), (3,)])
@pytest.mark.parametrize("keys", [4, 6])
def test_scaled_dot_product_attention(heads: tuple[int, ...], keys: int) -> None:
    q, k, v = (floats(2, *heads, n, 5, seed=i) for i, n in enumerate((4, keys, keys)))
    out, weights = ScaledDotProductAttention(temperature=2.0)(
        q, k, v, return_attention_weights=True
    )
    expected = _plain_attention(q, k, v, scale=0.5 / np.sqrt(5))
    np.testing.assert_allclose(out.data, expected[0])
    np.testing.assert_allclose(weights.data, expected[1])
    alone = ScaledDotProductAttention(temperature=2.0)(q, k, v)
    np.testing.assert_allclose(alone.data, out.data)
    with pytest.raises(ValueError, match="temperature"):
        ScaledDotProductAttention(temperature=0)
    with pytest.raises(ValueError, match=r"\(5,\)"):
        ScaledDotProductAttention()(np.ones(5), np.ones(5), np.ones(5))


MASK = (np.random.default_rng(5).random((2, 3, 4, 6)) < 0.5).astype(float)
MASK[:, :, 1] = 0  # a row that sees nothing


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_masks_of_every_shape(axes: int) -> None:
    q, k, v = (floats(2, 3, n, 5, seed=i) for i, n in enumerate((4, 6, 6)))
    mask = {2: MASK[0, 0], 3: MASK[:, 0], 4: MASK}[axes]
    out, weights = ScaledDotProductAttention()(q, k, v, mask, return_attention_weights=True)
    spread = mask[:, None] if axes == 3 else mask
    expected = _plain_attention(q, k, v, spread)
    np.testing.assert_allclose(out.data, expected[0], atol=1e-12)
    np.testing.assert_allclose(weights.data, expected[1], atol=1e-12)
    assert not out.data[:, :, 1].any() and not weights.data[:, :, 1].any()


def test_multi_head_attention() -> None:
    mha, x = MultiHeadAttention(8, 2, build=Builder(dtype="float64")), floats(2, 3, 8)
    assert (mha.embed_dim, mha.num_heads, mha.head_dim) == (8, 2, 4)
    out, weights = mha(x, return_attention_weights=True)
    np.testing.assert_allclose(mha(x, x, x).data, out.data)
    np.testing.assert_allclose(mha(x, x).data, out.data)
    split = [
        (x @ w.data).reshape(2, 3, 2, 4).transpose(0, 2, 1, 3) for w in (mha.w_q, mha.w_k, mha.w_v)
    ]
    mixed, expected = _plain_attention(*split)
    np.testing.assert_allclose(weights.data, expected)
    np.testing.assert_allclose(
        out.data, mixed.transpose(0, 2, 1, 3).reshape(2, 3, 8) @ mha.w_o.data
    )
    assert mha.get_memory_usage() == {
        "total_parameter_memory_mb": 4 * 64 * 8 / 2**20, "memory_per_head_mb": 2 * 64 * 8 / 2**20,
        "num_heads": 2, "head_dim": 4, "total_parameters": 256,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"embed_dim \(12\).*num_heads \(5\)"):
        MultiHeadAttention(12, 5)
    with pytest.raises(ValueError, match="query"):
        mha(np.ones((2, 3, 5)))


def test_cross_attention_with_another_length() -> None:
    mha, x, y = (
        MultiHeadAttention(8, 2, build=Builder(dtype="float64")),
        floats(2, 3, 8),
        floats(2, 7, 8),
    )
    z = Tensor(floats(2, 7, 8, seed=3), requires_grad=True)
    out, weights = mha(x, y, z, return_attention_weights=True)
    assert out.shape == (2, 3, 8) and weights.shape == (2, 2, 3, 7)
    split = [(a @ w.data).reshape(2, -1, 2, 4).transpose(0, 2, 1, 3)
             for a, w in ((x, mha.w_q), (y, mha.w_k), (z.data, mha.w_v))]  # fmt: skip
    mixed = _plain_attention(*split)[0].transpose(0, 2, 1, 3).reshape(2, 3, 8)
    np.testing.assert_allclose(out.data, mixed @ mha.w_o.data)
    out.sum().backward()
    assert z.grad.shape == z.shape and all(p.grad is not None for p in mha.parameters())
    with pytest.raises(ValueError, match="do not fit"):
        mha(x, y, x)


@pytest.mark.parametrize("name", ["w_q", "w_k", "w_v", "w_o"])
def test_matrices_are_views_that_write_through(name: str) -> None:
    mha, x = MultiHeadAttention(8, 2), floats(1, 3, 8).astype(np.float32)
    others = {n: getattr(mha, n).data.copy() for n in ("w_q", "w_k", "w_v", "w_o") if n != name}
    before = mha(x).data
    setattr(mha, name, np.eye(8) * 3)
    np.testing.assert_array_equal(getattr(mha, name).data, np.eye(8) * 3)
    assert (mha(x).data != before).any()
    getattr(mha, name).data[0, 1] = 7  # in (in, out) order
    assert mha.state_dict()[name][0, 1] == 7
    for other, values in others.items():
        np.testing.assert_array_equal(getattr(mha, other).data, values)
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        setattr(mha, name, np.zeros((2, 2)))


def test_tied_heads_are_the_embedding() -> None:
    model = Transformer(20, 8, 2, 1, 16, device="cpu", tie_embeddings=True)
    assert "lm_head" not in model.state_dict()
    model.lm_head = np.arange(160.0).reshape(8, 20)
    np.testing.assert_array_equal(model.token_embedding.weight.data[:, 1], np.arange(20) + 20.0)


def test_matrices_start_as_in_the_course() -> None:
    model = Transformer(1000, 64, 4, 1, 256, device="cpu", seed=0)
    block = model.transformer_blocks[0]
    for name in ("w_q", "w_k", "w_v", "w_o"):
        assert getattr(block.attention, name).data.std() == pytest.approx(1 / 8, rel=0.05)
    table = model.token_embedding.weight.data
    assert 0.99 / 8 < np.abs(table).max() <= 1 / 8
    for matrix, bound in ((block.ffn.w1, np.sqrt(6 / 320)), (model.lm_head, np.sqrt(6 / 1064))):
        assert 0.99 * bound < np.abs(matrix.data).max() <= bound * (1 + 1e-6)


# --- embeddings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("init_type", ["uniform", "normal", "xavier"])
def test_embedding(init_type: str) -> None:
    table = Embedding(10, 4, padding_idx=3, init_type=init_type)
    assert table.weight.shape == (10, 4) and not table.weight.data[3].any()
    out = table([[1, 3], [1, 9]])
    np.testing.assert_array_equal(out.data, table.weight.data[[[1, 3], [1, 9]]])
    out.sum().backward()
    assert not table.weight.grad.data[3].any()
    assert table.weight.grad.data[1].tolist() == [2.0] * 4
    assert table.get_memory_usage() == {
        "total_memory_mb": 160 / 2**20, "memory_per_token_kb": 16 / 1024, "total_parameters": 40,
        "vocab_size": 10, "embedding_dim": 4,
    }  # fmt: skip
    for bad in ([10], [-1], [0.5]):
        with pytest.raises(ValueError):
            table(bad)


def test_bad_embeddings() -> None:
    with pytest.raises(ValueError, match="'zeros'"):
        Embedding(10, 4, init_type="zeros")
    with pytest.raises(ValueError, match="10"):
        Embedding(10, 4, padding_idx=10)


@pytest.mark.parametrize("width", [6, 7])
def test_positional_encoding(width: int) -> None:
    encoding = PositionalEncoding(width, 20)
    assert encoding.pe.shape == (20, width)
    position, column = np.meshgrid(np.arange(20), np.arange(width), indexing="ij")
    angle = position / 10000 ** ((column - column % 2) / width)
    expected = np.where(column % 2 == 0, np.sin(angle), np.cos(angle))
    np.testing.assert_allclose(encoding.pe.data, expected, atol=1e-6)
    x = floats(2, 5, width).astype(np.float32)
    np.testing.assert_allclose(encoding(x).data, x + encoding.pe.data[:5], atol=1e-6)
    assert PositionalEncoding(4).max_seq_length == 5000
    with pytest.raises(ValueError, match=r"21 .*20"):
        encoding(np.zeros((1, 21, width)))


def test_learned_positions() -> None:
    encoding, x = LearnedPositionalEmbedding(20, 6), floats(2, 5, 6).astype(np.float32)
    out = encoding(x)
    np.testing.assert_allclose(out.data, x + encoding.weight.data[:5])
    out.sum().backward()
    np.testing.assert_array_equal(encoding.weight.grad.data[:, 0], [2.0] * 5 + [0.0] * 15)
    with pytest.raises(ValueError, match="20"):
        encoding(np.zeros((1, 21, 6)))
