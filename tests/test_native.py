"""The CPU's library around its operations: built or not, its thread team, lists of calls."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import devices, native, no_grad, ops, processors, toolchain
from tinytorch_gpu.core.op import OPS
from tinytorch_gpu.native import build
from tinytorch_gpu.native.linear import _plan

PRODUCT = """
import numpy, os, sys
from tinytorch_gpu import native, no_grad, ops
x, w = numpy.ones((1, 512), "float32"), numpy.ones((4096, 512), "float32")
with no_grad():
    assert (ops.linear(x, w).data == 512).all()
found = native.library()
"""


@pytest.fixture
def library() -> native.Library:
    """The library; where there is a compiler it must be there."""
    found = native.library()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(native.why_not())
        pytest.skip(native.why_not())
    return found


def child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRODUCT + code], env=os.environ | environment, text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip


def test_native_makers_come_first(library: native.Library) -> None:
    devices.load_makers("cpu")
    for op in OPS.values():
        folders = [m.forward.__module__.split(".")[1] for m in op.makers.get("cpu", [])]
        assert folders == sorted(folders, key=lambda name: name != "native"), op


def test_it_can_be_turned_off() -> None:
    assert child("assert found is None", TINYTORCH_NATIVE="0").returncode == 0


@pytest.mark.parametrize("isa", build.instruction_sets())
def test_every_instruction_set_that_this_machine_has(library: native.Library, isa: str) -> None:
    if isa not in library.supported:
        pytest.skip(f"this processor has no {isa}")
    made = child(f"assert found.isa == {isa!r}", TINYTORCH_NATIVE=isa)
    assert made.returncode == 0, made.stderr


def test_a_compiler_that_fails_costs_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'broken 1' && exit\nexit 1\n")
    broken.chmod(0o755)
    made = child("assert found is None", CXX=str(broken), XDG_CACHE_HOME=str(tmp_path))
    assert made.returncode == 0, made.stderr
    assert "NumPy does their work" in made.stderr and "refuses" in made.stderr
    assert not list((tmp_path / "tinytorch_gpu" / "native").iterdir())


def test_no_compiler_at_all_costs_one_line(tmp_path: Path) -> None:
    environment = {"CXX": "", "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    made = child("assert found is None", **environment)
    assert made.returncode == 0, made.stderr
    lines = [line for line in made.stderr.splitlines() if "NumPy does their work" in line]
    assert len(lines) == 1 and "no C++20 compiler" in lines[0]


def test_another_number_of_arguments_is_refused(library: native.Library) -> None:
    with pytest.raises(RuntimeError, match="arguments"):
        library.function("advance", 3)


def _product(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((1, 300)).astype(np.float32)
    w = random.standard_normal((2000, 300)).astype(np.float32)
    with no_grad():
        found = ops.linear(x, w).data
    np.testing.assert_allclose(found, x @ w.T, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(
    library: native.Library, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "chosen", threads)
    for seed in range(5):
        _product(seed)
    assert library.code.tinytorch_team() >= threads


def test_a_product_is_the_same_for_any_number_of_threads(
    library: native.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, made = np.random.default_rng(0), []
    x, w = (random.standard_normal((n, 500)).astype(np.float32) for n in (90, 230))
    for threads in (1, 2, 3, 6):
        monkeypatch.setattr(processors, "chosen", threads)
        made.append(ops.linear(x, w).data)
    np.testing.assert_allclose(made[0], x @ w.T, atol=1e-3)
    assert all((made[0] == other).all() for other in made[1:])


def test_callers_at_once_do_not_disturb_each_other(library: native.Library) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(20):
                _product(100 * seed + i)
        except BaseException as error:
            failures.append(error)

    callers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_a_team_of_its_own(library: native.Library) -> None:
    code = """
pid = os.fork()
with no_grad():
    assert (ops.linear(x, w).data == 512).all()
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    made = child(code, TINYTORCH_THREADS="2")
    assert made.returncode == 0, made.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_team_follows_the_processes_allotment() -> None:
    code = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nimport time; time.sleep(1.1)\n"
    made = child(code + "assert native.team_size() == 1")
    assert made.returncode == 0, made.stderr


