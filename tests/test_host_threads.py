"""Work that a backward puts off: the gradients are the same to the last bit, whoever made them and when."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Parameter, Tensor, Transformer, TransformerConfig, ops
from tinytorch_gpu.core import graph
from tinytorch_gpu.host import linear_backward, threads
from tinytorch_gpu.training import CrossEntropyLoss

CONFIG = TransformerConfig(65, 64, 4, 2, 256, 64, tie_embeddings=True, position="learned")
IDS = np.random.default_rng(0).integers(0, 65, (2, 8, 64))


@pytest.fixture(autouse=True)
def by_numpy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Linear maps by host/, where native code would make them otherwise; the threads as before afterwards."""
    ahead = [m for m in ops.linear.makers["cpu"] if m.backward is linear_backward.backward]
    monkeypatch.setitem(ops.linear.makers, "cpu", ahead)
    before = threads.threads()
    yield
    threads.set_threads(before)


def gradients(count: int, recompute: bool = False, times: int = 1) -> dict[str, Any]:
    """Of a model's parameters, with ``count`` threads, added up over ``times`` backwards."""
    threads.set_threads(count)
    if threads.threads() != count:
        pytest.skip("the number of threads of this BLAS cannot be told")
    model = Transformer.from_config(CONFIG, device="cpu", seed=0)
    model.recompute = recompute
    for _ in range(times):
        CrossEntropyLoss()(model(IDS[0]), IDS[1]).backward()
        assert threads.threads() == count, "the BLAS has its threads back"
    return {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_are_those_of_a_backward_that_waits(
    recompute: bool, times: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(linear_backward, "put_off", lambda *_: False)
        waited = gradients(count, recompute, times)
    for _ in range(3):
        late = gradients(count, recompute, times)
        assert all(np.array_equal(waited[n], late[n]) for n in waited)


@pytest.mark.parametrize("cut", [threads.split, threads.unequal])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_hold_every_row_once(cut: threads.Cut, count: int) -> None:
    threads.set_threads(count)
    for rows, most in ((0, 0), (1, 1), (7, 2), (96, 1), (768, 8), (1000, 10)):
        parts = cut(rows, most)
        assert [i for part in parts for i in range(rows)[part]] == list(range(rows))
        assert len(parts) <= max(1, most)
    if cut is threads.unequal and threads.threads() == count > 1:
        own, *others = (part.stop - part.start for part in parts)
        assert len(others) == count - 1 and all(own > 1.5 * other for other in others)


def test_weight_gradients_are_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    said, put_off = [], threads.put_off

    def noted(*given: Any) -> bool:
        said.append(put_off(*given))
        return said[-1]

    monkeypatch.setattr(threads, "put_off", noted)
    gradients(2)
    assert len(said) >= 4 * CONFIG.num_layers and all(said)


def test_a_gradient_is_there_before_anything_reads_it() -> None:
    """One weight in two maps, another through a product: both are read in the midst of the backward."""
    random = np.random.default_rng(1)
    shared, factor = (random.standard_normal((256, 256)) for _ in range(2))
    x = random.standard_normal((256, 256))

    def run(count: int) -> list[Any]:
        threads.set_threads(count)
        w, f = Parameter(shared.copy()), Parameter(factor.copy())
        hidden = ops.linear(ops.linear(Tensor(x), w), w)
        ops.linear(hidden, w * f).sum().backward()
        assert w.grad is not None and f.grad is not None
        return [w.grad.numpy(), f.grad.numpy()]

    for _ in range(5):
        for one, two in zip(run(1), run(2), strict=True):
            assert np.array_equal(one, two)


def test_an_error_in_what_was_put_off_is_raised_by_the_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(linear_backward._Sums, "_fill", broken)
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            gradients(2)
        assert graph._late.waits is None and threads.threads() == 2
    monkeypatch.undo()
    assert gradients(2)


def test_nothing_is_put_off_outside_of_a_backward() -> None:
    assert not graph.put_off([np.zeros(3)], lambda: True, threads.settle)
