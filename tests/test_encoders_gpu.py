"""Encoders on the emulated device and on a GPU: what the CPU gives."""

from typing import Any

import numpy as np
import pytest
from encoder_models import model
from test_encoders import SOURCES, loss_of, run

from tinytorch_gpu import no_grad
from tinytorch_gpu.core.op import record


@pytest.mark.parametrize("kind", ["bert", "t5", "flan-t5", "vaswani"])
def test_results_and_gradients_are_the_cpus(gpu: str, kind: str) -> None:
    here, there = model(kind), model(kind, gpu)
    found = []
    for made in (here, there):
        loss_of(made).backward()
        with no_grad():
            found.append(run(made).numpy())
    np.testing.assert_allclose(found[1], found[0], atol=3e-5)
    gradients = [{n: p.grad.numpy() for n, p in made.named_parameters()} for made in (here, there)]
    for name, wanted in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], wanted, atol=5e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["t5", "vaswani"])
def test_a_text_is_the_cpus(gpu: str, kind: str) -> None:
    written = [model(kind, place).generate(SOURCES, 5, temperature=0) for place in ("cpu", gpu)]
    assert written[0].numpy().tolist() == written[1].numpy().tolist()


def test_what_costs_is_done_by_kernels(gpu: str) -> None:
    """Attention takes the bias of distances in its kernel, and the backward has one where there is none."""
    costly = ("attention", "linear", "layer_norm", "add_layer_norm", "rms_norm", "embedding")
    for kind in ("bert", "flan-t5"):
        made = model(kind, gpu).eval()
        with no_grad(), record() as calls:
            run(made)
        fell_back = [c.op.name for c in calls if c.op.name in costly and c.maker is None]
        assert not fell_back and any(c.op.name == "attention" for c in calls)


def test_half_precision(gpu: str) -> None:
    exact, half = model("flan-t5").eval(), model("flan-t5", gpu).eval()
    half.to("float16")
    with no_grad():
        wanted, found = run(exact).numpy(), run(half).numpy()
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_moving_there_and_back(gpu: str) -> None:
    made = model("t5").eval()
    with no_grad():
        before = run(made).numpy()
        made.to(gpu)
        there: Any = run(made)
        assert there.device.kind == gpu
        np.testing.assert_allclose(there.numpy(), before, atol=3e-5)
        made.to("cpu")
        np.testing.assert_array_equal(run(made).numpy(), before)
