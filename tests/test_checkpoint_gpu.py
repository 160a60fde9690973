"""Loading to a GPU and saving from it."""

import model_file_makers as make
import numpy as np
import pytest

from tinytorch_gpu.backend import to_numpy
from tinytorch_gpu.checkpoint import ModelFileError, load, save

pytestmark = pytest.mark.gpu
pytest.importorskip("cupy", reason="needs CuPy")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_on_the_gpu_are_those_on_the_cpu(tmp_path, dtype):
    (tmp_path / "m.gguf").write_bytes(make.gguf())
    folder = make.write_folder(tmp_path / "hf")
    for path in (tmp_path / "m.gguf", folder):
        there, here = load(path, "cuda", dtype), load(path, "cpu", dtype)
        assert there.device.kind == "cuda"
        for name, array in there.state_dict().items():
            assert type(array).__module__.startswith("cupy")
            np.testing.assert_array_equal(to_numpy(array), here.state_dict()[name])


def test_values_too_large_for_the_dtype(tmp_path):
    tensors = make.gguf_tensors()
    tensors[0]["data"] = np.full(make.VOCAB * make.EMBED, 1e6, np.float32).tobytes()
    (tmp_path / "m.gguf").write_bytes(make.gguf(tensors=tensors))
    with pytest.raises(ModelFileError, match="too large for float16"):
        load(tmp_path / "m.gguf", "cuda", "float16")


def test_saving_from_the_gpu(tmp_path):
    pytest.importorskip("safetensors", reason="saving needs safetensors")
    folder = make.write_folder(tmp_path / "hf")
    save(load(folder, "cuda"), tmp_path / "again")
    want, got = load(folder, "cpu").state_dict(), load(tmp_path / "again", "cpu").state_dict()
    for name, array in got.items():
        np.testing.assert_array_equal(array, want[name])
