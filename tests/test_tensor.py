"""The Tensor's habits are PyTorch's."""

import copy
import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Parameter, Tensor, no_grad, ops
from tinytorch_gpu.core.tensor import enable_grad, grad_enabled


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


# --- making one ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [([1.5, 2], "float32"), (2.0, "float32"), (3, "int64"), ([[1, 2]], "int64"), (True, "bool"),
     (np.zeros(2), "float64"), (np.zeros(2, np.float16), "float16"), (Tensor([1.0]), "float32"),
     ([Tensor([1.0]), Tensor([2.0])], "float32")],
    ids=str,
)  # fmt: skip
def test_dtypes(data: Any, dtype: str) -> None:
    assert Tensor(data).dtype == dtype


def test_an_array_is_kept_not_copied() -> None:
    data = np.zeros(3, np.float32)
    assert Tensor(data).data is data


def test_dtype_and_device_can_be_given() -> None:
    x = Tensor([1, 2], dtype="float16", device="cpu")
    assert x.dtype == "float16" and x.device.name == "cpu"
    assert (x.shape, x.ndim, x.size, len(x)) == ((2,), 1, 2, 2)
    assert "float16" in repr(x) and "requires_grad" not in repr(x)
    assert "requires_grad=True" in repr(leaf(1.0))


@pytest.mark.parametrize("data", ["abc", None, [1, "x"], {}])
def test_what_is_no_number_is_refused(data: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Tensor(data)


def test_only_floats_have_gradients() -> None:
    with pytest.raises(ValueError, match="int64"):
        Tensor([1, 2], requires_grad=True)


def test_a_parameter_wants_a_gradient() -> None:
    assert Parameter(np.zeros(2)).requires_grad
    assert not Parameter(np.zeros(2), requires_grad=False).requires_grad


# --- gradients -------------------------------------------------------------------------------


def test_gradients_accumulate() -> None:
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    (x * 3).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [5, 7])
    x.zero_grad()
    assert x.grad is None


def test_a_tensor_used_twice_gets_both() -> None:
    x = leaf(2.0)
    y = x * x
    (y + y * x).backward()
    assert x.grad.item() == 2 * 2 + 3 * 4


def test_a_long_chain_needs_no_recursion() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(3000):
        y = y + 1
    y.backward()
    assert x.grad.item() == 1


def test_a_second_backward_raises_unless_retained() -> None:
    x = leaf(3.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 12
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()


@pytest.mark.parametrize("shared_first", [False, True])
def test_gradients_that_meet_change_nobody_elses(shared_first: bool) -> None:
    """y has a gradient of its own, and one that z and w have too: they are added, and z's and w's stay."""
    x, w = leaf(1.0, 2.0), leaf(0.5, 0.25)
    for times in (1, 2):
        y, z = x * 2, x * 3
        if shared_first:  # what is made last is gone back through first
            alone = (y * y).exp()
            shared = y + z + w
        else:
            shared = y + z + w
            alone = (y * y).exp()
        start = np.array([1.0, 10.0])
        (shared + alone).backward(start)
        value = x.data * 2
        assert np.allclose(x.grad.data, times * start * (2 + 3 + 4 * value * np.exp(value**2)))
        assert np.array_equal(w.grad.data, times * start)
        assert np.array_equal(start, [1.0, 10.0])


def test_backward_needs_a_scalar_or_a_gradient_that_fits() -> None:
    y = leaf(1.0, 2.0) * 2
    with pytest.raises(RuntimeError, match=r"\(2,\)"):
        y.backward()
    with pytest.raises(ValueError, match=r"\(3,\)"):
        y.backward(np.ones(3))
    with pytest.raises(RuntimeError, match="no gradient"):
        Tensor([1.0]).backward()


def test_no_grad_records_nothing() -> None:
    x = leaf(1.0)
    with no_grad():
        y = x * 2
        with enable_grad():
            z = x * 2
    assert not y.requires_grad and y.is_leaf and z.requires_grad and not z.is_leaf
    assert (x * 2).requires_grad


def test_no_grad_as_a_decorator_may_recurse_and_raise() -> None:
    @no_grad()
    def down(n: int) -> bool:
        if n == 7:
            raise KeyError
        return down(n - 1) if n else grad_enabled()

    assert not down(3)
    assert grad_enabled()
    with pytest.raises(KeyError):
        down(8)
    assert grad_enabled()


def test_no_grad_belongs_to_its_thread() -> None:
    import threading

    found = []
    with no_grad():
        thread = threading.Thread(target=lambda: found.append(grad_enabled()))
        thread.start()
        thread.join()
    assert found == [True]


def test_detach_shares_the_values_and_stops_the_gradient() -> None:
    x = leaf(2.0)
    y = x.detach()
    assert y.data is x.data and not y.requires_grad
    (x * y).backward()
    assert x.grad.item() == 2


def test_requires_grad_can_be_taken_back_from_leaves_only() -> None:
    x = leaf(1.0)
    y = x * 2
    with pytest.raises(ValueError, match="detach"):
        y.requires_grad_(False)
    assert not x.requires_grad_(False).requires_grad


def test_gradients_of_two_leaves_are_two_arrays() -> None:
    """Clipping one in place must not clip the other, nor what backward() was given."""
    a, b, start = leaf(1.0, 2.0), leaf(3.0, 4.0), np.ones(2)
    (a + b).backward(start)
    a.grad.data[...] *= 5
    np.testing.assert_array_equal(b.grad.data, [1, 1])
    np.testing.assert_array_equal(start, [1, 1])


def test_a_leaf_used_twice_leaves_the_gradients_of_others_alone() -> None:
    """What is added in place to a leaf's gradient is not an array that still goes on backwards."""
    a, c = leaf(1.0, 2.0), leaf(0.0, 0.0)
    ((a + (a + c.exp())) * Tensor(np.ones(2))).sum().backward()
    np.testing.assert_array_equal(a.grad.data, [2, 2])
    np.testing.assert_array_equal(c.grad.data, [1, 1])
    ((a + (a + c.exp().reshape(1, 2))) * Tensor(np.ones((1, 2)))).sum().backward()
    np.testing.assert_array_equal(a.grad.data, [4, 4])
    np.testing.assert_array_equal(c.grad.data, [2, 2])


def test_a_gradient_keeps_its_place_in_memory() -> None:
    x, scalar = leaf(1.0, 2.0), leaf(3.0)
    (x * x).sum().backward()
    scalar.exp().backward()
    held, place = x.grad.data, scalar.grad.data
    (x * scalar).sum().backward()
    assert x.grad.data is held and scalar.grad.data is place
    np.testing.assert_array_equal(held, [5, 7])
    assert scalar.grad.item() == np.exp(3.0) + 3


def test_the_backward_frees_what_it_has_passed_without_the_collector() -> None:
    """While the loss still lives: intermediate Tensors, what was saved of them and their gradients."""
    gc.collect()
    gc.disable()
    try:
        x = leaf(*np.ones(1000))
        middle = x.exp()
        alive = [
            weakref.ref(middle),
            weakref.ref(middle.data),
            weakref.ref(middle.node.residuals[0]),
        ]
        loss = (middle * middle).sum()
        del middle
        assert all(r() is not None for r in alive)
        loss.backward()
        assert [r() for r in alive if r() is not x.data] == [None] * 3
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_gradients_can_be_written_to() -> None:
    x = leaf(1.0, 2.0)
    x.sum().backward()
    x.grad.data *= 2
    np.testing.assert_array_equal(x.grad.data, [2, 2])


def test_an_unused_output_counts_nothing() -> None:
    x, r, g = (
        Tensor(np.random.default_rng(i).normal(size=4), requires_grad=True) for i in range(3)
    )
    total, _ = ops.add_rms_norm(x, r, g)
    total.sum().backward()
    np.testing.assert_allclose(x.grad.data, np.ones(4))
    np.testing.assert_allclose(g.grad.data, np.zeros(4))


# --- out of it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "out",
    [np.asarray, np.array, lambda x: x.numpy(), np.from_dlpack],
    ids=["asarray", "array", "numpy", "from_dlpack"],
)
def test_turning_one_that_needs_gradients_into_an_array_raises(out: Any) -> None:
    for x in (leaf(1.0), leaf(1.0) * 2):
        with pytest.raises((RuntimeError, BufferError), match="detach"):
            out(x)
    np.testing.assert_array_equal(out(leaf(1.0).detach()), [1.0])


