"""The engines that generation is measured with, each in a process of its own that serves timed windows.

Two thread pools in one process disturb each other; a process that waits for its turn only sleeps.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

PROMPT, PREFILL, BATCH = 16, 512, 8
PEERS = {"llama.cpp": "llama_cpp", "transformers": "transformers"}


class Ours:
    """This library, with the weights as the file stores them."""

    def __init__(self, path: str, threads: int, count: int):
        import numpy

        import tinytorch_gpu
        from tinytorch_gpu.generation import Cache

        self.version = f"tinytorch_gpu {tinytorch_gpu.__version__}, NumPy {numpy.__version__}"
        self.count = count
        self.model = tinytorch_gpu.Transformer.from_pretrained(path, device="cpu", dtype="stored")
        self.caches = {
            rows: Cache.for_model(self.model, rows, PREFILL + count + 2) for rows in (1, BATCH)
        }

    def _decode(self, ids: list[int], rows: int) -> float:
        cache = self.caches[rows]
        cache.reset()
        steps = self.model.generate(
            [ids[:PROMPT]] * rows, self.count + 2, temperature=0, cache=cache, stream=True
        )
        next(steps), next(steps)  # the prompt, and the step that is recorded
        start = time.perf_counter()
        for _ in range(self.count):
            next(steps)
        return rows * self.count / (time.perf_counter() - start)

    def decode(self, ids: list[int]) -> float:
        """Tokens a second of one sequence."""
        return self._decode(ids, 1)

    def batch(self, ids: list[int]) -> float:
        """Tokens a second of eight sequences at once, all together."""
        return self._decode(ids, BATCH)

    def prefill(self, ids: list[int]) -> float:
        """Tokens a second of a prompt, the choice of the first token included."""
        self.caches[1].reset()
        start = time.perf_counter()
        self.model.generate([ids], 1, temperature=0, cache=self.caches[1])
        return len(ids) / (time.perf_counter() - start)


class LlamaCpp:
    """llama.cpp through llama-cpp-python."""

    def __init__(self, path: str, threads: int, count: int):
        import llama_cpp

        self.version, self.count = f"llama-cpp-python {llama_cpp.__version__}", count
        self.model = llama_cpp.Llama(
            path, n_ctx=PREFILL + count + 2, n_batch=PREFILL, n_threads=threads,
            n_threads_batch=threads, verbose=False,
        )  # fmt: skip

    def prefill(self, ids: list[int]) -> float:
        """Tokens a second of a prompt."""
        self.model.reset()
        start = time.perf_counter()
        self.model.eval(ids)
        return len(ids) / (time.perf_counter() - start)

    def decode(self, ids: list[int]) -> float:
        """Tokens a second of one sequence."""
        self.model.reset()
        self.model.eval(ids[:PROMPT])
        start = time.perf_counter()
        for token in ids[: self.count]:
            self.model.eval([token])
        return self.count / (time.perf_counter() - start)


class Transformers:
    """Hugging Face's transformers on PyTorch, in float32."""

    def __init__(self, path: str, threads: int, count: int):
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch, self.count = torch, count
        self.version = f"transformers {transformers.__version__}, PyTorch {torch.__version__}"
        folder, _, name = path.rpartition("/")
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.float32
        ).eval()

    def _step(self, ids: list[int], past: Any = None) -> Any:
        with self.torch.inference_mode():
            out = self.model(
                self.torch.tensor([ids]), past_key_values=past, use_cache=True, logits_to_keep=1
            )
        return out.past_key_values

    def prefill(self, ids: list[int]) -> float:
        """Tokens a second of a prompt."""
        start = time.perf_counter()
        self._step(ids)
        return len(ids) / (time.perf_counter() - start)

    def decode(self, ids: list[int]) -> float:
        """Tokens a second of one sequence."""
        past = self._step(ids[:PROMPT])
        start = time.perf_counter()
        for token in ids[: self.count]:
            past = self._step([token], past)
        return self.count / (time.perf_counter() - start)


ENGINES = {"tinytorch_gpu": Ours, "llama.cpp": LlamaCpp, "transformers": Transformers}


def serve(name: str, path: str, threads: int, count: int) -> None:
    """Serve windows to the parent: a line in names one, a line out is its figure."""
    engine = ENGINES[name](path, threads, count)
    print(json.dumps(engine.version), flush=True)
    for line in sys.stdin:
        window, ids = json.loads(line)
        print(json.dumps(getattr(engine, window)(ids)), flush=True)


def environment(threads: int) -> dict[str, str]:
    """The process environment in which an engine has so many threads."""
    count = str(threads)
    return os.environ | {
        "OPENBLAS_NUM_THREADS": count, "OMP_NUM_THREADS": count, "TINYTORCH_THREADS": count,
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


class Worker:
    """An engine's process."""

    def __init__(self, name: str, python: str, path: str, threads: int, count: int):
        command = [python, __file__, name, path, str(threads), str(count)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment(threads),
        )  # fmt: skip
        self.version = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                return json.loads(line)
            except ValueError:  # an engine that prints
                continue
        raise RuntimeError(f"{' '.join(self.process.args)} ended without an answer")

    def run(self, window: str, ids: list[int]) -> float:
        """The figure of one window."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([window, ids]) + "\n")
        self.process.stdin.flush()
        return float(self._answer())


def has(python: str, module: str) -> bool:
    """Whether an interpreter has a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
