"""BERT and T5 against Hugging Face transformers, and against numbers that it gave for real models."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Transformer, no_grad, ops
from tinytorch_gpu.checkpoint import ModelFile, ModelFileError, load, open_model, save
from tinytorch_gpu.checkpoint.names import mapped_tensors
from tinytorch_gpu.core.positions import distance_buckets

PEERS = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))
needs_peers = pytest.mark.skipif(not PEERS, reason="transformers and PyTorch are the oracles")
IDS = np.random.default_rng(0).integers(1, 61, (3, 9))
LENGTHS = np.array([9, 5, 1])
REAL = np.arange(9) < LENGTHS[:, None]
TARGET = np.random.default_rng(1).integers(1, 61, (3, 7))


def demo(name: str) -> ModelFile:
    """An installed demo model; CI must have it."""
    try:
        return open_model(name)
    except (ModelFileError, ValueError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def theirs(kind: str, **changes: Any) -> Any:
    """A random model of transformers, in evaluation mode."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    if kind == "bert":
        sizes = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                     intermediate_size=48, max_position_embeddings=20)  # fmt: skip
        made = hf.BertModel(hf.BertConfig(**sizes, **changes))
    else:
        sizes = dict(vocab_size=61, d_model=32, d_kv=12, d_ff=48, num_layers=3, num_decoder_layers=2,
                     num_heads=4, dropout_rate=0.0)  # fmt: skip
        if kind == "flan-t5":
            changes = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **changes}
        made = hf.T5ForConditionalGeneration(hf.T5Config(**sizes, **changes))
        if kind == "flan-t5":
            made.config.tie_word_embeddings = False
            made.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(61, 32))
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def ours(made: Any, folder: Path) -> Transformer:
    made.save_pretrained(folder)
    return load(folder, device="cpu")


def tensor(array: Any) -> Any:
    import torch

    return torch.tensor(np.asarray(array))


@needs_peers
@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new"])
def test_bert_gives_their_states(tmp_path: Path, activation: str) -> None:
    made = theirs("bert", hidden_act=activation)
    kinds, mask = IDS % 2, tensor(REAL).long()
    wanted = made(tensor(IDS), attention_mask=mask, token_type_ids=tensor(kinds)).last_hidden_state
    model = ours(made, tmp_path)
    with no_grad():
        found = model(IDS, lengths=LENGTHS, token_types=kinds).numpy()
    np.testing.assert_allclose(found[REAL], wanted.detach().numpy()[REAL], atol=1e-5)


@needs_peers
@pytest.mark.parametrize("kind", ["t5", "flan-t5"])
def test_t5_gives_their_logits_and_writes_their_text(tmp_path: Path, kind: str) -> None:
    made, mask = theirs(kind), tensor(REAL).long()
    model = ours(made, tmp_path)
    wanted = made(tensor(IDS), attention_mask=mask, decoder_input_ids=tensor(TARGET))
    with no_grad():
        memory = model.encode(IDS, LENGTHS)
        found = model(TARGET, source=memory).numpy()
    states = wanted.encoder_last_hidden_state.detach().numpy()
    np.testing.assert_allclose(memory.states.numpy()[REAL], states[REAL], atol=1e-5)
    np.testing.assert_allclose(found, wanted.logits.detach().numpy(), atol=2e-5)
    text = made.generate(
        tensor(IDS), attention_mask=mask, max_new_tokens=15, do_sample=False, num_beams=1,
        decoder_start_token_id=0, eos_token_id=None,
    )  # fmt: skip
    sources = [row[:length].tolist() for row, length in zip(IDS, LENGTHS, strict=True)]
    assert model.generate(sources, 15, temperature=0).numpy().tolist() == text.tolist()


@needs_peers
def test_t5_looks_far(tmp_path: Path) -> None:
    """Beyond the last bucket of distances, in both halves."""
    made = theirs("t5")
    far = np.random.default_rng(2).integers(1, 61, (2, 300))
    wanted = made(tensor(far), decoder_input_ids=tensor(far[:, ::-1].copy())).logits
    with no_grad():
        found = ours(made, tmp_path)(far[:, ::-1], source=far).numpy()
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=3e-5)


