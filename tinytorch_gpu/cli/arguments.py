"""The arguments of every command. Nothing heavy is imported: ``--help`` must be quick."""

import argparse
from collections.abc import Callable
from typing import Any

COMMANDS = {
    "generate": "continue a prompt, token by token",
    "chat": "talk to a model",
    "train": "learn from text, or go on with a run",
    "convert": "quantize; GGUF to a Hugging Face folder and back",
    "bench": "how fast a model reads a prompt and writes",
    "merge": "add an adapter to its model's weights, as a new model",
    "inspect": "what a model file holds and would need, without loading it",
    "profile": "where time and memory go, counted and measured",
    "doctor": "what is installed, what is missing, and how to fix it",
}


def number(
    kind: Callable[[str], Any], low: float, high: float = float("inf"), above: bool = False
) -> Callable[[str], Any]:
    """Return an argparse type: a ``kind`` from ``low`` (or ``above`` it) to ``high``."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not (low < value if above else low <= value) or not value <= high:
            bounds = f"{'above' if above else 'at least'} {low:g}"
            bounds += "" if high == float("inf") else f" and at most {high:g}"
            raise argparse.ArgumentTypeError(f"{text} must be {bounds}")
        return value

    return parse


def build_parser(parser_class: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = parser_class(
        prog="tinytorch-gpu", description="A small transformer library on NumPy and CuPy."
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=parser_class)
    parts = {name: commands.add_parser(name, help=text) for name, text in COMMANDS.items()}
    for part in parts.values():
        part.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    _generate(parts["generate"])
    _chat(parts["chat"])
    _train(parts["train"])
    _convert(parts["convert"])
    _bench(parts["bench"])
    _merge(parts["merge"])
    _inspect(parts["inspect"])
    _profile(parts["profile"])
    parts["doctor"].add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _version() -> str:
    from .. import __version__

    return f"tinytorch-gpu {__version__}"


def _generate(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    source = parser.add_argument_group("prompt (one of)")
    source.add_argument("-p", "--prompt", help="the text to continue")
    source.add_argument("-f", "--file", help="a file that holds it, in UTF-8")
    source.add_argument("stdin", nargs="?", choices=["-"], help="read it from standard input")
    parser.add_argument("--raw", action="store_true", help="do not apply the model's chat template")
    _sampling(parser, max_tokens=256)
    _speculation(parser)
    parser.add_argument(
        "--prompt-cache",
        metavar="FILE",
        help="keep the prompt's keys and values there for the next time",
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; repeatable"
    )
    parser.add_argument("--no-stream", action="store_true", help="print the text at the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def _chat(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--system", help="what the model is told first")
    parser.add_argument("--context", type=number(int, 1), help="tokens to remember at most")
    _sampling(parser, max_tokens=512)
    _speculation(parser)


def _train(parser: argparse.ArgumentParser) -> None:
    from ..config import PRESETS

    add = parser.add_argument
    add("--data", nargs="+", metavar="TEXT", help="text files, or folders of them, in UTF-8")
    add("--out", metavar="RUN", help="the folder of the run: checkpoints, metrics, loss.png")
    add("--resume", metavar="RUN", help="go on with a run (--steps asks for more)")
    model = parser.add_argument_group("model (one of)")
    decoders = sorted(name for name, config in PRESETS.items() if config.decoder_only)
    model.add_argument("--preset", choices=decoders, help="default shakespeare-char")
    model.add_argument("--config", metavar="FILE", help='JSON: {"model": {...}, "training": {...}}')
    model.add_argument(
        "--init", metavar="MODEL", help="train a loaded model on, as for generate -m"
    )
    add("--tokenizer", help="char, bytes or a model's (default: that of --init, else char)")
    add("--dataset", metavar="FOLDER", help="where the encoded text is kept (default RUN/data)")
    add("--val-fraction", type=number(float, 0, 0.9), default=0.1, help="default 0.1")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or emulated")
    add(
        "--dtype",
        default="float32",
        choices=(*_DTYPES, "auto"),
        help="of the weights; 16 bits have float32 masters; auto is as --init has them (for LoRA)",
    )
    add("--dropout", type=number(float, 0, 0.99))
    lora = parser.add_argument_group("LoRA: train small adapters beside the weights of --init")
    lora.add_argument("--lora-rank", type=number(int, 1), help="their width; turns LoRA on")
    lora.add_argument("--lora-alpha", type=number(float, 0, above=True), help="default 16")
    lora.add_argument("--lora-dropout", type=number(float, 0, 0.99), help="default 0")
    lora.add_argument(
        "--lora-targets", metavar="NAMES", help="of q,k,v,o,gate,up,down, or all; default q,v"
    )
    add("--recompute", action="store_true", default=None, help="keep each block's input only")
    settings = parser.add_argument_group("settings (defaults: the preset's recipe)")
    for name, kind in (
        ("steps", number(int, 1)), ("batch", number(int, 1)), ("length", number(int, 1)),
        ("accumulate", number(int, 1)), ("lr", number(float, 0)), ("min-lr", number(float, 0)),
        ("warmup", number(int, 0)), ("weight-decay", number(float, 0)), ("clip", number(float, 0)),
        ("label-smoothing", number(float, 0, 0.99)), ("seed", number(int, 0, 2**63)),
        ("log-every", number(int, 0)), ("eval-every", number(int, 0)), ("eval-tokens", number(int, 0)),
        ("save-every", number(int, 0)), ("sample-every", number(int, 0)), ("keep", number(int, 1)),
    ):  # fmt: skip
        settings.add_argument(f"--{name}", type=kind)
    settings.add_argument("--schedule", choices=("cosine", "constant"))
    settings.add_argument("--optimizer", choices=("adamw", "sgd"))


def _convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="as for generate -m")
    parser.add_argument("target", help="a file that ends in .gguf, or a folder for safetensors")
    parser.add_argument(
        "--dtype", type=storage, default="stored", choices=STORAGES[1:],
        help="of the matrices (default: as they are; in a folder, blocks become float32)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace what is there")


def _bench(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", action="append", help="as for generate -m; repeatable")
    add("-p", "--n-prompt", type=whole_list, default=[512], help="prompt tokens (default 512)")
    add("-n", "--n-gen", type=whole_list, default=[128], help="tokens to write (default 128)")
    add("-b", "--batch", type=whole_list, default=[1], help="rows at a time (default 1)")
    add(
        "-d",
        "--n-depth",
        type=whole_list,
        default=[0],
        help="tokens in the cache before (default 0)",
    )
    add("-t", "--threads", type=number(int, 1), help="threads (default: all it may use)")
    add("-r", "--repetitions", type=number(int, 1), default=5, help="default 5")
    add("--no-warmup", action="store_true", help="measure the first run too")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or emulated")
    add(
        "--dtype",
        type=storage_list,
        default=["auto"],
        help=f"of the weights: {', '.join(STORAGES)}",
    )
    add(
        "--cache-dtype",
        type=storage,
        choices=CACHES,
        help="of keys and values (default: that of the activations)",
    )
    add("-o", "--output", choices=("md", "json", "csv"), default="md", help="default md")


def _merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="smollm2", help="the base, as for generate -m")
    parser.add_argument(
        "--adapter", required=True, metavar="RUN", help="a LoRA run, or a folder as peft writes it"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the model is written")
    parser.add_argument("--dtype", default="float32", choices=_DTYPES[:3], help="of the weights")


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="smollm2", help="as for generate -m")
    parser.add_argument("--batch", type=number(int, 1), default=1, help="rows (default 1)")
    parser.add_argument("--context", type=number(int, 1), help="tokens (default: all it can take)")
    parser.add_argument(
        "--dtype", type=storage, default="float32", choices=STORAGES, help="of the weights"
    )
    parser.add_argument("--cache-dtype", type=storage, choices=CACHES, help="of keys and values")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _profile(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("work", nargs="?", default="generate", choices=("generate", "train", "ops"),
        help="ops is both: every operation of the model")  # fmt: skip
    add("-m", "--model", help="a preset (random weights), or as for generate -m (default: smollm2; to "
        "train shakespeare-char)")  # fmt: skip
    add("--device", help="measured: auto (default), cpu, cuda, cuda:N; counted alone: a device by name "
        "(\"RTX 4090\", T4, ...), or the kernels on emulated")  # fmt: skip
    add("--device-spec", metavar="FILE", help="peak rates of another device, in JSON")
    add("--dtype", default="float32", help="of the weights: a dtype, or blocks such as q4_0")
    add("--batch", type=number(int, 1), help="rows (default 1)")
    add(
        "--context",
        type=number(int, 1),
        help="tokens of the prompt, or to learn from (default 128)",
    )
    add(
        "--tokens", type=number(int, 1), default=8, help="to generate; on emulated also to train on"
    )
    add("--optimizer", choices=("adamw", "sgd"), default="adamw")
    add("--recompute", action="store_true", help="training keeps each block's input only")
    add(
        "--studies", action="store_true", help="also what each size does, and which devices hold it"
    )
    add("--json", metavar="FILE", help="write all values to FILE (-: standard output) instead")
    add(
        "--html",
        metavar="FILE",
        help="write one page with pictures to FILE instead (with --studies in it)",
    )
    add("--png", metavar="FOLDER", help="write the pictures to FOLDER, for print")
    add(
        "--attention",
        metavar="TEXT",
        help="also draw who looks at whom in TEXT (with --html, --png)",
    )


_DTYPES = ("float32", "float16", "bfloat16", "float64")
_BLOCKS = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k")
STORAGES = ("auto", "stored", *_DTYPES, *_BLOCKS)
CACHES = ("float32", "float16", "bfloat16", "q8_0")
_SHORT = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}


def storage(text: str) -> str:
    """The name of how weights are stored, in any case, or llama.cpp's name of it."""
    return _SHORT.get(text.lower(), text.lower())


