"""Token datasets and batches: text comes back, windows come once, and what is broken is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from tinytorch_gpu.training import DataLoader, TokenDataset, char_tokenizer, windows
from tinytorch_gpu.training.batches import shuffled


def test_text_comes_back(text: Path, data: TokenDataset) -> None:
    ids = np.concatenate([data.train, data.val])
    assert data.tokenizer.decode(ids) == text.read_text(encoding="utf-8")
    assert len(data.train) == int(len(ids) * 0.9)
    again = TokenDataset.build(text, char_tokenizer(text), data.folder)
    assert again.digest == data.digest


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 64, 1000])
def test_a_shuffle_is_a_permutation(count: int) -> None:
    assert sorted(shuffled(i, count, 9) for i in range(count)) == list(range(count))
    assert count < 17 or [shuffled(i, count, 9) for i in range(count)] != [
        shuffled(i, count, 10) for i in range(count)
    ]


@pytest.mark.parametrize(("size", "length"), [(101, 10), (108, 10), (33, 32), (40, 32), (5, 1)])
def test_an_epoch_has_each_window_once(size: int, length: int) -> None:
    loader = DataLoader(np.arange(size), 1, length, seed=2)
    orders = []
    for epoch in range(4):
        starts = []
        while True:
            before = loader.state_dict()
            inputs, targets = loader.next()
            if loader.epoch != epoch:
                loader.load_state_dict({**before, "epoch": epoch + 1, "index": 0})
                break
            np.testing.assert_array_equal(targets, inputs + 1)
            starts.append(int(inputs[0, 0]))
        assert len(set(starts)) == len(starts)
        assert sorted(starts) == list(range(min(starts), max(starts) + 1, length))
        assert len(starts) >= max(1, (size - 1) // length - 1)
        orders.append(tuple(starts))
    assert size < 100 or len(set(orders)) == 4


def test_evaluation_windows_have_each_target_once() -> None:
    for size in (2, 9, 10, 11, 30, 31):
        seen = [t for _, targets in windows(np.arange(size), 2, 5) for t in targets.ravel()]
        assert seen == list(range(1, size))


def test_bad_data_is_told(tmp_path: Path, text: Path, data: TokenDataset) -> None:
    tokenizer = char_tokenizer(text)
    bad = tmp_path / "latin.txt"
    bad.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="0xe9"):
        char_tokenizer(bad)
    with pytest.raises(ValueError, match="no text at"):
        TokenDataset.build(tmp_path / "absent", tokenizer, tmp_path / "d")
    (tmp_path / "short").write_text("a")
    with pytest.raises(ValueError, match="1 tokens"):
        TokenDataset.build(tmp_path / "short", tokenizer, tmp_path / "d")
    with pytest.raises(ValueError, match="no token dataset"):
        TokenDataset.open(tmp_path / "d")
    copy = tmp_path / "copy"
    shutil.copytree(data.folder, copy)
    about = json.loads((copy / "dataset.json").read_text())
    for change in (
        {"tokens": 7},
        {"dtype": "<f4"},
        {"train": 10**9},
        {"version": 2},
        {"vocab_size": "x"},
    ):
        (copy / "dataset.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(ValueError, match=r"dataset|tokens"):
            TokenDataset.open(copy)
    with pytest.raises(ValueError, match="too few"):
        DataLoader(np.arange(4), 1, 8)
    with pytest.raises(ValueError, match="other data"):
        DataLoader(np.arange(40), 1, 8).load_state_dict(
            DataLoader(np.arange(41), 1, 8).state_dict()
        )
