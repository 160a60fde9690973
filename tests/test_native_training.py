"""What only training asks of native operations: draws that are the reference's bit for bit, sums that threads do not
change, and nothing read outside a table."""

from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Tensor, backend, ops, processors
from tinytorch_gpu.core.op import record
from tinytorch_gpu.native import library
from tinytorch_gpu.ops.dropout import keep

if library() is None:
    pytest.skip("there is no native library", allow_module_level=True)

STATE = np.array([2**63 + 12345, 2**35 + 7], np.uint64)


def drawn(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def native(calls: Any) -> bool:
    return all(".native." in call.maker.forward.__module__ for call in calls)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("count", [1, 5, 1023, 1030, 100003])
def test_dropout_is_the_reference_to_the_last_bit(dtype: str, count: int) -> None:
    x = Tensor(drawn(count).astype(backend.dtype(dtype)), requires_grad=True)
    with record() as calls:
        made = ops.dropout(x, STATE, p=0.3)
    assert native(calls)
    made.backward(x.data)
    expected, _ = ops.dropout.reference(x.data, STATE, p=0.3)
    assert x.grad is not None
    for own in (made.data, x.grad.data):
        np.testing.assert_array_equal(own.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("keys", [36, 37, 150])
def test_attention_drops_the_same_weights(keys: int) -> None:
    """Queries of nothing weigh all keys alike; values that are 1 at their own key show each weight."""
    q, k = np.zeros((2, 70, 4, keys), np.float32), drawn(2, keys, 2, keys)
    v = np.broadcast_to(np.eye(keys, dtype=np.float32)[None, :, None], k.shape)
    with record() as calls:
        made = ops.attention(q, k, np.ascontiguousarray(v), state=STATE, dropout=0.4).data
    assert native(calls)
    factors = keep(STATE, (2, 4, 70, keys), 0.4, np.float32)
    np.testing.assert_allclose(made.transpose(0, 2, 1, 3), factors / keys, rtol=1e-6)


def test_gradients_are_the_same_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    ids = np.minimum(random.integers(0, 99, 700), random.integers(0, 99, 700))
    cos, sin = drawn(70, 16), drawn(70, 16)
    found: list[list[Any]] = []
    for threads in (1, 2, 5, 64):
        monkeypatch.setattr(processors, "chosen", threads)
        table = Tensor(drawn(99, 300), requires_grad=True)
        x = Tensor(drawn(10, 70, 6, 32), requires_grad=True)
        with record() as calls:
            made = ops.embedding(ids, table), ops.rotary(x, cos, sin, np.arange(70), heads=4)
            made = (*made, ops.dropout(x, STATE, p=0.5))
            q, k, v = ops.split_heads(made[1], sizes=(2, 2, 2))
            made = (*made, ops.attention(q, k, v, state=STATE, causal=True, dropout=0.1))
        assert native(call for call in calls if call.op.name != "split_heads")
        for each in made:
            each.backward(drawn(*each.shape), retain_graph=True)
        found.append([x.data for x in (*made, table.grad, x.grad)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("place", [-1, 8])
def test_a_position_outside_the_tables_is_an_error(place: int) -> None:
    with pytest.raises(IndexError, match="of tables of 8"):
        ops.rotary(drawn(1, 2, 3, 4), drawn(8, 2), drawn(8, 2), np.array([0, place]))


@pytest.mark.parametrize("heads", [-1, 4])
def test_heads_that_are_not_there_are_not_turned_by_native_code(heads: int) -> None:
    x, table = drawn(1, 2, 3, 8), drawn(4, 4)
    with record() as calls:
        ops.rotary(x, table, table, np.arange(2), heads=heads)
    assert not native(calls)


@pytest.mark.parametrize(
    ("a", "b", "span"), [((2, 4), (8, 2), (0, 8)), ((2, 6), (3, 2), (0, 8)), ((2, 6), (8, 2), (4, 12))]
)  # fmt: skip
def test_adapters_of_other_shapes_are_an_error(a: Any, b: Any, span: Any) -> None:
    with pytest.raises(ValueError):
        ops.lora(drawn(1, 8), drawn(1, 6), drawn(*a), drawn(*b), spans=(span,), scales=(1.0,))