def storage_list(text: str) -> list[str]:
    """Several of them, with commas between."""
    found = [storage(part) for part in text.split(",")]
    for name in found:
        if name not in STORAGES:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(STORAGES)}")
    return found


def whole_list(text: str) -> list[int]:
    """Whole numbers with commas between."""
    return [number(int, 0)(part) for part in text.split(",")]


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", default="smollm2",
        help="a GGUF file, a folder in Hugging Face layout, an installed demo model (smollm2, the "
        "default) or a Hugging Face repository (owner/name)",
    )  # fmt: skip
    parser.add_argument(
        "--adapter", metavar="RUN", help="a LoRA run, or a folder as peft writes it"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (default), cpu, cuda, cuda:N or emulated"
    )
    parser.add_argument(
        "--dtype", type=storage, default="auto", choices=STORAGES, metavar="DTYPE",
        help=f"of the weights: {', '.join(STORAGES)}. auto (default): as stored where the device multiplies "
        "blocks as they are, else float32",
    )  # fmt: skip
    parser.add_argument(
        "--cache-dtype",
        type=storage,
        choices=CACHES,
        help="of keys and values (default: that of the activations)",
    )


def _sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add("--max-tokens", type=number(int, 1), default=max_tokens, help=f"default {max_tokens}")
    add("--temperature", type=number(float, 0), default=0.8, help="0 is greedy; default 0.8")
    add("--top-k", type=number(int, 0), default=40, help="0 keeps all; default 40")
    add("--top-p", type=number(float, 0, 1, above=True), default=0.95, help="default 0.95")
    add("--min-p", type=number(float, 0, 1), default=0.0, help="default 0, off")
    add("--repetition-penalty", type=number(float, 0, above=True), default=1.0, help="1 is off")
    add("--seed", type=number(int, 0, 2**64 - 1), help="makes the text repeatable")


def _speculation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speculation: several tokens a pass, the same text")
    group.add_argument(
        "-md", "--draft", metavar="MODEL", help="a smaller model of the same vocabulary guesses"
    )
    group.add_argument(
        "--lookup", action="store_true", help="guess what followed the same words before"
    )
    group.add_argument("--draft-max", type=number(int, 1), default=7, help="at most (default 7)")
