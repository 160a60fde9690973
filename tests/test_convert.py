"""Files into other files: what goes in comes out, blocks bit for bit; and nothing is lost on the way."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_vocabularies import BYTE_LEVEL, SENTENCE_PIECE

from tinytorch_gpu import Transformer, TransformerConfig
from tinytorch_gpu.checkpoint import ModelFileError, load, open_model, save, save_gguf
from tinytorch_gpu.checkpoint.storage import DTYPES
from tinytorch_gpu.cli.arguments import STORAGES
from tinytorch_gpu.cli.main import main
from tinytorch_gpu.config import RopeScaling
from tinytorch_gpu.core.op import reference_only
from tinytorch_gpu.generation import Cache
from tinytorch_gpu.quantized import BLOCKED, MULTIPLIED, QuantizedMatrix, format_named, quantize
from tinytorch_gpu.tokenizers import Tokenizer
from tinytorch_gpu.tokenizers.to_gguf import gguf_metadata

pytest.importorskip("gguf", reason="the gguf package, which lays GGUF files out, is missing")

LLAMA = {"num_kv_heads": 2, "norm": "rms", "position": "rotary", "activation": "swiglu",
         "ffn_bias": False}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama tied": LLAMA | {"tie_embeddings": True, "sliding_window": 9},
    "llama, scaled": LLAMA | {"rope_scaling": RopeScaling("llama3", 8.0), "head_dim": 32},
    "llama, linear": LLAMA | {"rope_scaling": RopeScaling("linear", 2.0)},
    "qwen2": LLAMA | {"qkv_bias": True},
    "qwen3": LLAMA | {"qk_norm": True},
    "gpt2": {"position": "learned", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True,
             "tie_embeddings": True},
}  # fmt: skip
IDS = np.random.default_rng(0).integers(0, 270, (2, 7))


def tiny(family: str, width: int = 64) -> Transformer:
    config = TransformerConfig(270, width, 4, 2, 2 * width, 32, **FAMILIES[family])
    model = Transformer.from_config(config, device="cpu", seed=3).eval()
    for _, parameter in model.named_parameters():
        if len(parameter.shape) == 1:
            parameter.data += np.random.default_rng(1).uniform(-0.2, 0.2, parameter.shape)
    return model


def logits(model: Transformer) -> Any:
    return model(IDS).detach().numpy()


@pytest.mark.parametrize("dtype", ["float32", "q8_0", "q4_1", "q5_0", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_holds_the_model(tmp_path: Path, family: str, dtype: str) -> None:
    model = tiny(family).to(dtype)
    path = save_gguf(model, tmp_path / "m.gguf", BYTE_LEVEL)
    file = open_model(path)
    assert file.tokenizer().encode("the 12 things") == BYTE_LEVEL.encode("the 12 things")
    back = file.load("cpu", "stored")
    np.testing.assert_allclose(logits(back), logits(model), atol=1e-6)
    blocks = back.transformer_blocks[1].ffn.rise.weight.data
    if dtype.startswith("q"):
        own = model.transformer_blocks[1].ffn.rise.weight.data
        assert isinstance(blocks, QuantizedMatrix)
        np.testing.assert_array_equal(blocks.blocks, own.blocks)
        assert back.nbytes == model.nbytes
    else:
        assert str(blocks.dtype) == dtype


@pytest.mark.parametrize("dtype", BLOCKED)
def test_every_format_is_loaded_kept_and_multiplied(tmp_path: Path, dtype: str) -> None:
    path = save_gguf(tiny("llama", 256), tmp_path / "f32.gguf")
    model = load(path, "cpu", dtype)
    attention = model.transformer_blocks[0].attention
    assert str(attention.qkv.weight.dtype) == dtype and not attention.qkv.weight.requires_grad
    quantized = save_gguf(model, tmp_path / "q.gguf")
    kept, decoded = load(quantized, "cpu", "stored"), load(quantized, "cpu", "float32")
    np.testing.assert_array_equal(logits(kept), logits(model))
    np.testing.assert_allclose(logits(kept), logits(decoded), atol=2e-5)
    prompt = IDS[0].tolist()
    with reference_only():  # native code rounds what it multiplies with blocks
        found = [m.generate(prompt, 5, temperature=0).numpy() for m in (kept, decoded)]
    np.testing.assert_array_equal(*found)
    assert kept.head is not None
    assert str(kept.head.weight.dtype) == ("q8_0" if dtype == "q8_0" else "q6_k")


def test_formats_may_differ_within_what_runs_together(tmp_path: Path) -> None:
    """As in files of llama.cpp's "Q4_K_M": values in Q6_K beside queries and keys in Q4_K."""
    model = tiny("llama", 256)
    for block in model.transformer_blocks:
        qkv = block.attention.qkv.weight
        parts = [
            quantize(qkv.rows(name), form).parts[0]
            for name, form in (("q", "q4_k"), ("k", "q4_k"), ("v", "q6_k"))
        ]
        qkv.data = QuantizedMatrix(parts)
    back = load(save_gguf(model, tmp_path / "m.gguf"), "cpu", "stored")
    weight = back.transformer_blocks[0].attention.qkv.weight
    assert [str(part.format) for part in weight.data.parts] == ["q4_k", "q6_k"]
    np.testing.assert_allclose(logits(back), logits(model), atol=1e-5)


