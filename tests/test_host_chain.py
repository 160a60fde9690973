"""Operations that wait for each other in a model's layers: the same values to the last bit, there before anybody looks."""

import contextlib
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Tensor, Transformer, TransformerConfig, no_grad, nvtx, ops
from tinytorch_gpu.config import FAMILIES
from tinytorch_gpu.core import deferred
from tinytorch_gpu.core.layers import PositionwiseFeedForward
from tinytorch_gpu.core.op import OPS, record
from tinytorch_gpu.host import chain, threads
from tinytorch_gpu.training import CrossEntropyLoss

GPT2, LLAMA, BERT = FAMILIES["gpt2"], FAMILIES["llama"], FAMILIES["bert"]
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT2, "num_heads": 2},
    "gpt2, long rows": GPT2,
    "llama": {**LLAMA, "num_kv_heads": 2},
    "q/k norm": {**LLAMA, "qk_norm": True},
    "bert": {**BERT, "head": True},
    "course": {},
    "post-norm": {"pre_norm": False},
    "dropout": {"dropout": 0.2},
    "window": {**GPT2, "sliding_window": 20},
    "relative": {"position": "relative", "relative_buckets": 8},
    "no norms": {**GPT2, "norm": "none"},
}
IDS = np.random.default_rng(0).integers(0, 65, (2, 12, 64))


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """NumPy's makers, where native code would be ahead of them; new arrays are full of NaN, until they are made."""
    for op in OPS.values():
        makers = op.makers.get("cpu", [])
        own = [m for m in makers if ".native" not in m.forward.__module__]
        monkeypatch.setitem(op.makers, "cpu", own)
    empty = np.empty

    def unmade(*given: Any, **options: Any) -> Any:
        array = empty(*given, **options)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", unmade)
    before = threads.threads()
    threads.set_threads(2)
    if threads.threads() != 2:
        pytest.skip("the number of threads of this BLAS cannot be told")
    yield
    assert not deferred.waiting()
    threads.set_threads(before)


def model_of(name: str) -> Transformer:
    choices = {"num_heads": 4, **MODELS[name]}
    config = TransformerConfig(65, 64, choices.pop("num_heads"), 3, 128, 64, **choices)
    return Transformer.from_config(config, device="cpu", dtype="float64", seed=0)


def step(model: Transformer) -> list[Any]:
    """Logits and gradients."""
    logits = model(IDS[0])
    CrossEntropyLoss()(logits, IDS[1]).backward()
    found = [logits.detach().numpy()]
    for parameter in model.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad.numpy())
    return found