def test_threads_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYTORCH_THREADS", "5")
    assert processors.threads() == 5
    monkeypatch.setenv("TINYTORCH_THREADS", "none")
    with pytest.raises(ValueError, match="TINYTORCH_THREADS"):
        processors.threads()
    with pytest.raises(ValueError, match="threads must be"):
        processors.set_threads(0)


def test_a_list_is_one_call_and_reads_memory_anew(library: native.Library) -> None:
    random, seen = np.random.default_rng(0), []
    x, hidden, out = (np.zeros((1, n), np.float32) for n in (64, 48, 32))
    first, second = (random.standard_normal(s).astype(np.float32) for s in ((48, 64), (32, 48)))
    steps: list[Any] = [_plan(hidden, x, first), _plan(out, hidden, second)]
    run = native.replay([*steps, lambda: seen.append(out.copy()), steps[1]])
    for _ in range(3):
        x[...] = random.standard_normal(x.shape)
        run()
        np.testing.assert_allclose(seen[-1], x @ first.T @ second.T, atol=1e-3)


def test_tiny_numbers_stay(library: native.Library) -> None:
    assert np.float32(1e-40) * np.float32(1) != 0  # loading must not flush them to zero


def test_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="file locks are needed")
    target, builders = tmp_path / "made.so", []

    def build_it(number: int) -> None:
        with toolchain.one_builder(target):
            if not target.exists():
                builders.append(number)
                time.sleep(0.1)
                target.write_text("made")

    jobs = [threading.Thread(target=build_it, args=(n,)) for n in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(builders) == 1


def test_builds_at_once_are_whole_files(tmp_path: Path) -> None:
    """Two threads build a library of one source into one place."""
    try:
        toolchain.compiler()
    except toolchain.CompilerError as error:
        pytest.skip(str(error))
    one = {"portable": ("-DISA_LEVEL=0", "-O0")}
    target, jobs = tmp_path / "made.so", []
    for _ in range(2):
        jobs.append(threading.Thread(target=build.build, args=(target, toolchain, one)))
        jobs[-1].start()
    for job in jobs:
        job.join()
    assert native.Library(target, "portable").function("advance", 4)
    assert [p.name for p in tmp_path.iterdir()] == ["made.so"]


def test_shapes_that_do_not_fit_are_the_references_to_refuse() -> None:
    """Native code would read or write beyond an array."""
    logits = np.zeros((3, 5), np.float32)
    with pytest.raises(ValueError):
        ops.swiglu(np.ones((2, 5), np.float32))
    with pytest.raises(ValueError):
        ops.linear(np.ones((1, 4), np.float32), np.ones((5, 4), np.float32), activation="swiglu")
    for name, arrays, options in (
        ("cross_entropy", (logits, np.zeros(1, np.int64)), {}),
        ("cached_attention", _cached(keys=1), {"heads": 4, "stop": 1}),
        ("cached_attention", _cached(values=1), {"heads": 4, "stop": 1}),
    ):
        makers = [m for m in OPS[name].makers["cpu"] if ".native." in m.forward.__module__]
        assert not any(m.accepts and m.accepts(*arrays, **options) for m in makers)


def _cached(keys: int = 2, values: int = 2) -> tuple[Any, ...]:
    cache = [np.zeros((1, 4, heads, 32), np.float32) for heads in (keys, values)]
    return np.ones((1, 1, 8, 32), np.float32), *cache, np.zeros(1, np.int64), np.ones(1, np.int64)


def test_places_beyond_the_tables_are_refused(library: native.Library) -> None:
    new, keys, values, starts, lengths = _cached()
    tables = [np.ones((4, 16), np.float32)] * 2
    for position in (4, -1):
        with pytest.raises(IndexError, match="positions"):
            ops.cached_attention(
                new, keys, values, starts, lengths, *tables, np.array([position]), heads=4, stop=1
            )
