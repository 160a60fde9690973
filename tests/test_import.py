"""What an import costs, counted in modules: seconds would measure the machine."""

import subprocess
import sys

import pytest

HEAVY = ("cupy", "cupyx", "jinja2", "matplotlib", "ml_dtypes", "rich", "safetensors", "tokenizers", "torch",
         "transformers", "huggingface_hub", "gguf")  # fmt: skip


def imported(code: str) -> set[str]:
    """The top-level modules that ``code`` brings, and the package's own by their whole names."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    return {n for n in names if n.startswith("tinytorch_gpu.")} | {n.split(".")[0] for n in names}


def test_the_package_alone_brings_nothing() -> None:
    found = imported("import tinytorch_gpu; tinytorch_gpu.__version__; dir(tinytorch_gpu)")
    assert "numpy" not in found and not [n for n in found if n.startswith("tinytorch_gpu.")]


def test_help_brings_no_arrays() -> None:
    code = ("import sys, contextlib, io; from tinytorch_gpu.cli.main import main\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
            "    main(['generate', '--help'])")  # fmt: skip
    assert not {"numpy", *HEAVY} & imported(code)


@pytest.mark.parametrize("name", ["Transformer", "Tensor", "generation", "checkpoint"])
def test_nothing_heavy_comes_with(name: str) -> None:
    found = imported(f"from tinytorch_gpu import {name}")
    assert "numpy" in found and not set(HEAVY) & found
    assert not {n for n in found if n.startswith(("tinytorch_gpu.cuda", "tinytorch_gpu.emulated"))}


@pytest.mark.parametrize(
    "name",
    [
        "cuda",
        "host",
        "native",
        "ops",
        "core",
        "quantized",
        "generation",
        "training",
        "profiler",
        "emulated",
    ],
)
def test_each_part_can_be_the_first_to_be_imported(name: str) -> None:
    assert f"tinytorch_gpu.{name}" in imported(f"import tinytorch_gpu.{name}")


def test_a_tensor_finds_its_operators() -> None:
    imported("from tinytorch_gpu.core.tensor import Tensor\nassert (Tensor([1.0]) + 1).item() == 2")


def test_every_name_is_there() -> None:
    import tinytorch_gpu

    assert all(getattr(tinytorch_gpu, name) is not None for name in tinytorch_gpu.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        tinytorch_gpu.nothing
