"""The ranges a profiler sees: their tree, their names, and nothing at all when off."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Tensor, Transformer, backend, native, nvtx, ops
from tinytorch_gpu.devices import DeviceError, device


class Domain:
    """Records the tree of ranges as (name, children), as NVTX's domain is called."""

    def __init__(self) -> None:
        self.root: list[Any] = []
        self.open = [self.root]
        self.made: list[tuple[str, str]] = []
        self.payloads: list[tuple[str, Any]] = []

    def get_event_attributes(self, message: str, color: str, category: str) -> Any:
        self.made.append((message, category))
        return type("Attributes", (), {"message": message, "payload": None})()

    def push_range(self, attributes: Any) -> None:
        children: list[Any] = []
        self.open[-1].append((attributes.message, children))
        self.open.append(children)
        self.payloads.append((attributes.message, attributes.payload))

    def pop_range(self) -> None:
        self.open.pop()


@pytest.fixture
def domain() -> Iterator[Domain]:
    made = Domain()
    assert nvtx.enable(made)
    yield made
    nvtx.disable()
    nvtx.enable()


@pytest.fixture
def model() -> Transformer:
    return Transformer(
        20,
        16,
        4,
        2,
        24,
        32,
        position="rotary",
        norm="rms",
        activation="swiglu",
        seed=0,
        device="cpu",
    )


def names(children: list[Any]) -> list[str]:
    return [name for name, _ in children]


def everything(children: list[Any]) -> list[str]:
    return [n for name, below in children for n in (name, *everything(below))]


def test_the_tree_of_a_generation(domain: Domain, model: Transformer) -> None:
    model.generate([[1, 2, 3]], 3, temperature=0)
    assert names(domain.root) == ["prefill", "sample", "decode", "sample", "decode", "sample"]
    for phase in (domain.root[0][1], domain.root[2][1]):
        layers = dict(phase)
        assert [n for n in layers if n.startswith("layer")] == ["layer.00", "layer.01"]
        assert {"embed", "lm_head"} <= set(layers)
        for i in range(2):
            parts = layers[f"layer.{i:02d}"]
            assert names(parts) == ["norm1", "attention", "norm2", "ffn"]
            below = dict(parts)
            assert names(below["norm1"]) == ["op.rms_norm"]
            assert "op.linear" in names(below["attention"]) and "op.linear" in names(below["ffn"])
            assert names(below["attention"]) == ["op.linear", "op.attention", "op.linear"]
    assert domain.open == [domain.root]


def test_the_ops_are_the_same_in_every_layer(domain: Domain, model: Transformer) -> None:
    model([[1, 2, 3]])
    layers = [everything(below) for name, below in domain.root if name.startswith("layer")]
    assert layers[0] == layers[1]
    assert {"op.linear", "op.rotary", "op.attention"} <= set(layers[0])


def below(tree: list[Any], *path: str) -> list[list[Any]]:
    """The children of every range at ``path``."""
    found = [tree]
    for step in path:
        found = [under for children in found for name, under in children if name == step]
    return found


def backward_tree(domain: Domain, model: Transformer) -> list[Any]:
    """The ranges of one backward pass, as a trainer opens them."""
    with nvtx.span("train.forward", "phase"):
        loss = model([[1, 2, 3]]).sum()
    with nvtx.span("train.backward", "phase"):
        loss.backward()
    assert domain.open == [domain.root]
    (tree,) = below(domain.root, "train.backward")
    return tree


def test_a_post_norm_layer_and_its_backward(domain: Domain) -> None:
    model = Transformer(20, 16, 4, 1, 24, 32, pre_norm=False, seed=0, device="cpu")
    tree = backward_tree(domain, model)
    (forward,) = below(domain.root, "train.forward", "layer.00")
    assert set(names(forward)) == {"norm1", "attention", "norm2", "ffn"}
    (layer,) = below(tree, "layer.00")
    assert names(layer) == ["norm2", "ffn", "norm1", "attention"]
    assert names(dict(layer)["norm1"]) == ["op.add_layer_norm.backward"]