def test_gpt2s_projections_are_encoded_along_the_right_axis(tmp_path: Path) -> None:
    """In its folders they are (in, out): the blocks run down the columns."""
    model = tiny("gpt2", 256)
    folder = save(model, tmp_path / "hf")
    quantized = load(folder, "cpu", "q4_k")
    np.testing.assert_allclose(logits(quantized), logits(model.to("q4_k")), atol=1e-5)


def test_a_row_that_is_not_finite_is_found_in_blocks(tmp_path: Path) -> None:
    path = save_gguf(tiny("llama").to("q4_0"), tmp_path / "m.gguf")
    info = next(t for t in open_model(path).tensors if "ffn_up" in t.name)
    with open(path, "r+b") as file:
        file.seek(info.offset + 18 * 5)
        file.write(b"\x00\x7c")  # a scale of infinity
    for dtype in ("stored", "float32"):
        with pytest.raises(ModelFileError, match=r"ffn_up.weight' has NaN or infinite"):
            load(path, "cpu", dtype)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCE_PIECE])
def test_a_tokenizer_survives_the_way(tokenizer: Tokenizer) -> None:
    back = Tokenizer.from_gguf(gguf_metadata(tokenizer, tokenizer.vocab_size + 3))
    for text in ("the ab abc bc 12 é", "  a\n\nb", "<|im_start|>th</s>", "日本", ""):
        assert back.encode(text) == tokenizer.encode(text), text
        assert back.decode(back.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert (back.bos_id, back.pad_id, back.chat_template) == (
        tokenizer.bos_id, tokenizer.pad_id, tokenizer.chat_template,
    )  # fmt: skip
    assert set(tokenizer.eos_ids) <= set(back.eos_ids)
    with pytest.raises(ValueError, match="the model 5 tokens"):
        gguf_metadata(tokenizer, 5)


def test_what_gguf_has_no_place_for(tmp_path: Path) -> None:
    course = Transformer(40, 32, 4, 1, 64, device="cpu")
    with pytest.raises(ValueError, match="no architecture"):
        save_gguf(course, tmp_path / "m.gguf")
    odd = tiny("llama").config.replace(rope_scaling=RopeScaling("llama3", 8.0, 2.0, 4.0, 100))
    with pytest.raises(ValueError, match="cannot express"):
        save_gguf(Transformer.from_config(odd, device="cpu"), tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


# --- the command ---


def convert(*arguments: Any) -> int:
    return main(["convert", *map(str, arguments)])


def test_there_and_back(tiny_gguf: Path, tmp_path: Path, capsys: Any) -> None:
    folder, again = tmp_path / "folder", tmp_path / "again.gguf"
    assert convert(tiny_gguf, folder) == 0
    assert "wrote" in capsys.readouterr().err
    assert convert(folder, again) == 0
    first, last = open_model(tiny_gguf), open_model(again)
    assert first.config == last.config
    for name in ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id"):
        key = f"tokenizer.ggml.{name}"
        assert first.metadata[key] == last.metadata[key], key
    assert first.chat_template == last.chat_template
    for one, other in zip(
        first.tensors,
        sorted(last.tensors, key=lambda t: [x.name for x in first.tensors].index(t.name)),
        strict=True,
    ):
        assert one.name == other.name
        np.testing.assert_array_equal(one.raw(), other.raw())


def test_quantizing(tiny_gguf: Path, tmp_path: Path, capsys: Any) -> None:
    wide, target = tmp_path / "wide.gguf", tmp_path / "q.gguf"
    save_gguf(tiny("llama"), wide, BYTE_LEVEL)
    assert convert(wide, target, "--dtype", "Q4_0") == 0
    kinds = {t.dtype_name for t in open_model(target).tensors if len(t.shape) > 1}
    assert kinds == {"Q4_0", "Q8_0"}
    assert open_model(target).metadata["general.file_type"] == 2
    kept = target.read_bytes()
    assert convert(wide, target, "--dtype", "f16") == 2  # nothing is replaced unasked
    assert "--force" in capsys.readouterr().err and target.read_bytes() == kept
    assert convert(wide, target, "--dtype", "f16", "--force") == 0
    assert {t.dtype_name for t in open_model(target).tensors if len(t.shape) > 1} == {"F16"}
    assert convert(target, target, "--force", "--dtype", "q8_0") == 0  # onto itself
    assert open_model(target).load("cpu", "stored").nbytes < wide.stat().st_size / 3


def test_mistakes(tiny_gguf: Path, tmp_path: Path, capsys: Any) -> None:
    for arguments, said in (
        ((tiny_gguf, tmp_path / "folder", "--dtype", "q4_0"), "GGUF file only"),
        ((tiny_gguf, tmp_path / "no" / "m.gguf"), "no folder"),
        ((tmp_path / "nothing.gguf", tmp_path / "m.gguf"), "nothing.gguf"),
        ((tiny_gguf, tmp_path / "m.gguf", "--dtype", "q9"), "invalid choice"),
    ):
        assert convert(*arguments) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full and file limits are Linux's")
def test_a_full_disk_leaves_the_old_file(
    tiny_gguf: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource
    import signal

    target = tmp_path / "m.gguf"
    target.write_bytes(b"old")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        assert convert(tiny_gguf, target, "--force") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.gguf"]
    assert "Traceback" not in capsys.readouterr().err


def test_the_choices_of_the_command_line_are_the_loaders() -> None:
    assert set(STORAGES) == set(DTYPES)
    assert all(format_named(name).blocked for name in BLOCKED)


# --- bench ---


def test_bench(tmp_path: Path, capsys: Any) -> None:
    path = save_gguf(tiny("llama"), tmp_path / "m.gguf")
    common = (
        "bench",
        "-m",
        str(path),
        "-p",
        "5",
        "-n",
        "3",
        "-d",
        "0,4",
        "-r",
        "2",
        "--device",
        "cpu",
    )
    assert main([*common, "-b", "1,2", "--dtype", "f32,q8_0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([x for x in lines if x.startswith("| ")]) == 2 + 16
    assert "pp5 @ d4" in "".join(lines) and "±" in lines[2]
    assert main([*common, "-o", "json", "--cache-dtype", "float16", "-t", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["test"] for r in rows] == ["pp5", "tg3", "pp5 @ d4", "tg3 @ d4"]
    for row in rows:
        assert len(row["rates"]) == 2 and row["threads"] == 1 and row["cache_dtype"] == "float16"
        assert row["avg_ts"] == pytest.approx(np.mean(row["rates"])) and row["avg_ts"] > 0
        assert row["stddev_ts"] == pytest.approx(np.std(row["rates"], ddof=1))
        assert row["params"] == load(path, "cpu").count_parameters()
    assert main([*common, "-o", "csv"]) == 0
    assert capsys.readouterr().out.count("\n") == 5
    for arguments, said in ((["-p", "0", "-n", "0"], "nothing to measure"), (["-p", "99"], "context of 32"),
                            (["-b", "0"], "at least 1"), (["--dtype", "f32,x"], "not one of")):  # fmt: skip
        assert main(["bench", "-m", str(path), *arguments]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float16", "q4_0", "q5_k", "stored"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_memory_told_is_the_memory_taken(tmp_path: Path, family: str, dtype: str) -> None:
    save_gguf(tiny(family, 96).to("q8_0"), tmp_path / "m.gguf")
    file = open_model(tmp_path / "m.gguf")
    told = file.memory_needed(2, 16, dtype, "q8_0")
    assert told["weights"] == file.load("cpu", dtype).nbytes
    model = file.load("cpu", dtype)
    assert told["cache"] * 24 == pytest.approx(
        Cache.for_model(model, 2, 16, "q8_0").nbytes * 24, rel=0.02
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["q4_0", "q6_k"])
def test_truncated_and_lying_files_of_blocks(tmp_path: Path, dtype: str, seed: int) -> None:
    """Every one is loaded or refused in words; nothing else."""
    path = save_gguf(tiny("llama", 256 if dtype == "q6_k" else 64).to(dtype), tmp_path / "m.gguf")
    good, random = path.read_bytes(), np.random.default_rng(seed)
    header = open_model(path).tensors[0].offset
    for step in range(40):
        raw = bytearray(good)
        if step % 4 == 0:
            raw = raw[: random.integers(len(raw))]
        for _ in range(random.integers(1, 4)):
            place = random.integers(min(len(raw), header if step % 2 else len(raw)) or 1)
            raw[place : place + 1] = bytes([random.integers(256)])
        path.write_bytes(raw)
        try:
            load(path, "cpu", "stored")
        except ModelFileError as error:
            assert "\n" not in str(error)


def test_auto_keeps_what_the_device_multiplies(tmp_path: Path) -> None:
    for name in ("q4_0", "q5_1"):
        save_gguf(tiny("llama").to(name), tmp_path / "m.gguf")
        weight = load(tmp_path / "m.gguf", "cpu").transformer_blocks[0].ffn.rise.weight
        assert weight.quantized == (name in MULTIPLIED["cpu"])
