"""Fixtures: a tiny real model file, text to learn from, and the GPU."""

import os
import pydoc_data.topics
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_gguf

from tinytorch_gpu.devices import DeviceError, device


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer LLaMA with a byte-level tokenizer and a chat template, as a GGUF file."""
    pytest.importorskip("gguf", reason="gguf writes the tiny model file")
    return write_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The demo model's file; CI must have it."""
    from tinytorch_gpu.checkpoint import ModelFileError, open_model

    try:
        return open_model("smollm2").path
    except ModelFileError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest) -> str:
    """A device that runs the CUDA kernels, by name; the emulated one needs a C++ compiler."""
    try:
        return device(request.param).kind
    except DeviceError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def pytest_sessionstart() -> None:
    """Without CuPy's pool each array is an allocation of its own: compute-sanitizer sees every overrun."""
    if os.environ.get("TINYTORCH_TEST_POOL") == "0":
        device("cuda").xp.cuda.set_allocator(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, with the reason."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    try:
        device("cuda")
    except DeviceError as error:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {error}"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some English prose in a file: Python's own."""
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    topics = pydoc_data.topics.topics
    path.write_text("".join(topics[k] for k in ("assert", "while", "with")), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data(text: Path) -> Any:
    """It as tokens of characters."""
    from tinytorch_gpu.training import TokenDataset, char_tokenizer

    return TokenDataset.build(text, char_tokenizer(text), text.parent / "data")
