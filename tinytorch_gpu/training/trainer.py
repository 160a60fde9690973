"""The loop: batches in, a loss, its gradients, an update; evaluation, checkpoints and samples between."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy

from ..backend import to_numpy
from ..checkpoint import open_model, save_adapter
from ..checkpoint.save import save as save_model
from ..core.lora import adapters
from ..core.tensor import no_grad
from ..core.transformers import Transformer
from .adapters import restored
from .batches import windows
from .config import TrainingConfig
from .data import TokenDataset
from .interrupt import interrupt_held
from .loss import CrossEntropyLoss
from .run import Run
from .step import Stepper, StepResult


class Trainer(Stepper):
    """Trains ``model`` on ``dataset`` by ``config``; with a ``run`` it saves and logs there.

    ``step()`` makes one update, ``train()`` all of them.
    """

    def __init__(
        self,
        model: Transformer,
        dataset: TokenDataset,
        config: TrainingConfig,
        run: Run | None = None,
    ):
        if not (model.config.head and model.encoder is None):
            raise ValueError(
                "a Trainer teaches a model to predict the next token of a text: it takes no encoder. Train "
                "one with an optimizer and a loss of its own"
            )
        if dataset.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the data has ids up to {dataset.vocab_size - 1}, the model a vocabulary of "
                f"{model.config.vocab_size}: set its vocab_size to {dataset.vocab_size}"
            )
        super().__init__(model, dataset.train, config)
        self.dataset, self.run = dataset, run
        self.best = math.inf
        self.best_step: int | None = None

    def last_good(self) -> Path | None:
        """The newest complete checkpoint, if there is a run that saves."""
        return None if self.run is None else self.run.newest()

    # --- evaluation ---
    def evaluate(self, tokens: Any = None) -> float:
        """The mean loss of every token of ``tokens`` (default: the validation part, of which
        ``config.eval_tokens`` are taken)."""
        given = self.dataset.val if tokens is None else tokens
        if tokens is None and self.config.eval_tokens:
            given = given[: self.config.eval_tokens + 1]
        if len(given) < 2:
            raise ValueError(
                f"{len(given)} tokens are too few to evaluate on: build the data with a larger val_fraction"
            )
        total, count, plain = 0.0, 0, CrossEntropyLoss()
        training = self.model.training
        self.model.eval()
        with no_grad(), self.model.device.active():
            for inputs, targets in windows(given, self.config.batch, self.config.length):
                loss = plain(self.model(inputs), targets)
                total, count = total + loss.item() * targets.size, count + targets.size
        self.model.train(training)
        return total / count

    def sample(self, prompt: Any = None) -> numpy.ndarray:
        """``prompt`` (default: the first token of validation) and ``config.sample_tokens`` ids that the model
        writes after it now. Where its positions end it goes on after the last half of what it can see."""
        ids = list(map(int, self.dataset.val[:1] if prompt is None else prompt))
        training, room = self.model.training, self.model.config.max_seq_length
        wanted, seed = len(ids) + self.config.sample_tokens, self.config.seed
        self.model.eval()
        while len(ids) < wanted:
            seen = ids if len(ids) < room else ids[-max(1, room // 2) :]
            made = self.model.generate(
                [seen], max_new_tokens=min(wanted - len(ids), room - len(seen)), temperature=0.8, top_k=200,
                seed=seed,
            )  # fmt: skip
            new = to_numpy(made[0].data)[len(seen) :].tolist()
            if not new:
                break
            ids, seed = ids + new, seed + 1
        self.model.train(training)
        return numpy.asarray(ids)

    # --- the whole run ---
    def train(self, callback: Callable[[StepResult, dict[str, Any]], None] | None = None) -> None:
        """Make all steps that are left. ``callback`` is told each one, with what it logged. Ctrl-C ends it
        after a step and with a checkpoint; a second one at once, and with the checkpoint before."""
        config, whole = self.config, True
        try:
            while self.steps_done < config.steps:
                with interrupt_held():
                    whole = False  # between here and the record, a state to save would be torn
                    found, extra = self.step(), self._evaluated()
                    if self.run is not None:
                        self._record(found, extra)
                    whole = True
                if callback is not None:
                    callback(found, extra)
        except KeyboardInterrupt:
            if whole and self.run is not None and self.steps_done not in self.run.steps():
                self.save()
            raise

    def _evaluated(self) -> dict[str, Any]:
        """What the step just made adds to the log: the validation loss, if it is time."""
        if not self.config.due(self.steps_done, self.config.eval_every):
            return {}
        if len(self.dataset.val) < 2:
            return {}
        found = self.evaluate()
        if found < self.best:
            self.best, self.best_step = found, self.steps_done
        return {"val_loss": found}

    def _record(self, found: StepResult, extra: dict[str, Any]) -> None:
        """Log a step, and save if it is time or if there is none better."""
        assert self.run is not None
        config = self.config
        if extra or config.due(found.step, config.log_every):
            values = {k: v for k, v in asdict(found).items() if v is not False}
            values["tokens_per_second"] = found.tokens_per_second
            finite = {
                k: v if not isinstance(v, float) or math.isfinite(v) else None
                for k, v in values.items()
            }
            self.run.log({**finite, **extra})
        if config.due(found.step, config.save_every) or self.best_step == found.step:
            self.save()

    # --- saving ---
    def state(self) -> dict[str, Any]:
        """All that is not weights or optimizer arrays, in plain values."""
        return {
            "step": self.steps_done, "count": int(to_numpy(self.optimizer.count)),
            "data": {**self.loader.state_dict(), "digest": self.dataset.digest},
            "random": {"seed": self.model.generator.seed, "offset": self.model.generator.offset},
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "best": None if self.best_step is None else [self.best, self.best_step],
        }  # fmt: skip

    def save(self) -> Path:
        """Write a checkpoint of now into the run and return its folder."""
        if self.run is None:
            raise ValueError(
                "this trainer has no run to save into: Trainer(..., run=Run.create(folder, {}))"
            )
        arrays = {n: x for n, x in self.optimizer.state_dict().items() if n != "step"}
        path = self.run.save(self.steps_done, self._write_model, arrays, self.state())
        self.run.tidy(self.config.keep, self.best_step)
        return path

    def _write_model(self, folder: Path) -> None:
        """The model, or of one with adapters only them."""
        if adapters(self.model):
            assert self.run is not None
            save_adapter(self.model, folder, self.run.about().get("lora", {}).get("base", ""))
        else:
            save_model(self.model, folder, self.dataset.tokenizer)

    def restore(self, arrays: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint holds beside the weights; what does not fit is a ValueError."""
        if state["data"]["digest"] != self.dataset.digest:
            raise ValueError(
                "the run was begun with other data: give it the texts and tokenizer of then"
            )
        self.loader.load_state_dict(state["data"])
        self.optimizer.load_state_dict({**arrays, "step": state["count"]})
        self.model.generator.seed = int(state["random"]["seed"])
        self.model.generator.offset = int(state["random"]["offset"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        if state["best"] is not None:
            self.best, self.best_step = float(state["best"][0]), int(state["best"][1])
        self.steps_done = int(state["step"])

    @classmethod
    def resume(
        cls, folder: str | Path, device: Any = "auto", steps: int | None = None
    ) -> "Trainer":
        """Go on with the run in ``folder`` from its newest checkpoint, for ``steps`` in all if given."""
        run = Run(folder)
        about = run.about()
        path, arrays, state = run.load()
        config = TrainingConfig.from_dict(
            {**about["training"], **({"steps": steps} if steps else {})}
        )
        if "lora" in about:
            model = restored(about["lora"], path, device)
        else:
            model = open_model(path).load(device=device, dtype=about["dtype"])
        trainer = cls(model, TokenDataset.open(run.folder / about["data"]), config, run)
        try:
            trainer.restore(arrays, state)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no whole training checkpoint: {error!r}") from None
        if steps:
            run.tell({**about, "training": config.to_dict()})
        run.forget_after(trainer.steps_done)
        run.tidy(config.keep, trainer.best_step)
        return trainer
