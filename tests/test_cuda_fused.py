"""What the CUDA makers offer beyond the operations: several of them in one pass. On the emulated
device, against the operations' references. Needs a C++ compiler."""

from typing import Any

import numpy as np
import pytest
from emulated_device import emulated_device

from tinytorch_gpu import backend, emulated
from tinytorch_gpu.core.op import OPS
from tinytorch_gpu.cuda import loss as loss_makers
from tinytorch_gpu.cuda import optimizer as optimizer_makers
from tinytorch_gpu.cuda.activation import column_sums
from tinytorch_gpu.cuda.embedding import embed
from tinytorch_gpu.cuda.optimizer import TensorTable, adamw_many
from tinytorch_gpu.cuda.sampling import penalized_sample

EMULATED = emulated_device()

there = EMULATED.asarray


def _wide(x: Any) -> Any:
    return x.astype(np.float64) if x is not None and x.dtype.kind not in "iub" else x


# --- the loss and its gradient ------------------------------------------------------------------


@pytest.mark.parametrize("fits", [True, False], ids=["on chip", "read again"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("rows", "classes"), [(9, 33), (3, 1), (2, 1029), (10, 8), (0, 5)])
def test_loss_and_gradient_at_once(
    rows: int, classes: int, dtype: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fits:
        monkeypatch.setattr(loss_makers, "shared_limit", lambda like: 0)
    random = np.random.default_rng(rows)
    logits = (random.standard_normal((rows, classes)) * 3).astype(backend.dtype(dtype))
    targets = random.integers(0, classes, rows)
    targets[::4] = -7
    options = {"ignore_index": -7, "label_smoothing": 0.1}
    op = OPS["cross_entropy"]
    loss, saved = op.reference(_wide(logits), targets, **options)
    expected = op.reference_backward(saved, np.asarray(1.0), **options)[0]
    device_logits = there(logits)
    for out in (None, device_logits):  # the second writes over what it reads
        found, gradient = loss_makers.cross_entropy_with_gradient(
            device_logits, there(targets), out=out, **options
        )
        np.testing.assert_allclose(found.get(), loss, rtol=1e-5, atol=1e-6)
        assert gradient.dtype == logits.dtype
        unit = {"float32": 1e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
        np.testing.assert_allclose(_wide(gradient.get()), expected, rtol=0, atol=unit)


def test_loss_and_gradient_refuse_what_no_kernel_takes() -> None:
    logits, targets = EMULATED.zeros((2, 3), "float64"), EMULATED.zeros(2, "int64")
    with pytest.raises(ValueError, match="no kernel"):
        loss_makers.cross_entropy_with_gradient(logits, targets)
    logits = EMULATED.zeros((2, 3))
    with pytest.raises(ValueError, match="out must be"):
        loss_makers.cross_entropy_with_gradient(logits, targets, out=EMULATED.zeros((3, 2)))


@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_outside_the_classes_is_not_a_number(target: int) -> None:
    """The caller has excluded it where the host knows the targets; no other memory is read."""
    logits, targets = there(np.ones((2, 5), np.float32)), there(np.array([target, 0]))
    loss, gradient = loss_makers.cross_entropy_with_gradient(logits, targets)
    assert np.isnan(loss.get())
    np.testing.assert_allclose(gradient.get()[1], [-0.4, 0.1, 0.1, 0.1, 0.1], rtol=1e-6)
    options = {"ignore_index": -100, "label_smoothing": 0.0}
    forward = OPS["cross_entropy"].makers["cuda"][0].forward(logits, targets, **options)
    assert np.isnan(forward[0].get())


# --- tokens and positions -----------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("width", "dtype"), [(8, "float32"), (7, "float16"), (16, "bfloat16")])
def test_embed_adds_positions(width: int, dtype: str, batched: bool) -> None:
    random = np.random.default_rng(width)
    table, positions = (
        random.standard_normal((rows, width)).astype(backend.dtype(dtype)) for rows in (9, 6)
    )
    ids = random.integers(0, 9, (2, 5))
    places = random.integers(0, 6, (2, 5) if batched else 5)
    made = embed(there(ids), there(table), there(places), there(positions),
                 dtype=np.dtype("float32"), scale=2.0)  # fmt: skip
    expected = 2 * _wide(table)[ids] + _wide(positions)[places]
    np.testing.assert_allclose(made.get(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_an_id_outside_the_table_is_not_a_number(wrong: int) -> None:
    table = there(np.ones((3, 8), np.float32))
    for ids, places in (([0, wrong], [0, 1]), ([0, 2], [0, wrong])):
        made = embed(there(np.array(ids)), table, there(np.array(places)), table).get()
        assert (made[0] == 2).all() and np.isnan(made[1]).all()


def test_embed_refuses_what_does_not_fit() -> None:
    ids, table = EMULATED.zeros((2, 5), "int64"), EMULATED.zeros((3, 4))
    with pytest.raises(ValueError, match="do not fit"):
        embed(ids, table, EMULATED.zeros(4, "int64"), table)
    with pytest.raises(ValueError, match="differ"):
        embed(ids, table, ids, EMULATED.zeros((3, 8)))
    with pytest.raises(ValueError, match="no kernel"):
        embed(ids, EMULATED.zeros((3, 4), "float64"), ids, table)


# --- sampling with a penalty --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_penalized_sample_is_three_operations(temperature: float, dtype: str) -> None:
    random, rows = np.random.default_rng(3), 5
    logits = (random.standard_normal((rows, 301)) * 3).astype(backend.dtype(dtype))
    seen = random.random(logits.shape) < 0.5
    penalty = np.array([1.0, 1.2, 2.0, 5.0, 0.5], np.float32)
    each = [np.full(rows, v, np.float32) for v in (temperature, 0.9, 0.01)]
    rest = (each[0], np.full(rows, 50), *each[1:], np.array([5, 6], np.uint64))
    marks = there(seen)
    ids = penalized_sample(there(logits), marks, there(penalty), *map(there, rest)).get()
    expected = OPS["sample"].reference(OPS["penalize"].reference(logits, seen, penalty), *rest)
    np.testing.assert_array_equal(ids, expected)
    seen[np.arange(rows), ids] = True
    np.testing.assert_array_equal(marks.get(), seen)


# --- all tensors in one launch --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("param", "grad", "masters"),
    [("float32", "float32", False), ("bfloat16", "bfloat16", True), ("float16", "float32", True)],
)
def test_adamw_of_many_tensors(param: str, grad: str, masters: bool) -> None:
    random = np.random.default_rng(1)
    shapes = ((3, 8), (1,), (8193,), (0,), (33,))
    tensors = []
    for shape in shapes:
        p, g = (random.standard_normal(shape).astype(backend.dtype(d)) for d in (param, grad))
        m, v, w = (random.standard_normal(shape).astype(np.float32) for _ in range(3))
        tensors.append([p, g, m, v * v, w if masters else None])
    on_device = [[None if x is None else there(x) for x in five] for five in tensors]
    columns = [list(column) for column in zip(*on_device, strict=True)]
    table = TensorTable(*columns[:4], columns[4] if masters else None)

    with emulated.recorded() as launches:
        norm = OPS["gradient_norm"](*(five[1] for five in on_device)).data
        scale = OPS["clip_scale"](norm, max_norm=10.0).data
        rate, step = np.asarray(1e-2, np.float32), np.asarray(4)
        adamw_many(table, there(rate), there(step), scale)
    assert len(launches) == 4
    expected = OPS["gradient_norm"].reference(*(_wide(five[1]) for five in tensors))
    np.testing.assert_allclose(norm.get(), expected, rtol=1e-6)
    np.testing.assert_allclose(scale.get(), 10 / expected, rtol=1e-6)
    for found, given in zip(on_device, tensors, strict=True):
        truth = [_wide(x) for x in given]
        OPS["adamw"].reference(*truth, _wide(rate), step, _wide(scale.get()))
        for a, t in zip(found, truth, strict=True):
            if a is not None:
                unit = {"float32": 1e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}[a.dtype.name]
                np.testing.assert_allclose(_wide(a.get()), t, rtol=unit, atol=unit)


def test_a_table_refuses_what_does_not_fit() -> None:
    x = EMULATED.zeros(8)
    with pytest.raises(ValueError, match="no tensors"):
        TensorTable([], [], [], [])
    with pytest.raises(ValueError, match="tensor 0"):
        TensorTable([x], [x], [x], [x[:4]])
    with pytest.raises(ValueError, match="tensor 1"):
        TensorTable([x, x], [x, x], [x, x], [x, EMULATED.zeros(8, "float64")])


# --- a device of many processors: more partial sums than one pass adds up --------------------------


def test_the_norm_gradients_of_many_blocks() -> None:
    random = np.random.default_rng(5)
    x, dout = (random.standard_normal((1280, 8)).astype(np.float32) for _ in range(2))
    parameters = [random.standard_normal(8).astype(np.float32) for _ in range(2)]
    op = OPS["layer_norm"]
    truth = op.reference_backward(op.reference(*map(_wide, (x, *parameters)))[1], _wide(dout))
    with emulated.using(processors=32):
        maker = op.makers["cuda"][0]
        made = maker.backward(maker.forward(*map(there, (x, *parameters)))[1], there(dout))
    for found, expected in zip(made, truth, strict=True):
        np.testing.assert_allclose(found.get(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("rows", "of"), [(2000, "float32"), (2000, "float16"), (9, "float16"), (9, "float32")]
)
def test_column_sums(rows: int, of: str, dtype: str) -> None:
    x = np.random.default_rng(6).standard_normal((rows, 40)).astype(of)
    with emulated.using(processors=64), emulated.recorded() as launches:
        made = column_sums(there(x), np.dtype(dtype))
    assert launches[0].grid[1] > 8 if rows == 2000 else launches[0].grid[1] == 1
    assert made.dtype == dtype
    close = 1e-4 if dtype == "float32" else 2e-3
    np.testing.assert_allclose(made.get(), x.sum(0, dtype=np.float64), rtol=close, atol=close)


def test_the_length_of_very_many_gradients() -> None:
    """More partial sums than a block has threads, which 8 million gradients would leave."""
    sums = np.arange(3000, dtype=np.float32)
    norm, variant = EMULATED.zeros(()), {"PARAM": "float", "GRAD": "float"}
    optimizer_makers._length_kernel(1, 1024, there(sums), len(sums), norm, **variant)
    np.testing.assert_allclose(norm.get(), np.sqrt(sums.sum(dtype=np.float64)), rtol=1e-6)
