"""``tinytorch-gpu train``: text to a model, with a run folder that can go on after any interruption."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from ..checkpoint import open_model
from ..checkpoint.files import read_json
from ..config import TransformerConfig, preset
from ..core.lora import LoraConfig, add_lora
from ..core.transformers import Transformer
from ..tokenizers import Tokenizer
from ..training import (
    RECIPES,
    Run,
    TokenDataset,
    Trainer,
    TrainingConfig,
    char_tokenizer,
)
from ..training.adapters import told
from ..training.plot import plot_losses
from .progress import Display, encoding

# Settings that an argument of the same name changes, and model choices likewise.
SETTINGS = (
    "steps", "batch", "length", "accumulate", "optimizer", "lr", "min_lr", "warmup", "schedule", "weight_decay",
    "clip", "label_smoothing", "recompute", "seed", "log_every", "eval_every", "eval_tokens", "save_every",
    "sample_every", "keep",
)  # fmt: skip


LORA = ("rank", "alpha", "dropout", "targets")


def run(arguments: argparse.Namespace) -> int:
    """Begin a run, or go on with one."""
    trainer = _resumed(arguments) if arguments.resume else _begun(arguments)
    assert trainer.run is not None
    folder, left = trainer.run.folder, trainer.config.steps - trainer.steps_done
    if left <= 0:
        print(
            f"{folder} has made its {trainer.steps_done} steps: ask for more with --steps",
            file=sys.stderr,
        )
        return 0
    show = Display(trainer)
    try:
        trainer.train(show)
    except KeyboardInterrupt:
        print(f"\ninterrupted after step {trainer.steps_done}; go on with: "
              f"tinytorch-gpu train --resume {folder}", file=sys.stderr)  # fmt: skip
        return 130
    finally:
        show.close()
        _draw(trainer.run)
    model = f"-m {folder}"
    if "lora" in (about := trainer.run.about()):
        model = f"-m {about['lora']['base']} --adapter {folder}"
    print(f"done: tinytorch-gpu generate {model} --raw -p ...", file=sys.stderr)
    return 0


def _begun(arguments: argparse.Namespace) -> Trainer:
    """A new run: its data, its model, its folder."""
    if not arguments.data or not arguments.out:
        raise ValueError("give --data TEXT and --out RUN, or --resume RUN")
    run = Run(arguments.out)
    run.check_new()
    models = [n for n in ("preset", "config", "init") if getattr(arguments, n)]
    if len(models) > 1:
        raise ValueError(f"--{models[0]} and --{models[1]} both name the model: leave one out")
    choices, config = _settings(arguments)
    tokenizer = _tokenizer(arguments)
    # Within the run its place is told relative to it, so that the folder may move.
    data = str(Path(arguments.dataset).resolve()) if arguments.dataset else "data"
    dataset = TokenDataset.build(arguments.data, tokenizer, run.folder / data, val_fraction=arguments.val_fraction,
                                 progress=encoding())  # fmt: skip
    model = _model(arguments, choices, config, dataset)
    about = {"training": config.to_dict(), "model": model.config.to_dict(), "dtype": model.dtype.name,
             "data": data, **_adapted(arguments, model, config)}  # fmt: skip
    trainer = Trainer(model, dataset, config)
    trainer.run = Run.create(run.folder, about)
    return trainer


def _adapted(
    arguments: argparse.Namespace, model: Transformer, config: TrainingConfig
) -> dict[str, Any]:
    """Put adapters beside the model if they are asked for; what the run is told of them."""
    given = {
        n: getattr(arguments, f"lora_{n}")
        for n in LORA
        if getattr(arguments, f"lora_{n}") is not None
    }
    if "rank" not in given:
        if given:
            raise ValueError(f"--lora-{next(iter(given))} needs a --lora-rank, such as 8")
        if not all(p.requires_grad for p in model.parameters()):
            raise ValueError(
                "quantized weights cannot be trained: give --lora-rank, or --dtype float32"
            )
        return {}
    if not arguments.init:
        raise ValueError("--lora-rank tunes a loaded model: name it with --init")
    about = LoraConfig(**given)
    lora = told(about, arguments.init, model, arguments.dtype)
    add_lora(model, about, config.seed)
    return {"lora": lora}


def _resumed(arguments: argparse.Namespace) -> Trainer:
    names = (
        "data",
        "out",
        "preset",
        "config",
        "init",
        "tokenizer",
        "dataset",
        "dropout",
        *(f"lora_{n}" for n in LORA),
        *SETTINGS,
    )
    given = [n for n in names if n != "steps" and getattr(arguments, n) is not None]
    if given:
        option = given[0].replace("_", "-")
        raise ValueError(
            f"--resume takes all settings but --steps from the run; leave out --{option}"
        )
    return Trainer.resume(arguments.resume, device=arguments.device, steps=arguments.steps)


def _settings(arguments: argparse.Namespace) -> tuple[dict[str, Any], TrainingConfig]:
    """(model choices, training settings): of --config or a preset's recipe, changed by arguments."""
    file: dict[str, Any] = {}
    if arguments.config:
        file = read_json(Path(arguments.config))
        for name, value in file.items():
            if name not in ("model", "training") or not isinstance(value, dict):
                raise ValueError(
                    f"{arguments.config} may hold the objects model and training, not {name!r}"
                )
    recipe = RECIPES.get(arguments.preset or "", {})
    given = {n: getattr(arguments, n) for n in SETTINGS if getattr(arguments, n) is not None}
    return file.get("model", {}), TrainingConfig.from_dict(
        {**recipe, **file.get("training", {}), **given}
    )


def _tokenizer(arguments: argparse.Namespace) -> Tokenizer:
    """By --tokenizer: of characters, of bytes, or a model's; by default that of --init, or characters."""
    name = arguments.tokenizer or arguments.init
    if name is None or name == "char":
        if name is None and arguments.preset not in (None, "shakespeare-char", "course"):
            raise ValueError(
                f"preset {arguments.preset} needs a --tokenizer: a model's, char or bytes"
            )
        return char_tokenizer(arguments.data)
    if name == "bytes":
        from ..tokenizers.characters import of_bytes

        return of_bytes()
    return open_model(name).tokenizer()


def _model(
    arguments: argparse.Namespace,
    choices: dict[str, Any],
    config: TrainingConfig,
    dataset: TokenDataset,
) -> Transformer:
    """The model to train: loaded, or new from a preset or a file's choices."""
    dropout = {} if arguments.dropout is None else {"dropout": arguments.dropout}
    if arguments.init:
        loaded = open_model(arguments.init).load(device=arguments.device, dtype=arguments.dtype)
        if dropout:
            raise ValueError("--dropout cannot change a loaded model: leave it out")
        loaded.generator.seed = config.seed
        return loaded
    if choices:
        shape = TransformerConfig.from_dict({"vocab_size": dataset.vocab_size, **choices}).replace(
            **dropout
        )
    else:
        shape = preset(arguments.preset or "shakespeare-char", **dropout)
        if arguments.tokenizer in (None, "char", "bytes") or shape.vocab_size < dataset.vocab_size:
            shape = shape.replace(vocab_size=dataset.vocab_size)
    if shape.max_seq_length < config.length:
        shape = shape.replace(max_seq_length=config.length)
    return Transformer.from_config(shape, arguments.device, arguments.dtype, config.seed)


def _draw(run: Run) -> None:
    try:
        plot_losses(run.metrics(), run.folder / "loss.png")
    except ImportError as error:
        logging.getLogger(__name__).warning("%s", error)