def test_arrays_share_memory() -> None:
    x = Tensor([1.0, 2.0])
    assert np.shares_memory(x.numpy(), x.data)
    assert np.shares_memory(np.from_dlpack(x), x.data)
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    copied = np.array(x)
    copied[0] = 9
    assert x.data[0] == 1


def test_dlpack_goes_in() -> None:
    class Exported:
        def __init__(self, array: Any):
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    x = Tensor(Exported(np.arange(3.0, dtype=np.float32)))
    assert x.dtype == "float32" and x.tolist() == [0, 1, 2]


def test_bfloat16_has_no_dlpack() -> None:
    pytest.importorskip("ml_dtypes", reason="bfloat16 is ml_dtypes'")
    with pytest.raises(TypeError, match="float32"):
        Tensor([1.0], dtype="bfloat16").__dlpack__()


def test_numbers() -> None:
    assert Tensor([[2.5]]).item() == 2.5 and isinstance(Tensor([2.5]).item(), float)
    assert float(Tensor(2.5)) == 2.5 and int(Tensor([3])) == 3 and bool(Tensor(1.0))
    assert Tensor([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match=r"\(2,\)"):
        Tensor([1.0, 2]).item()
    with pytest.raises(ValueError):
        bool(Tensor([1.0, 2]))
    with pytest.raises(TypeError):
        len(Tensor(1.0))


# --- devices and dtypes ------------------------------------------------------------------------


def test_to_a_dtype_keeps_the_gradient_flowing() -> None:
    x = Tensor(np.array([1.0, 2.0], np.float32), requires_grad=True)
    y = x.to("float16")
    assert y.dtype == "float16" and x.to("float32") is x
    y.sum().backward()
    assert x.grad.dtype == "float32" and x.grad.tolist() == [1, 1]
    with pytest.raises(ValueError, match="int32"):
        x.to("int32")


def test_to_a_device() -> None:
    x = Tensor([1.0])
    assert x.to("cpu") is x and x.cpu() is x
    with pytest.raises(ValueError, match="tpu"):
        x.to("tpu")


def test_copies() -> None:
    x = leaf(1.0, 2.0)
    for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert other.requires_grad and other.tolist() == x.tolist()
        other.data[0] = 9
    assert x.data[0] == 1


def test_arrays_of_two_modules_are_named() -> None:
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is the second module")
    with pytest.raises(ValueError, match=r"cpu.*array_api_strict"):
        ops.add(np.ones(2), strict.ones(2))


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="epsilon"):
        ops.rms_norm(np.ones(3), np.ones(3), epsilon=1e-3)
    with pytest.raises(TypeError, match="'x'"):
        ops.rms_norm(np.ones(3), np.ones(3), x=np.ones(3))
