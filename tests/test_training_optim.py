"""Optimizers and schedules: PyTorch's numbers, exact state, and one launch on a GPU that waits for nobody."""

import math
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Parameter, Tensor, Transformer, device
from tinytorch_gpu.backend import dtype as dtype_called
from tinytorch_gpu.host import optimizer as host_optimizer
from tinytorch_gpu.training import SGD, AdamW, LossScaler, clip_grad_norm, decay_groups
from tinytorch_gpu.training.schedules import ConstantSchedule, CosineSchedule

SHAPES = ((3, 5), (7,), (2, 3, 4), (1,), ())
ADAMW: list[dict[str, Any]] = [
    {"lr": 1e-2},
    {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3},
    {"lr": 1e-2, "betas": (0.0, 0.0), "eps": 1e-2, "weight_decay": 0.0},
]
SGDS: list[dict[str, Any]] = [
    {"lr": 0.1},
    {"lr": 0.05, "weight_decay": 0.1},
    {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
]
EVERY = [*((AdamW, options) for options in ADAMW), *((SGD, options) for options in SGDS)]
ALL = pytest.mark.parametrize(
    ("kind", "options"), EVERY, ids=lambda x: getattr(x, "__name__", str(x))
)


def drawn(dtype: Any, seed: int = 0) -> list[Any]:
    """Random arrays of several shapes."""
    random = np.random.default_rng(seed)
    return [
        np.asarray(random.standard_normal(shape)).astype(dtype_called(dtype)) for shape in SHAPES
    ]


def parameters(dtype: Any, place: str = "cpu") -> list[tuple[str, Parameter]]:
    there = device(place)
    return [(f"p{i}", Parameter(there.asarray(x))) for i, x in enumerate(drawn(dtype))]


def give(params: list[tuple[str, Parameter]], step: int, dtype: Any = None) -> None:
    """New gradients, of the parameter's dtype or ``dtype``, in the same arrays where there are some."""
    for (_, p), values in zip(
        params, drawn(dtype or p_dtype(params), seed=100 + step), strict=True
    ):
        there = p.device.asarray(values)
        if p.grad is None:
            p.grad = Tensor(there)
        else:
            p.grad.data[...] = there


def p_dtype(params: list[tuple[str, Parameter]]) -> str:
    return params[0][1].dtype.name


def values(params: list[tuple[str, Parameter]]) -> list[Any]:
    return [p.data if p.device.kind == "cpu" else p.data.get() for _, p in params]


def wide(x: Any) -> Any:
    return np.asarray(x, np.float64)


# --- against PyTorch ---
@ALL
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-6)])
def test_fifty_steps_are_pytorchs(kind: Any, options: Any, dtype: str, bound: float) -> None:
    """PyTorch's are in float64: in float32 it rounds 1 - rate * decay, the same way in every step,
    and is further (2e-6 with the second settings) from its own float64 steps than these are."""
    torch = pytest.importorskip("torch")
    ours = parameters(dtype)
    theirs = [torch.nn.Parameter(torch.tensor(wide(x))) for x in drawn(dtype)]
    optimizer, peer = kind(ours, **options), getattr(torch.optim, kind.__name__)(theirs, **options)
    for step in range(50):
        give(ours, step)
        for p, x in zip(theirs, drawn(dtype, seed=100 + step), strict=True):
            p.grad = torch.tensor(wide(x))
        optimizer.step()
        peer.step()
    for made, expected in zip(values(ours), theirs, strict=True):
        np.testing.assert_allclose(made, expected.detach().numpy(), rtol=bound, atol=bound)


def test_groups_have_their_own_decay_and_rate() -> None:
    torch = pytest.importorskip("torch")
    ours = parameters("float64")
    theirs = [torch.nn.Parameter(torch.tensor(x)) for x in drawn("float64")]
    optimizer = AdamW(
        [{"params": ours[:2], "weight_decay": 0.5}, {"params": ours[2:], "lr": 0.1}], lr=0.01
    )
    peer = torch.optim.AdamW(
        [{"params": theirs[:2], "weight_decay": 0.5}, {"params": theirs[2:], "lr": 0.002}], lr=0.02
    )
    optimizer.lr = 0.02  # as a schedule sets it
    for step in range(5):
        give(ours, step)
        for p, x in zip(theirs, drawn("float64", seed=100 + step), strict=True):
            p.grad = torch.tensor(x)
        optimizer.step()
        peer.step()
    for made, expected in zip(values(ours), theirs, strict=True):
        np.testing.assert_allclose(made, expected.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipping_is_pytorchs(max_norm: float) -> None:
    torch = pytest.importorskip("torch")
    params = parameters("float64")
    give(params, 0)
    theirs = [torch.nn.Parameter(torch.tensor(x)) for x in drawn("float64")]
    for p, x in zip(theirs, drawn("float64", seed=100), strict=True):
        p.grad = torch.tensor(x)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    norm, scale = clip_grad_norm(params, max_norm)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-12)
    for (_, p), peer in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p.grad.data * scale.data, peer.grad.numpy(), rtol=1e-12)


