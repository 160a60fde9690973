"""Adapters as files: those of peft load here and ours load there; runs that train them, and commands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

from test_trainer import assert_same
from test_trainer import model_of as small_model

from tinytorch_gpu import Transformer, TransformerConfig
from tinytorch_gpu.checkpoint import (
    ModelFileError,
    load_adapter,
    open_model,
    save_adapter,
)
from tinytorch_gpu.checkpoint.save import save
from tinytorch_gpu.cli.main import main
from tinytorch_gpu.config import FAMILIES
from tinytorch_gpu.core.lora import LoraConfig, adapters, add_lora, merge_lora
from tinytorch_gpu.core.tensor import no_grad
from tinytorch_gpu.training import CrossEntropyLoss, Run, TokenDataset, Trainer, TrainingConfig
from tinytorch_gpu.training.adapters import told

IDS = np.array([[1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, 11]])
CHOICES: dict[str, dict[str, Any]] = {
    "gpt2": FAMILIES["gpt2"],
    "llama": {**FAMILIES["llama"], "num_kv_heads": 2, "tie_embeddings": True},
    "course": {},
}


def model_of(name: str, dtype: str = "float32", **sizes: int) -> Transformer:
    shape = {
        "vocab_size": 50,
        "embed_dim": 32,
        "num_heads": 4,
        "num_layers": 2,
        "hidden_dim": 48,
        "max_seq_length": 64,
    }
    config = TransformerConfig(**{**shape, **sizes, **CHOICES[name]})
    return Transformer.from_config(config, "cpu", dtype, seed=1)


def adapted(name: str, targets: Any = "all", dtype: str = "float32") -> Transformer:
    model = model_of(name, dtype)
    add_lora(model, LoraConfig(3, 12.0, targets=targets), seed=2)
    random = np.random.default_rng(3)
    for n, p in model.named_parameters():
        if n.endswith(".b"):
            p.data[...] = random.normal(0, 0.1, p.shape)
    return model


def logits(model: Transformer) -> Any:
    with no_grad():
        return model(IDS).numpy()


# --- peft ---------------------------------------------------------------------------------------


def theirs(model: Transformer, folder: Path) -> Any:
    """Hugging Face's model of the same weights."""
    hf: Any = pytest.importorskip("transformers", reason="peft adapts its models")
    torch: Any = pytest.importorskip("torch")
    save(model, folder)
    return hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


