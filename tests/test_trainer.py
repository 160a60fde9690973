"""Training: what a run learns, what it saves, and that interrupting it changes nothing."""

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

from tinytorch_gpu import Transformer, backend
from tinytorch_gpu.checkpoint import open_model
from tinytorch_gpu.config import TransformerConfig
from tinytorch_gpu.training import (
    Run,
    TokenDataset,
    Trainer,
    TrainingConfig,
)

SETTINGS = TrainingConfig(
    steps=6, batch=3, length=16, warmup=2, eval_every=3, eval_tokens=200, save_every=2, log_every=1
)


def model_of(
    data: TokenDataset, device: str = "cpu", dtype: str = "float32", **choices: Any
) -> Transformer:
    choices = {
        "position": "learned",
        "activation": "gelu_tanh",
        "dropout": 0.1,
        "tie_embeddings": True,
        **choices,
    }
    config = TransformerConfig(data.vocab_size, 16, 2, 2, 32, 32, init_std=0.02, **choices)
    return Transformer.from_config(config, device, dtype, seed=3)


def trainer_of(
    data: TokenDataset,
    folder: Path | None = None,
    config: TrainingConfig = SETTINGS,
    **choices: Any,
) -> Trainer:
    model = model_of(data, **choices)
    run = None
    if folder is not None:
        about = {"training": config.to_dict(), "dtype": model.dtype.name, "data": str(data.folder)}
        run = Run.create(folder, about)
    return Trainer(model, data, config, run)


def weights(model: Transformer) -> dict[str, np.ndarray]:
    return {name: np.array(backend.to_numpy(p.data)) for name, p in model.named_parameters()}


def assert_same(one: Transformer, other: Transformer) -> None:
    found = weights(other)
    for name, values in weights(one).items():
        np.testing.assert_array_equal(values, found[name], err_msg=name)


# --- learning -----------------------------------------------------------------------------------


def test_it_learns(data: TokenDataset) -> None:
    config = TrainingConfig(steps=60, batch=8, length=32, lr=1e-2, warmup=5, eval_every=0)
    trainer = trainer_of(data, config=config, dropout=0.0)
    losses = [trainer.step().loss for _ in range(60)]
    assert losses[0] == pytest.approx(math.log(data.vocab_size), abs=0.2)
    assert np.mean(losses[-5:]) < losses[0] - 1
    assert trainer.evaluate() < losses[0] - 0.8
    # Beyond the 32 positions that the model has.
    assert len(trainer.sample()) == 1 + config.sample_tokens


def test_accumulated_batches_are_one_big_batch(data: TokenDataset) -> None:
    made = []
    for batch, accumulate in ((6, 1), (2, 3)):
        config = TrainingConfig(steps=2, batch=batch, accumulate=accumulate, length=16, warmup=0)
        trainer = trainer_of(data, config=config, dropout=0.0, dtype="float64")
        result = [trainer.step() for _ in range(2)]
        made.append((result, weights(trainer.model)))
    (one, first), (three, second) = made
    assert one[1].loss == pytest.approx(three[1].loss, rel=1e-10)
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], rtol=1e-6, atol=1e-9)