# --- 16 bits ---
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@ALL
def test_16_bit_parameters_are_rounded_from_their_masters(
    kind: Any, options: Any, dtype: str
) -> None:
    """Steps far below the spacing of the 16-bit numbers are not lost."""
    pytest.importorskip("ml_dtypes")
    halves = parameters(dtype)
    exact = [(n, Parameter(p.data.astype(np.float32))) for n, p in halves]
    made, expected = kind(halves, **options), kind(exact, **options)
    for step in range(20):
        give(halves, step, "float32")
        give(exact, step, "float32")
        made.step()
        expected.step()
    for (name, half), (_, single) in zip(halves, exact, strict=True):
        np.testing.assert_array_equal(made.state[name]["master"], single.data)
        np.testing.assert_array_equal(half.data, single.data.astype(half.dtype))


# --- on the devices that run kernels ---
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@ALL
def test_a_device_steps_as_the_cpu_does(kind: Any, options: Any, dtype: str, gpu: str) -> None:
    pytest.importorskip("ml_dtypes")
    here, there = parameters(dtype), parameters(dtype, gpu)
    pair = kind(here, **options), kind(there, **options)
    for step in range(4):
        for params, optimizer in zip((here, there), pair, strict=True):
            give(params, step)
            optimizer.step(clip_grad_norm(params, 2.0)[1])
    # The lengths of the gradients are sums in another order.
    bound = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    for a, b in zip(values(here), values(there), strict=True):
        np.testing.assert_allclose(wide(b), wide(a), rtol=bound, atol=bound)
    for name, slots in pair[0].state.items():
        for slot, x in slots.items():
            np.testing.assert_allclose(pair[1].state[name][slot].get(), x, rtol=1e-5, atol=1e-5)