def test_the_backward_lies_in_its_layers_and_parts(domain: Domain, model: Transformer) -> None:
    tree = backward_tree(domain, model)
    assert [n for n in names(tree) if not n.startswith("op.")] == \
        ["lm_head", "layer.01", "layer.00", "embed"]  # fmt: skip
    for layer in ("layer.00", "layer.01"):
        (parts,) = below(tree, layer)
        assert names(parts) == ["ffn", "norm2", "attention", "norm1"]
        forward = dict(below(domain.root, "train.forward", layer)[0])
        for part, operations in parts:
            assert operations and all(n.endswith(".backward") for n in names(operations))
            ran = [n.removesuffix(".backward") for n in names(operations)]
            assert set(names(forward[part])) <= set(ran), part
    assert domain.payloads.count(("layer.01", 1)) == 2


@pytest.mark.parametrize("layers", [1, 2])
def test_a_recomputed_layer_runs_inside_its_range(
    domain: Domain, model: Transformer, layers: int
) -> None:
    model.recompute = True
    model.transformer_blocks = model.transformer_blocks[:layers]
    tree = backward_tree(domain, model)
    for i in range(layers):
        (parts,) = below(tree, f"layer.{i:02d}")
        assert names(parts) == ["recompute", "ffn", "norm2", "attention", "norm1"]
        assert names(parts[0][1]) == ["norm1", "attention", "norm2", "ffn"]
        assert "op.attention.backward" in names(dict(parts)["attention"])


def test_ranges_of_the_backward_close_when_it_fails(domain: Domain, model: Transformer) -> None:
    loss = model([[1, 2, 3]]).sum()
    model.transformer_blocks[0].ffn.fall.weight.grad = Tensor(np.zeros((3, 3)))
    with pytest.raises(ValueError):
        loss.backward()
    assert domain.open == [domain.root]


def test_a_backward_of_what_ran_with_no_tool(domain: Domain, model: Transformer) -> None:
    nvtx.disable()
    loss = model([[1, 2, 3]]).sum()
    nvtx.enable(domain)
    loss.backward()
    assert "op.attention.backward" in names(domain.root) and domain.open == [domain.root]


def test_names_are_those_that_nsight_can_filter(domain: Domain, model: Transformer) -> None:
    model.generate([[1, 2], [3]], 2, temperature=0.5, top_k=3, seed=0, repetition_penalty=1.2)
    model([[1, 2, 3]]).sum().backward()
    assert len(domain.made) == len(set(domain.made)), "attributes are built once per name"
    for name, category in domain.made:
        assert not set(name) & set("@,[]/*+"), name
        assert category in nvtx.COLORS
    # What varies is the payload: each new name is kept for ever.
    before = len(domain.made)
    model.generate([[1, 2, 3, 4], [3]], 9, temperature=0.5, top_k=3, seed=0, repetition_penalty=1.2)
    assert len(domain.made) == before


def test_payloads_say_what_varies(domain: Domain, model: Transformer) -> None:
    model.generate([[1, 2, 3]], 3, temperature=0)
    found = [p for p in domain.payloads if p[0] in ("prefill", "decode", "layer.01")]
    assert ("prefill", 3) in found and ("decode", 3) in found and ("decode", 4) in found
    assert ("layer.01", 1) in found
    tokens = {p for p in domain.payloads if p[0] in ("norm1", "attention", "op.attention", "embed")}
    assert tokens == {(name, n) for name in ("norm1", "attention", "op.attention", "embed")
                      for n in (1, 3)}  # fmt: skip


def test_the_backward_has_payloads(domain: Domain, model: Transformer) -> None:
    backward_tree(domain, model)
    found = {p for p in domain.payloads if p[0].endswith(".backward") and p[0] != "train.backward"}
    assert ("op.attention.backward", 3) in found and ("op.linear.backward", 3) in found
    assert all(payload is not None for _, payload in found)


def test_a_payload_does_not_stay(domain: Domain) -> None:
    for payload in (5, None):
        with nvtx.span("decode", "phase", payload):
            pass
    assert domain.payloads == [("decode", 5), ("decode", None)]


def test_copies_to_and_from_a_device(domain: Domain) -> None:
    try:
        place = device("emulated")
    except DeviceError as error:
        pytest.skip(str(error))
    there = place.asarray([1, 2, 3], "int64")
    place.asarray(np.zeros((2, 4)), "float32")
    place.asarray(there)
    backend.assign(there, np.ones(3, np.int64))
    backend.to_numpy(there)
    Tensor(np.zeros(4, np.float32)).to("emulated").to("cpu")
    assert domain.payloads == [
        ("h2d", 24), ("h2d", 32), ("h2d", 24), ("d2h", 24), ("h2d", 16), ("d2h", 16)
    ]  # fmt: skip
    assert dict(domain.made) == {"h2d": "io", "d2h": "io"}