@needs_peers
@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20), (64, 1000)])
def test_buckets_are_theirs(both_ways: bool, buckets: int, distance: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    far = tensor(np.arange(-distance, distance + 1))
    bucket = T5Attention._relative_position_bucket
    wanted = bucket(far, bidirectional=both_ways, num_buckets=buckets, max_distance=distance)
    assert distance_buckets(buckets, distance, both_ways).tolist() == wanted.tolist()


@needs_peers
@pytest.mark.parametrize("kind", ["bert", "t5", "flan-t5"])
def test_gradients_are_theirs(tmp_path: Path, kind: str) -> None:
    import torch

    made = theirs(kind)
    model = ours(made, tmp_path)
    mask = tensor(REAL).long()
    if kind == "bert":
        weights = np.random.default_rng(3).standard_normal((3, 9, 32)) * REAL[:, :, None]
        out = made(tensor(IDS), attention_mask=mask).last_hidden_state
        (out * tensor(weights).float()).sum().backward()
        (model(IDS, lengths=LENGTHS) * weights.astype("float32")).sum().backward()
    else:
        out = made(tensor(IDS), attention_mask=mask, decoder_input_ids=tensor(TARGET)).logits
        classes = np.arange(21) % 61
        torch.nn.functional.cross_entropy(out.reshape(21, 61), tensor(classes)).backward()
        logits = model(TARGET, source=model.encode(IDS, LENGTHS))
        ops.cross_entropy(logits.reshape(21, 61), classes).backward()
    wanted = {name: p.grad.numpy() for name, p in made.named_parameters() if p.grad is not None}
    for parameter in model.parameters():  # gradients in the places of weights: then names fit
        parameter.data[...] = parameter.grad.data
    state = model.state_dict()
    family = {"bert": "bert", "t5": "t5", "flan-t5": "t5-gated"}[kind]
    for each in mapped_tensors(family, model.config):
        right = wanted[each.source]
        found = each.gathered(state.__getitem__)
        np.testing.assert_allclose(found, right, atol=2e-5 * np.abs(right).max() + 1e-6, err_msg=each.source)  # fmt: skip


@needs_peers
@pytest.mark.parametrize("kind", ["bert", "t5", "flan-t5"])
def test_they_load_what_we_save(tmp_path: Path, kind: str) -> None:
    import transformers as hf

    made = theirs(kind)
    model = ours(made, tmp_path / "theirs")
    save(model, tmp_path / "ours")
    back = load(tmp_path / "ours", device="cpu")
    assert back.config == model.config
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[name], array)
    if kind == "bert":
        again = hf.BertModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False).eval()
        found, wanted = again(tensor(IDS))[0], made(tensor(IDS))[0]
    else:
        again = hf.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
        found, wanted = (
            m(tensor(IDS), decoder_input_ids=tensor(TARGET)).logits for m in (again, made)
        )
    np.testing.assert_allclose(found.detach().numpy(), wanted.detach().numpy(), atol=1e-5)


# --- real models: the numbers are those of transformers 5.24's BertModel and T5ForConditionalGeneration ---

TEXTS = [
    "A man is eating food.", "Someone is having a meal at a very small place, I think.",
    "The stock market fell sharply today.",
]  # fmt: skip
VECTORS = [
    [0.03324, 0.00441, -0.00628, 0.04838], [0.07302, 0.05821, -0.03171, 0.00859],
    [0.06046, 0.00545, 0.07657, 0.05383],
]  # fmt: skip


def test_minilm_as_it_is() -> None:
    file = demo("minilm")
    ids = [file.tokenizer().encode(text) for text in TEXTS]
    assert ids[0] == [101, 1037, 2158, 2003, 5983, 2833, 1012, 102]
    model = file.load(device="cpu")
    with no_grad():
        states = model(ids[0]).numpy()
        vectors = model.embed(ids).numpy()
    np.testing.assert_allclose(states[0, 0, :4], [-0.00255, 0.1177, 0.00374, 0.24471], atol=2e-5)
    np.testing.assert_allclose(vectors[:, :4], VECTORS, atol=2e-5)
    wanted = [[1, 0.4925, 0.0037], [0.4925, 1, 0.0007], [0.0037, 0.0007, 1]]
    np.testing.assert_allclose(vectors @ vectors.T, wanted, atol=1e-4)


TITLES = {
    "intent: fix the flaky login test | actions: bash, edit | files: auth.py, test_login.py | "
    "symbols: LoginForm": (
        [0, 14269, 8143, 16, 185, 189, 5, 102, 63, 1], [-78.4466, -10.5937, -15.3032, -3.7912],
    ),
    "actions: edit, bash | files: docs/install.md | symbols: pip, venv | notes: The instructions for "
    "installing are out of date. I write new ones and check them in a fresh environment.": (
        [0, 14269, 2545, 11, 10446, 1112, 1], [-58.3931, -8.0642, -12.0957, -2.5115],
    ),
}  # fmt: skip


def test_the_title_model_writes_titles() -> None:
    file = demo("flan-t5-title")
    assert file.format == "onnx" and file.family == "t5-gated"
    tokenizer, model = file.tokenizer(), file.load(device="cpu")
    assert tokenizer.eos_ids == (1,) and model.count_parameters() == 76_961_152
    sources = [tokenizer.encode(f"summarize agent step: {text}") for text in TITLES]
    for source, (written, logits) in zip(sources, TITLES.values(), strict=True):
        found = model.generate(source, 24, temperature=0, stop_tokens=[1]).numpy()[0]
        assert found.tolist() == written
        with no_grad():
            first = model([0], source=source).numpy()[0, 0, :4]
        np.testing.assert_allclose(first, logits, atol=2e-3)
    together = model.generate(sources, 24, temperature=0, stop_tokens=[1]).numpy()
    for row, (written, _) in zip(together, TITLES.values(), strict=True):
        assert row[: len(written)].tolist() == written and not row[len(written) :].any()
