"""Hugging Face folders: models that transformers wrote, and ours that it reads back."""

import json
import logging

import model_file_makers as make
import numpy as np
import pytest

from tinytorch_gpu import PRESETS, RopeScaling, Transformer, TransformerConfig, no_grad
from tinytorch_gpu.checkpoint import ModelFileError, load, open_model, save
from tinytorch_gpu.checkpoint.configs import OWN_TYPE, config_from_hf
from tinytorch_gpu.checkpoint.families import FAMILIES
from tinytorch_gpu.checkpoint.names import mapped_tensors
from tinytorch_gpu.checkpoint.saved_config import hf_config, hf_type

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0}
MODELS = {
    "gpt2": ("GPT2Config", GPT2),
    "gpt2-untied": (
        "GPT2Config",
        GPT2 | {"n_inner": 40, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
    "llama": ("LlamaConfig", SIZES),
    "llama-tied": (
        "LlamaConfig",
        SIZES | {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 16},
    ),
    "llama-llama3": ("LlamaConfig", SIZES | {"rope_parameters": LLAMA3}),
    "llama-linear": ("LlamaConfig", SIZES | {"rope_parameters": LINEAR}),
    "mistral": ("MistralConfig", SIZES | {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", SIZES | {"head_dim": 16, "tie_word_embeddings": True}),
}


def peer(name):
    """A random model of transformers; weights are large enough for every part to matter."""
    torch = pytest.importorskip("torch", reason="the peer needs torch")
    transformers = pytest.importorskip("transformers", reason="the peer is transformers")
    kind, values = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**values)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            gain = parameter.ndim == 1 and key.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.2 + float(gain))
    return model.eval()


IDS = np.random.default_rng(0).integers(0, 97, (2, 40))


def peer_logits(model):
    import torch

    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.float().numpy()


def our_logits(model):
    with no_grad():
        return model(IDS).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_theirs_loads_here_and_ours_loads_there(tmp_path, name):
    theirs = peer(name)
    want = peer_logits(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    file = open_model(tmp_path / "theirs")
    ours = file.load("cpu")
    np.testing.assert_allclose(our_logits(ours), want, atol=1e-4)

    save(ours, tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert type(back) is type(theirs)
    np.testing.assert_allclose(peer_logits(back), want, atol=1e-6)
    again = load(tmp_path / "ours", "cpu")
    assert again.config == ours.config
    for key, array in again.state_dict().items():
        np.testing.assert_array_equal(array, ours.state_dict()[key])


def test_shards(tmp_path):
    theirs = peer("llama")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    np.testing.assert_allclose(our_logits(load(tmp_path, "cpu")), peer_logits(theirs), atol=1e-4)


def test_bfloat16_weights_need_no_ml_dtypes(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="the peer needs torch")
    theirs = peer("llama").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    found = load(tmp_path, "cpu").state_dict()["token_embedding.weight"]
    want = theirs.get_input_embeddings().weight.detach().float().numpy()
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_are_saved_as_they_are(tmp_path, dtype):
    pytest.importorskip("safetensors", reason="saving needs safetensors")
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    config = PRESETS["llama-3.2-1b"].replace(
        vocab_size=11, embed_dim=8, num_heads=2, num_kv_heads=1, num_layers=1, hidden_dim=12
    )
    model = Transformer.from_config(config, device="cpu", dtype=dtype, seed=1)
    save(model, tmp_path)
    file = open_model(tmp_path)
    assert {info.dtype_name for info in file.tensors} == {
        {"bfloat16": "BF16", "float16": "F16", "float64": "F64"}[dtype]
    }
    again = file.load("cpu", dtype)
    for key, array in again.state_dict().items():
        np.testing.assert_array_equal(array, model.state_dict()[key])


def test_names_with_masks_and_without_a_prefix(tmp_path):
    """What the first GPT-2 files look like: no prefix, and the causal masks stored."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="writes the file")
    config = PRESETS["gpt2"].replace(
        vocab_size=11, embed_dim=8, num_heads=2, num_layers=1, hidden_dim=32, max_seq_length=16
    )
    model = Transformer.from_config(config, device="cpu", seed=1)
    save(model, tmp_path)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    assert "transformer.wte.weight" in tensors
    tensors = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
    tensors["h.0.attn.masked_bias"] = np.float32([-1e4]).reshape(())
    tensors["lm_head.weight"] = tensors["wte.weight"]
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    again = load(tmp_path, "cpu")
    for key, array in again.state_dict().items():
        np.testing.assert_array_equal(array, model.state_dict()[key])


# --- configurations and names ---------------------------------------------------------------

EXAMPLES = {name: config for name, config in PRESETS.items() if config.embed_dim < 1100} | {
    "gpt2-relu": PRESETS["gpt2"].replace(activation="relu", tie_embeddings=False, dropout=0.1),
    "mistral": PRESETS["llama-3.1-8b"].replace(rope_scaling=None, sliding_window=4096),
    "qwen3": PRESETS["qwen2.5-0.5b"].replace(qkv_bias=False, qk_norm=True, head_dim=128),
    "qwen2-window": PRESETS["qwen2.5-0.5b"].replace(sliding_window=64),
    "llama-linear": PRESETS["llama-3.2-1b"].replace(rope_scaling=RopeScaling("linear", 4.0)),
    "llama-dropout": PRESETS["llama-3.2-1b"].replace(dropout=0.1),
    "partial-rotary": PRESETS["smollm2-135m"].replace(rotary_dim=32),
    "geglu": PRESETS["smollm2-135m"].replace(activation="geglu"),
    "post-norm": PRESETS["gpt2"].replace(pre_norm=False),
    "head-bias": PRESETS["gpt2"].replace(head_bias=True, tie_embeddings=False),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_config_comes_back(name):
    config = EXAMPLES[name]
    values = json.loads(json.dumps(hf_config(config, "float32")))
    assert config_from_hf(values) == config


def test_families_of_configs():
    kinds = {name: hf_type(config) for name, config in EXAMPLES.items()}
    assert kinds["gpt2"] == kinds["gpt2-relu"] == "gpt2"
    assert kinds["smollm2-135m"] == kinds["llama-linear"] == kinds["llama-dropout"] == "llama"
    assert kinds["qwen2.5-0.5b"] == kinds["qwen2-window"] == "qwen2"
    assert (kinds["mistral"], kinds["qwen3"]) == ("mistral", "qwen3")
    assert (kinds["bert-base"], kinds["minilm-l6"]) == ("bert", "bert")
    assert (kinds["t5-small"], kinds["flan-t5-small"]) == ("t5", "t5")
    for name in ("course", "partial-rotary", "geglu", "post-norm", "head-bias"):
        assert kinds[name] == OWN_TYPE


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_one_to_one(family):
    """The tables name every weight of a model once, with the shapes that the model has."""
    small = {"vocab_size": 11, "embed_dim": 8, "num_heads": 2, "num_layers": 2, "hidden_dim": 12}
    kind = family.removeprefix("gguf-")
    llama = ("qwen2.5-0.5b", {"num_kv_heads": 1, "qk_norm": True})
    source, choices = {
        "bert": ("bert-base", {}), "t5": ("t5-small", {"encoder_layers": 3}),
        "t5-gated": ("flan-t5-small", {"encoder_layers": 3}), "gpt2": ("gpt2", {}),
        "course": ("course", {}), "llama": llama, "qwen": llama,
    }[kind]  # fmt: skip
    config = PRESETS[source].replace(**small, max_seq_length=16, tie_embeddings=False, **choices)
    state = Transformer.from_config(config, device="cpu", seed=0).state_dict()
    mapped = mapped_tensors(family, config)
    assert sorted(name for each in mapped for name in each.targets) == sorted(state)
    assert len({each.source for each in mapped}) == len(mapped)
    for each in mapped:
        assert each.gathered(state.__getitem__).shape == each.shape


def test_a_choice_that_a_family_has_no_name_for():
    config = TransformerConfig(11, 8, 2, 1, 12, head_bias=True)
    with pytest.raises(ValueError, match="gpt2 files have no name for"):
        mapped_tensors("gpt2", config)


def test_defaults_of_silent_configs():
    """An absent key means what transformers takes for it, null what null means."""
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    made = {kind: config_from_hf(sizes | {"model_type": kind, "num_attention_heads": 8})
            for kind in ("llama", "mistral")}  # fmt: skip
    assert (made["llama"].kv_heads, made["mistral"].kv_heads) == (8, 8)
    assert (made["llama"].sliding_window, made["mistral"].sliding_window) == (None, 4096)
    assert made["llama"].norm_eps == 1e-6
    without = config_from_hf(SIZES | {"model_type": "mistral", "sliding_window": None})
    assert without.sliding_window is None
    assert config_from_hf(SIZES | {"model_type": "qwen3"}).head_dim == 128
    assert config_from_hf({"model_type": "gpt2"}).hidden_dim == 3072


def test_windows_of_some_layers_are_refused():
    values = SIZES | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8}
    assert config_from_hf(values | {"max_window_layers": 0}).sliding_window == 8
    assert config_from_hf(values | {"max_window_layers": 2}).sliding_window is None
    with pytest.raises(ModelFileError, match="for some layers only"):
        config_from_hf(values | {"max_window_layers": 1})
    mixed = ["full_attention", "sliding_attention"]
    with pytest.raises(ModelFileError, match="for some layers only"):
        config_from_hf(values | {"layer_types": mixed})


def test_unknown_keys_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        config_from_hf(SIZES | {"model_type": "llama", "logit_scale": 3.0})
    assert "'logit_scale'" in caplog.text


def test_both_spellings_of_rotary_settings():
    older = {"rope_theta": 50000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    newer = {"rope_parameters": LINEAR}
    base = SIZES | {"model_type": "llama"}
    assert config_from_hf(base | older) == config_from_hf(base | newer)
    assert config_from_hf(base | older).rope_theta == 50000.0


def test_a_folder_and_its_weights_file_are_the_same_model(tmp_path):
    folder = make.write_folder(tmp_path / "m")
    assert open_model(folder / "model.safetensors").path == folder
    assert open_model(str(folder)).format == "safetensors"