@pytest.mark.parametrize("targets", [("q", "v"), ("k", "o", "down"), ("all",)], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_peft_computes_the_same_with_our_files(name: str, targets: Any, tmp_path: Path) -> None:
    """Logits, and the gradient of every factor."""
    peft: Any = pytest.importorskip("peft", reason="peft is what this compares with")
    torch: Any = pytest.importorskip("torch")
    other = theirs(model_of(name, "float64"), tmp_path / "base")
    model = adapted(name, targets, "float64")
    save_adapter(model, tmp_path / "adapter", "base")
    tuned = (
        peft.PeftModel.from_pretrained(other, tmp_path / "adapter", is_trainable=True)
        .double()
        .eval()
    )
    ids = torch.tensor(IDS)
    out = tuned(ids).logits
    # Hugging Face keeps the LLaMA norm and rotary tables in float32.
    near = 1e-10 if name == "gpt2" else 1e-6
    np.testing.assert_allclose(logits(model), out.detach().numpy(), atol=near)
    torch.nn.functional.cross_entropy(
        out[:, :-1].reshape(-1, 50), ids[:, 1:].reshape(-1)
    ).backward()
    CrossEntropyLoss()(model(IDS)[:, :-1], IDS[:, 1:]).backward()
    total = {which: sum(float((p.grad**2).sum()) for n, p in tuned.named_parameters()
                        if f"lora_{which}" in n) for which in "AB"}  # fmt: skip
    ours = {which: sum(float((p.grad.numpy() ** 2).sum()) for n, p in model.named_parameters()
                       if n.endswith(f".{which.lower()}")) for which in "AB"}  # fmt: skip
    assert ours["A"] == pytest.approx(total["A"], rel=10 * near + 1e-8)
    if (
        name == "llama"
    ):  # one layer of GPT-2 is three of our groups: B has entries there that we have not
        assert ours["B"] == pytest.approx(total["B"], rel=10 * near + 1e-8)
    else:
        assert 0 < ours["B"] <= total["B"] * (1 + 1e-8)


@pytest.mark.parametrize("options", [
    {"target_modules": "all-linear", "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"up_proj": 3}},
    {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    {"target_modules": ["v_proj"], "layers_to_transform": [1], "lora_dropout": 0.5},
], ids=["patterns", "rslora", "one layer"])  # fmt: skip
def test_adapters_of_peft_load_here(options: dict[str, Any], tmp_path: Path) -> None:
    peft: Any = pytest.importorskip("peft", reason="peft makes the files")
    torch: Any = pytest.importorskip("torch")
    model = model_of("llama", "float64")
    other = theirs(model, tmp_path / "base")
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    torch.manual_seed(0)
    tuned = peft.get_peft_model(other, settings).double().eval()
    tuned.save_pretrained(tmp_path / "adapter")
    load_adapter(model.eval(), tmp_path / "adapter")
    with torch.no_grad():
        expected = tuned(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(logits(model), expected, atol=1e-6)
    save_adapter(model, tmp_path / "again")
    again = model_of("llama", "float64").eval()
    load_adapter(again, tmp_path / "again")
    np.testing.assert_allclose(logits(again), expected, atol=1e-6)
    merge_lora(again)
    np.testing.assert_allclose(logits(again), expected, atol=1e-6)


def test_gpt2s_fused_layer_as_peft_has_it(tmp_path: Path) -> None:
    peft: Any = pytest.importorskip("peft", reason="peft makes the files")
    torch: Any = pytest.importorskip("torch")
    model = model_of("gpt2", "float64")
    other = theirs(model, tmp_path / "base")
    settings = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, fan_in_fan_out=True,
                               target_modules=["c_attn", "mlp.c_proj"], task_type="CAUSAL_LM")  # fmt: skip
    tuned = peft.get_peft_model(other, settings).double().eval()
    tuned.save_pretrained(tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")
    assert {g for _, a in adapters(model) for g in a.groups} == {"q_k_v", "down"}
    with torch.no_grad():
        expected = tuned(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(logits(model), expected, atol=1e-6)


# --- our own files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_saved_comes_back(name: str, tmp_path: Path) -> None:
    model = adapted(name, ("q", "v", "up"))
    save_adapter(model, tmp_path, "some/base")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "some/base" and told["peft_type"] == "LORA"
    fresh, filled = model_of(name), model_of(name)
    load_adapter(fresh, tmp_path)
    np.testing.assert_allclose(logits(fresh), logits(model), atol=1e-6)
    add_lora(filled, LoraConfig(3, 12.0, targets=("q", "v", "up")), seed=9)
    load_adapter(filled, tmp_path)
    for (n, p), (_, q) in zip(filled.named_parameters(), model.named_parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data, err_msg=n)
    with pytest.raises(ValueError, match=r"merge_lora\(model\) first"):
        save(model, tmp_path / "whole")
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapter(model_of(name), tmp_path / "none")


def _edited(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(adapted("llama"), folder)
    for other, problem in (
        (
            model_of("llama", embed_dim=48),
            "the layer maps 48 to 48: the adapter belongs to another model",
        ),
        (
            model_of("gpt2"),
            r"no layer 'model\.layers.*called like 'transformer\.h\.0\.attn\.c_attn'",
        ),
        (model_of("llama", num_layers=1), r"no layer 'model\.layers\.1"),
    ):
        before = logits(other)
        with pytest.raises(ModelFileError, match=problem):
            load_adapter(other, folder)
        assert not adapters(other) and all(p.requires_grad for p in other.parameters())
        np.testing.assert_array_equal(logits(other), before)
    other = model_of("llama")
    add_lora(other, LoraConfig(2))
    with pytest.raises(ModelFileError, match="other layers than the model has adapters on"):
        load_adapter(other, folder)
    for changes, problem in (
        ({"peft_type": "IA3"}, "'IA3'; only LORA"), ({"use_dora": True}, "DoRA"), ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole layers"), ({"lora_alpha": "x"}, "number"),
        ({"lora_dropout": 1}, "from 0 to below 1"), ({"alpha_pattern": {"(a+)+$": 1}}, "no layer's name"),
        ({"alpha_pattern": {"q_proj": "x"}}, "number"),
    ):  # fmt: skip
        save_adapter(adapted("llama"), folder)
        _edited(folder, **changes)
        with pytest.raises(ModelFileError, match=problem):
            load_adapter(model_of("llama"), folder)
    save_adapter(adapted("llama"), folder)
    with pytest.raises(ModelFileError, match=r"no adapter at .*absent.*does not exist"):
        load_adapter(model_of("llama"), tmp_path / "absent")
    with pytest.raises(ModelFileError, match=r"has no adapter_config\.json"):
        load_adapter(model_of("llama"), tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="pickled adapter must be converted"):
        load_adapter(model_of("llama"), folder)


# --- runs -----------------------------------------------------------------------------------------

SETTINGS = TrainingConfig(steps=6, batch=3, length=16, warmup=2, eval_every=3, eval_tokens=200, save_every=2,
                          log_every=1)  # fmt: skip


@pytest.fixture
def base(data: TokenDataset, tmp_path: Path) -> Path:
    return save(small_model(data, dropout=0.1), tmp_path / "base", data.tokenizer)


def trainer_of(base: Path, data: TokenDataset, folder: Path, dtype: str = "float32") -> Trainer:
    model, config = open_model(base).load("cpu", dtype), LoraConfig(3, 6.0, 0.2, ("q", "v", "up"))
    about = {"training": SETTINGS.to_dict(), "dtype": dtype, "data": str(data.folder),
             "lora": told(config, str(base), model, dtype)}  # fmt: skip
    model.generator.seed = 4
    add_lora(model, config, seed=4)
    return Trainer(model, data, SETTINGS, Run.create(folder, about))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_of_adapters_is_the_uninterrupted_one(
    base: Path, data: TokenDataset, tmp_path: Path, dtype: str
) -> None:
    whole, part = (trainer_of(base, data, tmp_path / n, dtype) for n in ("whole", "part"))
    whole.train()

    def stop(found: Any, extra: Any) -> None:
        if found.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.train(stop)
    resumed = Trainer.resume(tmp_path / "part", "cpu")
    assert resumed.steps_done == 3
    resumed.train()
    assert_same(whole.model, resumed.model)
    for name, array in whole.optimizer.state_dict().items():
        np.testing.assert_array_equal(array, resumed.optimizer.state_dict()[name])
    lines = [[m["loss"] for m in Run(tmp_path / n).metrics()] for n in ("whole", "part")]
    assert lines[0] == lines[1] and len(lines[0]) == 6


def test_a_checkpoint_holds_the_adapters_only(
    base: Path, data: TokenDataset, tmp_path: Path
) -> None:
    trainer = trainer_of(base, data, tmp_path / "run")
    trainer.step()
    path = trainer.save()
    assert sorted(p.name for p in path.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    trained = sum(p.size for _, p in trainer.named)
    assert (path / "adapter_model.safetensors").stat().st_size < 4 * (3 * trained) + 4096
    model = open_model(base).load("cpu", "float32")
    load_adapter(model, tmp_path / "run")
    trainer.model.eval()
    np.testing.assert_allclose(logits(model), logits(trainer.model), atol=1e-6)
    with pytest.raises(ModelFileError, match="holds an adapter: name its base model"):
        open_model(tmp_path / "run")
    save(small_model(data, dropout=0.1, dtype="float32", norm="layer", activation="relu"), base)
    with pytest.raises(ValueError, match="not the model that the run was begun with"):
        Trainer.resume(tmp_path / "run", "cpu")


SMALL = ["--steps", "3", "--batch", "2", "--length", "8", "--eval-every", "0", "--device", "cpu"]


def test_commands_from_begin_to_merged(
    base: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, merged = str(tmp_path / "run"), str(tmp_path / "merged")
    begin = ["train", "--data", str(text), "--out", run, "--init", str(base), *SMALL]
    assert (
        main([*begin, "--lora-rank", "2", "--lora-alpha", "4", "--lora-targets", "q,v,down"]) == 0
    )
    told = capsys.readouterr().err
    assert "trained)" in told and f"generate -m {base} --adapter {run}" in told
    assert main(["train", "--resume", run, "--steps", "5", "--device", "cpu"]) == 0
    assert main(["merge", "-m", str(base), "--adapter", run, "--out", merged]) == 0
    ask = [
        "generate",
        "--raw",
        "-p",
        "The",
        "--max-tokens",
        "6",
        "--temperature",
        "0",
        "--device",
        "cpu",
    ]
    capsys.readouterr()
    assert main([*ask, "-m", str(base), "--adapter", run]) == 0
    beside = capsys.readouterr().out
    assert main([*ask, "-m", merged]) == 0
    assert capsys.readouterr().out == beside


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--lora-alpha", "4", "--init", "BASE"], "--lora-alpha needs a --lora-rank"),
        (["train", "--lora-rank", "4"], "name it with --init"),
        (["train", "--lora-rank", "0", "--init", "BASE"], "at least 1"),
        (
            ["train", "--lora-rank", "4", "--lora-targets", "w", "--init", "BASE"],
            "unknown LoRA target 'w'",
        ),
        (
            ["train", "--lora-rank", "4", "--lora-targets", "gate", "--init", "BASE"],
            "nothing called gate",
        ),
        (["generate", "-m", "BASE", "--adapter", "nowhere"], "no adapter at 'nowhere'"),
        (["generate", "-m", "BASE", "--adapter", "BASE"], "has no adapter_config.json"),
        (
            ["merge", "-m", "BASE", "--adapter", "nowhere", "--out", "OUT"],
            "no adapter at 'nowhere'",
        ),
        (["merge", "-m", "BASE", "--adapter", "nowhere", "--out", "BASE"], "holds a model"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], told: str, base: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    given = [{"BASE": str(base), "OUT": str(tmp_path / "out")}.get(a, a) for a in arguments]
    if given[0] == "train":
        given += ["--data", str(text), "--out", str(tmp_path / "run"), *SMALL]
    assert main(given) == 2
    error = capsys.readouterr().err.strip()
    assert told in error and "\n" not in error
    assert not (tmp_path / "run" / "training.json").exists() and not (tmp_path / "out").exists()