def test_all_tensors_are_stepped_in_one_launch(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinytorch_gpu.cuda import optimizer as launchers

    made: list[int] = []
    build, many = launchers.TensorTable, launchers.adamw_many
    monkeypatch.setattr(launchers, "TensorTable", lambda *a: made.append(0) or build(*a))
    monkeypatch.setattr(launchers, "adamw_many", lambda *a, **o: made.append(1) or many(*a, **o))
    params = parameters("float32", gpu)
    optimizer = AdamW(params)
    for step in range(3):
        give(params, step)
        optimizer.step()
    assert made == [0, 1, 1, 1]  # gradients that stay where they are need no new table
    kept = [p.grad for _, p in params]  # so that the new ones lie elsewhere
    optimizer.zero_grad()
    give(params, 3)
    optimizer.step()
    assert made == [0, 1, 1, 1, 0, 1] and len(kept) == len(params)


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_step_waits_for_nothing(kind: Any, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters("float32", gpu)
    optimizer = kind(params, lr=0.1)
    give(params, 0)
    arrays = type(params[0][1].data)
    if gpu == "emulated":
        monkeypatch.setattr(arrays, "get", lambda self: pytest.fail("a copy to the host"))
    else:
        from tinytorch_gpu import backend

        monkeypatch.setattr(backend, "to_numpy", lambda x: pytest.fail("a copy to the host"))
    optimizer.step(clip_grad_norm(params, 1.0)[1])


# --- a step that is skipped ---
@ALL
def test_a_scale_of_0_skips_a_step(kind: Any, options: Any) -> None:
    params = parameters("float32")
    optimizer = kind(params, **options)
    give(params, 0)
    optimizer.step()
    before = {n: np.copy(x) for n, x in optimizer.state_dict().items()}
    weights = [np.copy(x) for x in values(params)]
    params[0][1].grad.data[0, 0] = np.inf
    norm, scale = clip_grad_norm(params, 1.0)
    assert norm.item() == math.inf and scale.item() == 0
    optimizer.step(scale)
    for a, b in zip(values(params), weights, strict=True):
        np.testing.assert_array_equal(a, b)
    for name, x in optimizer.state_dict().items():
        np.testing.assert_array_equal(x, before[name])


def test_a_parameter_without_a_gradient_stays() -> None:
    params = parameters("float32")
    give(params, 0)
    params[1][1].grad = None
    before = params[1][1].data.copy()
    AdamW(params).step()
    np.testing.assert_array_equal(params[1][1].data, before)


# --- state ---
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@ALL
def test_a_resumed_optimizer_goes_on_to_the_last_bit(kind: Any, options: Any, dtype: str) -> None:
    params = parameters(dtype)
    optimizer = kind(params, **options)
    for step in range(6):
        if step == 3:
            saved = {n: np.copy(x) for n, x in optimizer.state_dict().items()}
            weights = [np.copy(x) for x in values(params)]
        give(params, step)
        optimizer.step()
    again = [(n, Parameter(x)) for (n, _), x in zip(params, weights, strict=True)]
    resumed = kind(again, **options)
    resumed.load_state_dict(saved)
    for step in range(3, 6):
        give(again, step)
        resumed.step()
    for a, b in zip(values(again), values(params), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, x in optimizer.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name], x)


def test_state_moves_between_devices(gpu: str) -> None:
    here, there = parameters("float32"), parameters("float32", gpu)
    source, target = AdamW(here), AdamW(there)
    give(here, 0)
    source.step()
    target.load_state_dict(source.state_dict())
    for name, x in target.state_dict().items():
        np.testing.assert_array_equal(x if name == "step" else x.get(), source.state_dict()[name])


def test_state_that_does_not_fit_is_told_and_changes_nothing() -> None:
    params = parameters("float32")
    optimizer = AdamW(params)
    good = optimizer.state_dict()
    for bad, message in (
        ({n: x for n, x in good.items() if n != "p1/first"}, "missing .*p1/first"),
        ({**good, "extra/first": np.zeros(3)}, "unexpected .*extra/first"),
        ({n: x for n, x in good.items() if n != "step"}, "does not fit"),
        ({**good, "p4/second": np.ones((2, 2)), "p0/first": np.ones((3, 5))}, r"\(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(bad)
        assert not any(np.any(x) for x in optimizer.state_dict().values())


# --- what the caller gets wrong ---
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: AdamW([]), "at least one"),
        (lambda p: AdamW(p, lr=-1), "-1"),
        (lambda p: AdamW(p, betas=(0.9, 1.0)), r"\(0.9, 1.0\)"),
        (lambda p: AdamW(p, weight_decay=-0.5), "-0.5"),
        (lambda p: AdamW([{"params": p, "rate": 1}]), "rate"),
        (lambda p: AdamW([*p, p[0]]), "p0"),
        (lambda p: SGD(p, 0.1, momentum=1.5), "1.5"),
        (lambda p: SGD(p, 0.1, nesterov=True), "momentum"),
        (lambda p: clip_grad_norm(p, 1.0), "backward"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(parameters("float32"))


def test_a_tensor_is_no_parameter() -> None:
    with pytest.raises(TypeError, match="Tensor"):
        AdamW([Tensor(np.ones(3))])


def test_matrices_decay_and_vectors_do_not() -> None:
    model = Transformer(11, 8, 2, 1, 16, 8, device="cpu", seed=0)
    groups = decay_groups(model, 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert all(p.ndim > 1 for _, p in groups[0]["params"])
    assert all(p.ndim == 1 for _, p in groups[1]["params"])
    assert sum(len(g["params"]) for g in groups) == len(model.parameters())


# --- schedules and the loss scale ---
def test_a_constant_schedule_rises_and_stays() -> None:
    schedule = ConstantSchedule(0.4, warmup=3)
    assert [schedule(i) for i in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_a_cosine_schedule_rises_and_falls() -> None:
    schedule = CosineSchedule(1.0, warmup=4, steps=14, min_lr=0.2)
    rates = [schedule(i) for i in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[9] == pytest.approx(0.6)  # half way
    assert rates[4:15] == sorted(rates[4:15], reverse=True)
    assert rates[14:] == [0.2] * 6


def test_a_schedule_without_warmup_begins_at_the_top() -> None:
    assert CosineSchedule(0.3, 0, 10)(0) == ConstantSchedule(0.3)(0) == 0.3


def test_a_warmup_longer_than_the_run_is_told() -> None:
    with pytest.raises(ValueError, match="20"):
        CosineSchedule(1.0, warmup=20, steps=10)


def test_the_loss_scale_halves_and_doubles() -> None:
    scaler = LossScaler(8.0, patience=2)
    scaler.update(False)
    assert scaler.scale == 4.0
    scaler.update(True)
    again = LossScaler(patience=2)
    again.load_state_dict(scaler.state_dict())
    for each in (scaler, again):
        each.update(True)
        assert each.scale == 8.0 and each.good == 0


def test_the_loss_scale_has_an_end() -> None:
    scaler = LossScaler(1.0)
    with pytest.raises(FloatingPointError, match="1"):
        scaler.update(False)


def test_tensors_of_few_values_change_together_as_each_would_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_optimizer, "CHUNK", 64)
    monkeypatch.setattr(host_optimizer, "FEW", 32)
    rng = np.random.default_rng(3)
    shapes = [(3,), (5, 4), (40,), (4, 6), (9, 9), (1,), (2, 7)]

    def drawn() -> list[tuple[Any, ...]]:
        made = []
        for i, shape in enumerate(shapes):
            w, g, m, v = (rng.normal(size=shape).astype(np.float32) for _ in range(4))
            five = (w, g, m, v * v)
            made.append((*(np.asfortranarray(x) if i % 2 else x for x in five), None))
        return made

    alone = drawn()
    together = [tuple(x if x is None else x.copy(order="K") for x in five) for five in alone]
    assert max(map(len, host_optimizer._pieces(host_optimizer.flat_tensors(together) or []))) > 1
    numbers = np.array(1e-2, np.float32), np.array(3), np.array(0.5, np.float32)

    def step(tensors: Any) -> None:
        flat = host_optimizer.flat_tensors(tensors)
        assert flat is not None
        host_optimizer.adamw_many(flat, *numbers, weight_decay=0.1)

    for five in alone:
        step([five])
    step(together)
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one[:4], other[:4], strict=True):
            np.testing.assert_array_equal(a, b)
