"""Prefix reuse: less is fed, the results are the same; a file that does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Transformer, TransformerConfig
from tinytorch_gpu.backend import to_numpy, widen
from tinytorch_gpu.generation import DraftModel, Lookup, PrefixCache

LLAMA: dict[str, Any] = {"norm": "rms", "position": "rotary", "activation": "swiglu",
                         "ffn_bias": False, "num_kv_heads": 2}  # fmt: skip
SYSTEM = [7, 3, 9, 9, 4, 1, 30, 31]


def make(place: str = "cpu", seed: int = 4, width: int = 32, **choices: Any) -> Transformer:
    config = TransformerConfig(50, width, 4, 2, 48, 64, **LLAMA | choices)
    return Transformer.from_config(config, device=place, seed=seed).eval()


def rows(result: Any) -> list[list[int]]:
    return [list(map(int, row.numpy())) for row in result]


def fed(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass of more than one takes, all rows together."""
    counts, real = [], model.hidden

    def hidden(ids: Any, **more: Any) -> Any:
        counts.append(int(np.prod(ids.shape)))
        return real(ids, **more)

    monkeypatch.setattr(model, "hidden", hidden)
    return counts


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0}, {"temperature": 0.8, "seed": 3},
    {"temperature": 0, "speculate": "lookup"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_calls_one_after_the_other(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    expected = [rows(model.generate([SYSTEM + end], 8, **options))[0] for end in ([5], [6, 2], [5])]
    counts, prefix = fed(model, monkeypatch), PrefixCache(model)
    for i, end in enumerate(([5], [6, 2], [5])):
        assert rows(prefix.generate([SYSTEM + end], 8, **options))[0] == expected[i]
        assert prefix.ids == expected[i][:-1] and prefix.cache.lengths.tolist() == [len(prefix.ids)]
    assert counts[0] == len(SYSTEM) + 1 and prefix.saved == 2 * len(SYSTEM)
    turn = [*expected[2], 8]
    whole = rows(prefix.generate([turn], 5, temperature=0))[0]
    assert whole == rows(model.generate([turn], 5, temperature=0))[0]
    assert prefix.saved == 2 * len(SYSTEM) + len(turn) - 2


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_many_prompts_feed_their_beginning_once(
    gpu: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (make(), make(gpu)):
        prompts = [SYSTEM + end for end in ([5], [6, 2, 2], [1, 1])]
        expected = rows(model.generate(prompts, 6, **options))
        with monkeypatch.context() as patch:
            counts, prefix = fed(model, patch), PrefixCache(model)
            assert rows(prefix.generate(prompts, 6, **options)) == expected
        assert counts[:2] == [len(SYSTEM), 3 * 3] and prefix.ids == SYSTEM
        assert prefix.saved == 2 * len(SYSTEM)
        same = [[*SYSTEM, 5], [*SYSTEM, 6]]
        assert rows(prefix.generate(same, 4, **options)) == rows(model.generate(same, 4, **options))
        assert prefix.saved == 4 * len(SYSTEM)


def test_nothing_in_common() -> None:
    model, prompts = make(), [[1, 2], [3]]
    prefix = PrefixCache(model)
    expected = rows(model.generate(prompts, 4, temperature=0))
    assert rows(prefix.generate(prompts, 4, temperature=0)) == expected and prefix.saved == 0
    assert rows(prefix.generate([[4, 4]], 4, temperature=0)) == rows(
        model.generate([[4, 4]], 4, temperature=0)
    )


def test_a_stream_that_is_closed_leaves_what_was_read() -> None:
    model = make()
    prefix = PrefixCache(model)
    steps = prefix.generate([SYSTEM], 20, temperature=0, stream=True)
    made = [int(next(steps).tokens[0]) for _ in range(4)]
    steps.close()
    assert prefix.ids == SYSTEM + made[:-1] and int(prefix.cache.lengths[0]) == len(prefix.ids)
    more = [*SYSTEM, *made, 3]
    whole = rows(model.generate([more], 5, temperature=0))
    assert rows(prefix.generate([more], 5, temperature=0)) == whole


def test_a_given_speculation_is_told_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, told, real = make(), list[Any](), Lookup.begin

    def begin(self: Lookup, *given: Any) -> None:
        told.append(self.before)
        real(self, *given)

    monkeypatch.setattr(Lookup, "begin", begin)
    prefix, look = PrefixCache(model), Lookup(adaptive=False, ngrams=(2,))
    prefix.feed(SYSTEM)
    ids = [*SYSTEM, 7, 3]
    assert rows(prefix.generate([ids], 6, temperature=0, speculate=look)) == rows(
        model.generate([ids], 6, temperature=0)
    )
    assert told == [[SYSTEM]] and look.before == () and look.drafted


def test_a_speculation_forgets_what_it_was_told() -> None:
    """It serves a call of another shape next; and no cache is no other cache."""
    model, draft = make(), DraftModel(make(seed=5))
    PrefixCache(model).generate(SYSTEM, 3, temperature=0, speculate=draft, cache=None)
    pair = [SYSTEM, SYSTEM[:5]]
    plain = rows(model.generate(pair, 4, temperature=0))
    assert rows(model.generate(pair, 4, temperature=0, speculate=draft)) == plain


def test_mistakes_are_named() -> None:
    prefix = PrefixCache(make(), capacity=10)
    with pytest.raises(ValueError, match="leave cache out"):
        prefix.generate([[1]], cache=prefix.cache)
    with pytest.raises(ValueError, match=r"11 .*10"):
        prefix.generate([[1] * 11])
    with pytest.raises(ValueError, match=r"11 .*10"):
        prefix.feed([1] * 11)
    with pytest.raises(ValueError, match="nothing to save"):
        PrefixCache(make()).save("x")
    assert rows(prefix.generate([[1, 2]], 3, temperature=0))[0][:2] == [1, 2]


# --- files -----------------------------------------------------------------------------------


def written(folder: Path, model: Transformer, dtype: str | None = None) -> tuple[PrefixCache, Path]:
    pytest.importorskip("safetensors", reason="safetensors writes the file")
    prefix = PrefixCache(model, dtype=dtype)
    prefix.feed(SYSTEM)
    prefix.save(folder / "system.safetensors")
    return prefix, folder / "system.safetensors"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, make())[1]


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """The same in 8 bit."""
    return written(tmp_path, make(), "q8_0")[1]


def test_a_saved_prefix_is_the_same(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = make(), [*SYSTEM, 5]
    expected = rows(model.generate([prompt], 8, temperature=0))
    counts, prefix = fed(model, monkeypatch), PrefixCache(model)
    prefix.load(file)
    assert prefix.ids == SYSTEM
    assert rows(prefix.generate([prompt], 8, temperature=0)) == expected
    assert counts[:2] == [1, 1], "the check of the last token, and the new one"
    assert [p.name for p in file.parent.iterdir()] == [file.name], "nothing is left beside it"


def test_on_another_device(file: Path, gpu: str) -> None:
    prefix = PrefixCache(make(gpu))
    prefix.load(file)
    expected = rows(make().generate([[*SYSTEM, 5]], 5, temperature=0))
    assert rows(prefix.generate([[*SYSTEM, 5]], 5, temperature=0)) == expected


def held(prefix: PrefixCache) -> list[bytes]:
    """All that a cache holds, bit for bit."""
    saved = prefix.cache.save()
    parts: list[Any] = []
    for array in (*saved["keys"], *saved["values"]):
        parts += [array.values, array.scales] if hasattr(array, "scales") else [array]
    return [to_numpy(part).tobytes() for part in parts]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "q8_0"])
@pytest.mark.parametrize("width", [32, 256], ids=["a group a head", "two groups"])
def test_a_cache_comes_back_bit_for_bit(tmp_path: Path, gpu: str, dtype: str, width: int) -> None:
    """The last token too, though it was computed anew behind a cache that was rounded."""
    for place in ("cpu", gpu):
        if place != "cpu" and dtype == "float64":
            continue
        prefix, path = written(tmp_path, make(place, width=width), dtype)
        for other in (make("cpu", width=width), make(place, width=width)):
            again = PrefixCache(other, dtype=dtype)
            again.load(path)
            assert again.ids == SYSTEM and held(again) == held(prefix)


@pytest.mark.parametrize("stored", ["float32", "float16", "q8_0"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0"])
def test_a_cache_of_another_dtype_takes_it_over(tmp_path: Path, stored: str, dtype: str) -> None:
    prefix, path = written(tmp_path, make(), stored)
    other = PrefixCache(make(), dtype=dtype)
    other.load(path)
    for a, b in zip(other.cache.keys, prefix.cache.keys, strict=True):
        a, b = (to_numpy(widen(x[:, : len(SYSTEM)])) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=0.006 * float(np.abs(b).max()))
    assert len(rows(other.generate([[*SYSTEM, 5]], 8, temperature=0))[0]) == len(SYSTEM) + 9


def _refused(file: Path, words: str, model: Transformer | None = None, **options: Any) -> None:
    prefix = PrefixCache(model or make(), **options)
    prefix.feed([1, 2])
    expected = rows(prefix.generate([[1, 2, 3]], 3, temperature=0))
    with pytest.raises(ValueError, match=words):
        prefix.load(file)
    assert rows(prefix.generate([[1, 2, 3]], 3, temperature=0)) == expected, "as it was"


def test_what_does_not_fit_is_refused(file: Path, tmp_path: Path) -> None:
    _refused(file, "another model: its 'num_kv_heads' is '2', this one's '4'", make(num_kv_heads=4))
    _refused(file, "differ by .* of their size", make(seed=5))
    _refused(file, "8 tokens, the cache has room for 6", capacity=6)
    _refused(tmp_path / "absent", "cannot open")
    changed = make()
    changed.state_dict()["transformer_blocks.0.ffn.w2"][...] *= 1.05  # seen by layer 1 only
    _refused(file, "layer 1", changed)


def _rewrite(file: Path, **changes: Any) -> Path:
    from safetensors.numpy import load_file, save_file

    tensors = {**load_file(file), **changes}
    save_file({n: t for n, t in tensors.items() if t is not None}, file)
    return file


def test_lying_files_are_refused(file: Path) -> None:
    from safetensors.numpy import load_file

    good = load_file(file)
    about = json.loads(good["about"].tobytes())

    def said(**changes: Any) -> Any:
        return np.frombuffer(json.dumps({**about, **changes}).encode(), np.uint8)

    bad: list[tuple[str, Any, str]] = [
        ("about", None, "no prompt cache"), ("about", said(format="x"), "no prompt cache"),
        ("about", np.frombuffer(b"{", np.uint8), "not valid JSON"), ("about", said(config=3), "another"),
        ("about", said(dtype="int8"), "int8"), ("ids", None, "no 'ids'"),
        ("ids", good["ids"].astype(np.int32), "I32"), ("ids", good["ids"][:0], "no tokens"),
        ("ids", good["ids"] + 60, "outside the vocabulary"), ("ids", good["ids"][::-1].copy(), "differ"),
        ("ids", good["ids"][:5], "keys.0"), ("keys.1", None, "no 'keys.1'"),
        ("keys.0", good["keys.0"][:, :1], "keys.0"), ("values.1", good["values.1"] * np.nan, "NaN"),
        ("values.0", good["values.0"] * 1.01, "differ"),
    ]  # fmt: skip
    for name, value, words in bad:
        _rewrite(file, **{**good, name: value})
        _refused(file, words)


def test_lying_files_in_8_bit_are_refused(short: Path) -> None:
    from safetensors.numpy import load_file

    good = load_file(short)
    integers, scales = good["keys.1"], good["values.0.scales"]
    assert integers.dtype == np.int8 and scales.shape == (len(SYSTEM), 2, 1)
    about = json.loads(good["about"].tobytes())
    assert about["dtype"] == "q8_0"

    def said(dtype: str) -> Any:
        return np.frombuffer(json.dumps({**about, "dtype": dtype}).encode(), np.uint8)

    def changed(array: Any, value: Any) -> Any:
        array = array.copy()
        array[3] = value
        return array

    bad: list[tuple[str, Any, str]] = [
        ("about", said("float16"), "'keys.0' is I8"), ("about", said("q4_0"), "q4_0"),
        ("keys.1", None, "no 'keys.1'"), ("keys.1", integers.view(np.uint8), "is U8"),
        ("keys.1", integers[:, :1].copy(), "'keys.1' is I8"), ("keys.1", changed(integers, -128), "outside -127"),
        ("values.0.scales", None, "no 'values.0.scales'"),
        ("values.0.scales", scales.astype(np.float32), "is F32"),
        ("values.0.scales", scales[..., 0].copy(), "'values.0.scales' is F16"),
        ("values.0.scales", np.repeat(scales, 2, axis=2), "'values.0.scales' is F16"),
        ("values.0.scales", changed(scales, np.nan), "NaN"), ("values.0.scales", changed(scales, np.inf), "NaN"),
        ("values.0.scales", -scales, "negative"), ("values.0.scales", scales * np.float16(1.5), "differ"),
        ("keys.0", -integers, "differ"),
    ]  # fmt: skip
    for name, value, words in bad:
        _rewrite(short, **{**good, name: value})
        _refused(short, words, dtype="q8_0")
        _refused(short, words)
    _rewrite(short, **good)
    _refused(short, "8 tokens, the cache has room for 6", capacity=6, dtype="q8_0")
    _refused(short, "differ by .* of their size", make(seed=5), dtype="q8_0")


@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
def test_damaged_files_are_refused(tmp_path: Path, dtype: str) -> None:
    file = written(tmp_path, make(), dtype)[1]
    whole, random = file.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        if random.random() < 0.5:
            data = data[: random.integers(len(data))]
        else:
            reach = len(whole) if random.random() < 0.3 else 1200
            for at in random.integers(0, reach, 3):
                data[at] = random.integers(256)
        file.write_bytes(data)
        prefix = PrefixCache(make(), dtype=dtype)
        try:
            prefix.load(file)
        except ValueError:
            assert prefix.ids == [] and prefix.cache.lengths.tolist() == [0]


def test_a_failed_write_keeps_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, prefix = file.read_bytes(), PrefixCache(make())
    prefix.feed([1, 2, 3])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinytorch_gpu.generation.prefix_file.write_tensors", full)
    with pytest.raises(OSError):
        prefix.save(file)
    assert file.read_bytes() == before and len(list(file.parent.iterdir())) == 1