def without_copies(children: list[Any]) -> list[Any]:
    return [
        (n.removesuffix(" (reference)"), without_copies(inner))
        for n, inner in children if n not in ("h2d", "d2h")
    ]  # fmt: skip


def test_a_gpu_has_the_same_tree(domain: Domain, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = []
    for place in ("cpu", gpu):
        model = Transformer(
            20, 16, 4, 2, 24, 32, position="rotary", norm="rms", seed=0, device=place
        )
        targets = Tensor([2, 3, 4]).to(place)
        model.generate([[1, 2, 3]], 3, temperature=0)  # makes tables, and compiles kernels
        domain.root.clear()
        monkeypatch.setenv("TINYTORCH_STRICT", "1")  # any operation without a kernel is an error
        with nvtx.span("train.forward", "phase"):
            loss = ops.cross_entropy(model([[1, 2, 3]]).reshape(3, 20), targets)
        generated = model.generate([[1, 2, 3]], 3, temperature=0)
        monkeypatch.delenv("TINYTORCH_STRICT")
        assert generated.shape == (1, 6)
        if place == gpu:
            # The tokens come back, and nothing else within a step.
            assert names(domain.root).count("d2h") == 3
            for name, inside in domain.root:
                assert name != "decode" or not {"h2d", "d2h"} & set(everything(inside))
            assert not [n for n in everything(domain.root) if "(reference)" in n]
        with nvtx.span("train.backward", "phase"):
            loss.backward()
        trees.append(without_copies(domain.root))
    assert trees[0] == trees[1]


def test_threads_do_not_share_payloads(domain: Domain) -> None:
    nvtx.push("decode", "phase", 1)
    other = threading.Thread(target=nvtx.push, args=("decode", "phase", 2))
    other.start()
    other.join()
    assert [p for _, p in domain.payloads] == [1, 2] and len(domain.made) == 2


def test_ranges_close_when_a_layer_fails(domain: Domain, model: Transformer) -> None:
    model.transformer_blocks[1].ffn.fall.weight.data = np.zeros((16, 5), np.float32)
    with pytest.raises(ValueError):
        model([[1, 2, 3]])
    assert domain.open == [domain.root]
    assert names(domain.root) == ["embed", "layer.00", "layer.01"]
    assert names(domain.root[2][1]) == ["norm1", "attention", "norm2", "ffn"]


def test_captured_steps_with_a_tool_only_when_asked_for(
    domain: Domain, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [[1, 2, 3]]
    eager = model.generate(prompt, 6, temperature=0).tolist()
    domain.root.clear()
    monkeypatch.setattr(nvtx, "graphs", True)
    assert model.generate(prompt, 6, temperature=0).tolist() == eager
    decodes = [below for name, below in domain.root if name == "decode"]
    # Without native code the choice of a token is no part of what is captured.
    inside = [[name for name, _ in below if name != "sample"] for below in decodes]
    assert len(inside) == 5 and inside[0] and not any(inside[1:])
    if native.library() is not None:
        assert not any(decodes[1:])


def test_ranges_close_when_something_fails(domain: Domain, model: Transformer) -> None:
    with pytest.raises(ValueError):
        model.transformer_blocks[0](np.zeros((1, 2, 16), np.float32), mask=np.zeros((1, 5, 5)))
    with pytest.raises(ValueError):
        ops.linear(np.zeros((1, 2)), np.zeros((3, 5)))
    assert domain.open == [domain.root]


def test_off_means_nothing_is_built_or_called(
    monkeypatch: pytest.MonkeyPatch, model: Transformer
) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("a range was opened")

    domain = Domain()
    nvtx.enable(domain)
    nvtx.disable()
    monkeypatch.setattr(nvtx, "push", never)
    monkeypatch.setattr(nvtx, "pop", never)
    assert not nvtx.on
    model.generate([[1, 2, 3]], 2, temperature=0)
    model([[1]]).sum().backward()
    assert domain.made == [] and domain.root == []
    nvtx.enable()


def test_turned_off_inside_a_range(domain: Domain) -> None:
    with nvtx.span("decode", "phase"):
        nvtx.disable()
    with nvtx.span("decode", "phase"):
        nvtx.enable(domain)  # the range that was not opened is not closed
    assert len(domain.root) == 1