def test_recomputation_changes_nothing(data: TokenDataset) -> None:
    made = []
    for recompute in (False, True):
        config = TrainingConfig(steps=3, batch=2, length=16, recompute=recompute)
        trainer = trainer_of(data, config=config)
        made.append(([trainer.step().loss for _ in range(3)], trainer.model))
    assert made[0][0] == made[1][0]
    assert_same(made[0][1], made[1][1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_weights_with_masters(data: TokenDataset, dtype: str) -> None:
    pytest.importorskip("ml_dtypes")
    config = TrainingConfig(steps=30, batch=8, length=32, lr=1e-2, warmup=2, eval_every=0)
    trainer = trainer_of(data, config=config, dtype=dtype, dropout=0.0)
    results = [trainer.step() for _ in range(30)]
    assert results[-1].loss < results[0].loss - 0.5
    for name, parameter in trainer.named:
        master = trainer.optimizer.state[name]["master"]
        np.testing.assert_array_equal(master.astype(parameter.dtype), parameter.data)


def test_a_float16_step_that_overflows_is_skipped(data: TokenDataset) -> None:
    trainer = trainer_of(data, dtype="float16")
    assert trainer.scaler is not None
    trainer.scaler.scale, before = 2.0**60, weights(trainer.model)
    result = trainer.step()
    assert result.skipped and trainer.scaler.scale == 2.0**59
    for name, values in weights(trainer.model).items():
        np.testing.assert_array_equal(values, before[name])
    assert int(trainer.optimizer.count) == 0


def test_what_is_not_finite_is_named(data: TokenDataset, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path / "run")
    trainer.step()
    trainer.save()
    before = weights(trainer.model)
    weight = trainer.model.transformer_blocks[1].ffn
    next(iter(weight.parameters())).data[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"step 2: the loss is nan.*step-00000001"):
        trainer.step()
    assert int(trainer.optimizer.count) == 1
    assert all(
        np.array_equal(v, before[n]) for n, v in weights(trainer.model).items() if "ffn" not in n
    )


# --- runs ---------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one(data: TokenDataset, tmp_path: Path) -> None:
    whole = trainer_of(data, tmp_path / "whole")
    whole.train()
    part = trainer_of(data, tmp_path / "part")

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
    kept = ("step", "loss", "grad_norm", "val_loss")
    lines = [
        [{k: m.get(k) for k in kept} for m in Run(tmp_path / name).metrics()]
        for name in ("whole", "part")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 6


def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(
    data: TokenDataset, tmp_path: Path
) -> None:
    whole, part = trainer_of(data, tmp_path / "whole"), trainer_of(data, tmp_path / "part")
    whole.train()
    batches = part.loader.next

    def interrupted() -> Any:
        if part.steps_done == 2:
            signal.raise_signal(signal.SIGINT)
        return batches()

    part.loader.next = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        part.train()
    resumed = Trainer.resume(tmp_path / "part", "cpu")
    assert resumed.steps_done == 3
    resumed.train()
    assert_same(whole.model, resumed.model)


def test_the_result_loads_as_a_model(data: TokenDataset, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path / "run")
    trainer.train()
    file = open_model(tmp_path / "run")
    assert file.path.name == "step-00000006"
    loaded = file.load("cpu")
    ids = [[1, 2, 3]]
    trainer.model.eval()
    np.testing.assert_array_equal(loaded(ids).data, trainer.model(ids).data)
    assert file.tokenizer().decode([1, 2, 3]) == data.tokenizer.decode([1, 2, 3])


def test_old_checkpoints_go_and_the_best_stays(data: TokenDataset, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path / "run")
    for _ in range(5):
        trainer.step()
        trainer.best, trainer.best_step = 1.0, 1
        trainer.save()
    assert trainer.run is not None and trainer.run.steps() == [1, 4, 5]


def test_a_save_that_fails_anywhere_leaves_the_last_one(
    data: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that writes fails once: a full disk, then what a killed process leaves."""
    trainer = trainer_of(data, tmp_path / "run")
    trainer.step()
    trainer.save()
    trainer.step()
    real = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}
    points = 0
    for left in range(60):
        remaining = left

        def guarded(name: str) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal remaining
                if remaining == 0:
                    raise OSError(28, "No space left on device")
                remaining -= 1
                return real[name](*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, guarded(name))
            try:
                trainer.save()
            except OSError:
                points += 1
            else:
                break
        resumed = Trainer.resume(tmp_path / "run", "cpu")
        assert resumed.steps_done in (1, 2)
    assert points >= 8
    assert Trainer.resume(tmp_path / "run", "cpu").steps_done == 2


def test_a_killed_run_resumes(data: TokenDataset, tmp_path: Path) -> None:
    """Fifty times a process dies at some moment of training and saving; what is left always loads."""
    folder = tmp_path / "run"
    trainer = trainer_of(
        data, folder, TrainingConfig(steps=10**6, batch=1, length=4, save_every=1, eval_every=0)
    )
    trainer.step()
    trainer.save()
    random = np.random.default_rng(0)
    for _ in range(50):
        child = os.fork()
        if child == 0:
            trainer.train()
            os._exit(0)
        time.sleep(float(random.uniform(0.005, 0.06)))
        os.kill(child, 9)
        os.waitpid(child, 0)
        path, arrays, state = Run(folder).load()
        assert int(path.name[5:]) == state["step"] >= 1
        open_model(path).load("cpu")
        trainer.optimizer.load_state_dict({**arrays, "step": state["count"]})


def test_a_run_that_has_moved_goes_on(data: TokenDataset, tmp_path: Path) -> None:
    shutil.copytree(data.folder, tmp_path / "run" / "data")
    trainer = trainer_of(data, tmp_path / "run")
    assert trainer.run is not None
    trainer.run.tell({**trainer.run.about(), "data": "data"})
    trainer.step()
    trainer.save()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    resumed = Trainer.resume(tmp_path / "elsewhere", "cpu", steps=9)
    assert resumed.steps_done == 1 and resumed.config.steps == 9
    assert Trainer.resume(tmp_path / "elsewhere", "cpu").config.steps == 9


def test_a_run_without_a_checkpoint_begins_anew(data: TokenDataset, tmp_path: Path) -> None:
    first = trainer_of(data, tmp_path / "run")
    assert first.run is not None
    first.run.log({"step": 1, "loss": 3.0})
    assert trainer_of(data, tmp_path / "run").run.metrics() == []  # type: ignore[union-attr]


def test_mistakes_are_told(data: TokenDataset, tmp_path: Path) -> None:
    trainer_of(data, tmp_path / "run").save()
    with pytest.raises(ValueError, match="holds a run"):
        trainer_of(data, tmp_path / "run")
    with pytest.raises(ValueError, match="no run"):
        Trainer.resume(tmp_path / "other", "cpu")
    with pytest.raises(ValueError, match="unknown training settings"):
        TrainingConfig.from_dict({"step": 3})
    for wrong in ({"lr": "x"}, {"betas": 5}, {"betas": [0.9, 2]}, {"momentum": 9}, {"steps": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TrainingConfig.from_dict(wrong)
    with pytest.raises(ValueError, match="max_seq_length"):
        Trainer(model_of(data), data, TrainingConfig(length=64))
    small = Transformer(5, 8, 2, 1, 16, 32, device="cpu")
    with pytest.raises(ValueError, match="vocabulary of 5"):
        Trainer(small, data, SETTINGS)
    path = Run(tmp_path / "run").newest()
    assert path is not None
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({k: v for k, v in state.items() if k != "random"}))
    with pytest.raises(ValueError, match=r"no whole training checkpoint: KeyError.*random"):
        Trainer.resume(tmp_path / "run", "cpu")
    whole = (path / "optimizer.safetensors").read_bytes()
    (path / "optimizer.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        Trainer.resume(tmp_path / "run", "cpu")


STEPS = {
    "plain": {}, "recomputed": {"recompute": True}, "accumulated": {"accumulate": 2, "batch": 1},
    "smoothed": {"label_smoothing": 0.1}, "sgd": {"optimizer": "sgd", "lr": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("case", STEPS)
def test_steps_on_a_gpu_are_the_cpus(data: TokenDataset, gpu: str, case: str) -> None:
    config = TrainingConfig(**{"steps": 3, "batch": 2, "length": 8, "warmup": 0, **STEPS[case]})
    here, there = (trainer_of(data, config=config, device=d) for d in ("cpu", gpu))
    for _ in range(3):
        one, other = here.step(), there.step()
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    found = weights(there.model)
    for name, values in weights(here.model).items():
        np.testing.assert_allclose(found[name], values, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_steps_on_a_gpu(data: TokenDataset, gpu: str, dtype: str) -> None:
    """Loss scaling and masters: near the CPU's steps, and an overflow changes nothing."""
    pytest.importorskip("ml_dtypes")
    config = TrainingConfig(steps=3, batch=2, length=8, warmup=0)
    here, there = (trainer_of(data, config=config, device=d, dtype=dtype) for d in ("cpu", gpu))
    for _ in range(2):
        one, other = here.step(), there.step()
        assert one.loss == pytest.approx(other.loss, rel=2e-2) and not other.skipped
    for name, parameter in there.named:
        master = backend.to_numpy(there.optimizer.state[name]["master"])
        assert master.dtype == np.float32
        np.testing.assert_array_equal(
            master.astype(here.model.dtype), backend.to_numpy(parameter.data)
        )
    if there.scaler is None:
        assert dtype == "bfloat16"
        return
    there.scaler.scale, before = 2.0**60, weights(there.model)
    assert there.step().skipped and there.scaler.scale == 2.0**59
    for name, values in weights(there.model).items():
        np.testing.assert_array_equal(values, before[name])
    assert int(backend.to_numpy(there.optimizer.count)) == 2


def test_a_run_on_a_gpu_resumes(data: TokenDataset, gpu: str, tmp_path: Path) -> None:
    """A run with evaluation, checkpoints and a sample goes on where it was; dropout and all."""
    config = TrainingConfig(
        steps=4,
        batch=1,
        length=8,
        warmup=0,
        eval_every=2,
        eval_tokens=16,
        save_every=2,
        sample_tokens=4,
    )
    whole = trainer_of(data, tmp_path / "run", config, device=gpu)
    told: list[Any] = []
    whole.train(lambda found, extra: told.append((found.loss, extra.get("val_loss", 0.0))))
    assert len(told) == 4 and told[1][1] and told[3][1]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    resumed = Trainer.resume(tmp_path / "run", gpu)
    assert resumed.steps_done == 2
    again: list[Any] = []
    resumed.train(lambda found, extra: again.append((found.loss, extra.get("val_loss", 0.0))))
    assert again == [pytest.approx(x, rel=1e-6) for x in told[2:]]
    assert len(resumed.sample([1])) > 1
