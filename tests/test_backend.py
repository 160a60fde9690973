"""Devices: what is missing is said with its fix, and "auto" falls back."""

import importlib
import importlib.util
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import DeviceError, Tensor, backend, device, devices


class FakeCupy(SimpleNamespace):
    """As much of CuPy as opening a device looks at."""

    class CUDARuntimeError(RuntimeError):
        pass

    def __init__(self, driver: bool = True, nvrtc: bool = True):
        def count() -> int:
            if not driver:
                raise self.CUDARuntimeError("cudaErrorInsufficientDriver")
            return 1

        def version() -> tuple[int, int]:
            if not nvrtc:
                raise ImportError("libnvrtc.so not found")
            return (13, 0)

        runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=self.CUDARuntimeError)
        cuda = SimpleNamespace(runtime=runtime, nvrtc=SimpleNamespace(getVersion=version))
        super().__init__(cuda=cuda)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that CuPy is (or is not) installed."""
    find, load = importlib.util.find_spec, importlib.import_module

    def put(cupy: Any) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n, *a: cupy if n == "cupy" else find(n, *a)
        )
        monkeypatch.setattr(
            importlib, "import_module", lambda n, *a: cupy if n == "cupy" else load(n, *a)
        )
        devices._cuda.cache_clear()

    yield put
    devices._cuda.cache_clear()


MISSING = {
    "cupy": (None, "CuPy is not installed.*pip install"),
    "driver": (FakeCupy(driver=False), "no usable NVIDIA driver.*install or update"),
    "nvrtc": (FakeCupy(nvrtc=False), "NVRTC is missing.*pip install"),
}


@pytest.mark.parametrize(("cupy", "message"), MISSING.values(), ids=MISSING.keys())
def test_cuda_fails_with_the_fix_and_auto_falls_back(install: Any, cupy: Any, message: str) -> None:
    install(cupy)
    with pytest.raises(DeviceError, match=message):
        device("cuda")
    found = device("auto")
    assert found.name == "cpu" and found.note


def test_a_gpu_that_does_not_exist(install: Any) -> None:
    install(FakeCupy())
    with pytest.raises(DeviceError, match=r"cuda:3 does not exist.*1 GPU"):
        device("cuda:3")
    assert device("auto").name == device("cuda").name == "cuda:0"


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:-1", "cuda:x", "", "auto:1"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match="device must be"):
        device(name)


def test_the_emulated_device_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinytorch_gpu.emulated import compiler

    compiler.cache_clear()
    devices._emulated.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.which", lambda command: None)
        with pytest.raises(DeviceError, match="install g"):
            device("emulated")
    compiler.cache_clear()


def test_devices_compare_by_name() -> None:
    assert device("cpu") == "cpu" == Tensor([1.0]).device
    assert str(device("cpu")) == "cpu" and device(device("cpu")) is device("cpu")


def test_nothing_imports_cupy_unasked() -> None:
    code = (
        "import sys, tinytorch_gpu as t; m = t.Transformer(9, 8, 2, 1, 8, device='cpu');"
        "m.generate([1], 2); print('cupy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_dtypes_have_names() -> None:
    for name in backend.FLOATS:
        assert backend.dtype_name(backend.dtype(name)) == name
    with pytest.raises(ValueError, match="int3"):
        backend.dtype("int3")
    with pytest.raises(ValueError, match="dtype must be one of"):
        backend.float_dtype("int32")


def test_assign_fills_a_strided_view_and_checks_the_shape() -> None:
    target = np.zeros((3, 4), np.float16)
    backend.assign(target.T, np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(target, np.arange(12).reshape(4, 3).T)
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(4, 3\)|\(4, 3\).*\(3, 4\)"):
        backend.assign(target, np.zeros((4, 3)))