def same(one: list[Any], other: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Nothing waits."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chain, "defer", lambda finish: False)
        yield


class Finished:
    """How many works were done together, each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.counts: list[int] = []
        finish = chain._finish

        def noted() -> None:
            self.counts.append(len(chain._chain.works))
            finish()

        monkeypatch.setattr(chain, "_finish", noted)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_one_operation_after_the_other(
    name: str, recompute: bool
) -> None:
    model, other = model_of(name), model_of(name)
    model.recompute = other.recompute = recompute
    with at_once():
        wanted = step(other)
    assert all(np.isfinite(x).all() for x in wanted)
    assert same(wanted, step(model))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_recorded_equals_what_is_not(name: str) -> None:
    model = model_of(name)
    model.eval()
    recorded = model(IDS[0]).detach().numpy()
    with no_grad():
        assert np.array_equal(recorded, model(IDS[0]).numpy())


def test_a_model_s_layers_are_done_together(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = Finished(monkeypatch)
    for name in ("gpt2", "llama"):
        finished.counts.clear()
        model = model_of(name)
        model(IDS[0])
        # norm, linear, attention, linear, norm, linear, linear (and the turn of heads); the last norm and the head
        assert finished.counts == [(8 if name == "llama" else 7) * 3 + 2]
    finished.counts.clear()
    model.recompute = True
    model(IDS[0])
    assert finished.counts == [8, 8, 8, 2], "a block's result is there before it is kept"


def test_no_more_waits_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    wanted = model(IDS[0]).detach().numpy()
    finished = Finished(monkeypatch)
    monkeypatch.setattr(chain, "WAITING", 1 << 21)
    assert np.array_equal(wanted, model(IDS[0]).detach().numpy())
    assert len(finished.counts) > 3 and sum(finished.counts) == 23


def test_nothing_waits_outside_of_a_model_s_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = Finished(monkeypatch)
    x = np.random.default_rng(1).standard_normal((768, 64))
    weight = np.random.default_rng(2).standard_normal((64, 64))
    out = ops.linear(Tensor(x), Tensor(weight))
    assert not deferred.waiting() and np.allclose(out._data, x @ weight.T)
    assert not finished.counts


def test_a_range_shows_all_of_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = model_of("gpt2")(IDS[0]).detach().numpy()
    finished = Finished(monkeypatch)

    class Domain:
        def get_event_attributes(self, **given: Any) -> Any:
            return types.SimpleNamespace(**given)

        def push_range(self, given: Any) -> None:
            assert not deferred.waiting()

        def pop_range(self) -> None:
            assert not deferred.waiting()

    nvtx.enable(Domain())
    try:
        assert np.array_equal(wanted, model_of("gpt2")(IDS[0]).detach().numpy())
    finally:
        nvtx.disable()
    assert set(finished.counts) == {1}


def test_a_recorded_call_has_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = Finished(monkeypatch)
    with record() as calls:
        model_of("llama")(IDS[0])
    assert set(finished.counts) == {1}
    results = [r for c in calls for r in (c.result if isinstance(c.result, tuple) else [c.result])]
    assert all(np.isfinite(r).all() for r in results)


class Reading(PositionwiseFeedForward):
    """Somebody's own part of a block, which looks at what it is given."""

    def forward(self, x: Any, residual: Tensor | None = None) -> Tensor:
        self.seen = self.look(x)
        return super().forward(x, residual)

    look: Callable[[Any], Any]


LOOKS: dict[str, Callable[[Any], Any]] = {
    "data": lambda x: x.data.copy(),
    "numpy": lambda x: x.detach().numpy().copy(),
    "item": lambda x: [row.item() for row in x[0, 0]],
    "tolist": lambda x: x.tolist(),
    "comparison": lambda x: (x == x).data,
    "argmax": lambda x: x.argmax().data,
    "dlpack": lambda x: np.from_dlpack(x.detach()).copy(),
    "reshape": lambda x: x.reshape(-1).data.copy(),
    "permute": lambda x: x.permute(1, 0, 2).reshape(-1).data.copy(),
    "permute, not recorded": lambda x: x.detach().permute(1, 0, 2).reshape(-1).data.copy(),
    "elements": lambda x: x[[1, 0], [2, 3]].data.copy(),
    "sum": lambda x: x.sum().item(),
    "linear of rows that are not": lambda x: ops.linear(x.transpose(0, 1), Tensor(np.eye(64))).data,
    "a norm of rows that are not": lambda x: ops.rms_norm(x.transpose(0, 1), Tensor(np.ones(64))).data,
    "repr": repr,
}  # fmt: skip


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("how", LOOKS)
def test_whoever_looks_sees_values(how: str, recorded: bool) -> None:
    seen = []
    for waits in (False, True):
        model = model_of("gpt2")
        block = model.transformer_blocks[1]
        block.ffn.__class__ = Reading
        block.ffn.look = LOOKS[how]  # type: ignore[attr-defined]
        mode = contextlib.nullcontext() if recorded else no_grad()
        with contextlib.nullcontext() if waits else at_once(), mode:
            model(IDS[0])
        seen.append(block.ffn.seen)  # type: ignore[attr-defined]
    assert np.array_equal(seen[0], seen[1])


def heads_of(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Views of a product that is not there yet, none of them contiguous."""
    packed = ops.linear(x, weight).reshape(*x.shape[:2], 12, 16)
    assert deferred.waiting() or chain.defer is not deferred.defer
    queries, keys, values = ops.split_heads(packed, sizes=(4, 4, 4))
    return queries, keys, values


TABLES = np.cos(np.ones((64, 8))), np.sin(np.ones((64, 8))), np.arange(64)
VIEWS: dict[str, Callable[..., Tensor]] = {
    "reshape": lambda q, k, v: v.reshape(-1),
    "linear": lambda q, k, v: ops.linear(v, Tensor(np.eye(16))),
    "residual": lambda q, k, v: ops.linear(Tensor(np.ones((12, 64, 4, 16))), Tensor(np.eye(16)), None, v),
    "norm": lambda q, k, v: ops.rms_norm(v, Tensor(np.ones(16))),
    "layer norm": lambda q, k, v: ops.layer_norm(v, Tensor(np.ones(16)), Tensor(np.ones(16))),
    "rotary": lambda q, k, v: ops.rotary(v, *TABLES),
    "attention": lambda q, k, v: ops.attention(q, k, v, causal=True),
    "other rows": lambda q, k, v: ops.linear(Tensor(np.ones((2000, 16))), Tensor(np.eye(16))).reshape(125, -1) + v.sum(),
    "fewer rows": lambda q, k, v: ops.linear(Tensor(np.ones((7, 16))), Tensor(np.eye(16))) + v.sum(),
}  # fmt: skip


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("how", VIEWS)
def test_what_lies_otherwise_in_memory_is_not_copied_too_early(how: str, recorded: bool) -> None:
    random = np.random.default_rng(3)
    x, w = random.standard_normal((12, 64, 64)), random.standard_normal((192, 64))
    found = []
    for waits in (False, True):
        weight = Tensor(w, requires_grad=recorded)
        with contextlib.nullcontext() if waits else at_once(), deferred.deferring():
            made = VIEWS[how](*heads_of(Tensor(x), weight))
        found.append(made._data)
    assert np.isfinite(found[0]).all() and np.array_equal(found[0], found[1])


def test_rows_of_another_part_are_there_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sequences of 256: half of the rows is half of the second."""
    monkeypatch.setattr(threads, "_helpers", lambda count: [])  # one part after the other
    random = np.random.default_rng(4)
    x, weight = random.standard_normal((3, 256, 64)), Tensor(random.standard_normal((192, 64)))
    with at_once():
        wanted = ops.attention(*heads_of(Tensor(x), weight), causal=True).data
    with deferred.deferring():
        out = ops.attention(*heads_of(Tensor(x), weight), causal=True)
        assert deferred.waiting()
    assert np.array_equal(wanted, out.data)


def test_an_error_is_raised_once_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinytorch_gpu.host import attention

    model = model_of("gpt2")
    wanted = model(IDS[0]).detach().numpy()
    with monkeypatch.context() as patched:
        patched.setattr(attention, "_normalize", lambda weights: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(IDS[0])
        assert not deferred.waiting() and not chain._chain.works
    assert np.array_equal(wanted, model(IDS[0]).detach().numpy())


def test_what_was_reached_before_an_error_is_there() -> None:
    model, kept = model_of("gpt2"), []

    def broken(x: Tensor) -> None:
        kept.append(x)
        assert deferred.waiting()
        raise ValueError("somebody's own")

    block = model.transformer_blocks[2]
    block.ffn.__class__ = Reading
    block.ffn.look = broken  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="somebody's own"):
        model(IDS[0])
    assert np.isfinite(kept[0]._data).all()


def test_models_in_two_threads_at_a_time() -> None:
    models = [model_of("gpt2"), model_of("llama")]
    wanted = [model(IDS[0]).detach().numpy() for model in models]
    found: list[list[Any]] = [[], []]

    def run(i: int) -> None:
        for _ in range(10):
            found[i].append(models[i](IDS[0]).detach().numpy())

    both = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    for i in range(2):
        # Products are cut otherwise where the other thread has the BLAS's threads.
        assert len(found[i]) == 10 and all(np.allclose(wanted[i], x, 1e-12) for x in found[i])


@pytest.mark.parametrize("name", ["gpt2", "llama", "q/k norm", "course"])
def test_generation_and_prompts_too(name: str) -> None:
    model, prompts = model_of(name), IDS[0][:, :50]
    with at_once():
        wanted = model.generate(prompts, 8, temperature=0.0)
    found = model.generate(prompts, 8, temperature=0.0)
    assert np.array_equal(wanted.numpy(), found.numpy())
