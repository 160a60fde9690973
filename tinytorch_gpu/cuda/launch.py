"""Typed launches: a kernel is called with arrays and numbers, checked against its C signature.

CuPy passes a Python float as a C double and an int as a long long, whatever the kernel declares, and
ignores strides. Here every argument becomes what the signature says or is refused in words. The
same call goes to a GPU or to the emulated device, by where its arrays live.
"""

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..backend import dtype_name, kind, namespace
from .arguments import address, number
from .compile import Parameter, signatures, source

# The C names of the element types, see kernels/numbers.cuh.
ELEMENTS = {"float32": "float", "float16": "half", "bfloat16": "bfloat16"}
SOURCES: dict[str, "Source"] = {}


def element(x: Any) -> str:
    """Return the C name of the element type of ``x``, a key of ``Source`` switches."""
    return ELEMENTS[dtype_name(x.dtype)]


def is_element(*arrays: Any) -> bool:
    """Whether all ``arrays`` that are not None have element types that kernels know."""
    return all(x is None or dtype_name(x.dtype) in ELEMENTS for x in arrays)


class Arena:
    """The arrays that a sequence of launches asked for, to be given to its repetition.

    Inside ``recording()`` each ``empty`` is remembered; inside ``repeating()`` the same ones come
    again in the same order, so that nothing is allocated and every address stays. ``libraries`` are those
    that were called in between (``called_library``).
    """

    def __init__(self, arrays: list[Any] | None = None) -> None:
        self.arrays: list[Any] = [] if arrays is None else arrays
        self.libraries: list[str] = []
        self._next: int | None = None

    def take(self, like: Any, shape: Any, dtype: Any) -> Any:
        """Return the next array."""
        if self._next is None:
            self.arrays.append(namespace(like).empty(shape, dtype=dtype))
            return self.arrays[-1]
        array = self.arrays[self._next] if self._next < len(self.arrays) else None
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        if array is None or array.shape != sizes or array.dtype != dtype:
            raise RuntimeError("a repeated sequence of launches asks for other arrays than before")
        self._next += 1
        return array

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Remember the arrays asked for inside."""
        before, _thread.arena = _thread.arena, self
        try:
            yield
        finally:
            _thread.arena = before

    @contextlib.contextmanager
    def repeating(self) -> Iterator[None]:
        """Give the remembered arrays again inside."""
        self._next = 0
        try:
            with self.recording():
                yield
        finally:
            self._next = None


class _Thread(threading.local):
    arena: Arena | None = None


_thread = _Thread()


def empty(like: Any, shape: Any, dtype: Any = None) -> Any:
    """Return an uninitialised array beside ``like``, of its dtype unless one is given."""
    wanted = like.dtype if dtype is None else dtype
    if _thread.arena is not None:
        return _thread.arena.take(like, shape, wanted)
    return namespace(like).empty(shape, dtype=wanted)


def called_library(name: str) -> None:
    """Note that a library does something that a graph cannot hold."""
    if _thread.arena is not None:
        _thread.arena.libraries.append(name)


def packed(x: Any) -> Any:
    """Return ``x`` itself if it is contiguous, else a copy that is."""
    return x if x is None or x.flags.c_contiguous else namespace(x).ascontiguousarray(x)


class Source:
    """A ``.cu`` file and the choices it is compiled for: ``switches`` names each ``-D`` and its
    values, ``only`` drops combinations that no launcher asks for. With ``text`` the source is that
    and ``file`` what messages call it: a kernel written in a notebook."""

    def __init__(
        self, file: str, only: Callable[[dict[str, Any]], bool] | None = None,
        text: str | None = None, **switches: Any,
    ):  # fmt: skip
        self.file, self.switches = file, {n: tuple(values) for n, values in switches.items()}
        combined = itertools.product(*self.switches.values())
        made = (dict(zip(self.switches, values, strict=True)) for values in combined)
        self.variants = [v for v in made if only is None or only(v)]
        self._known = {tuple(v.values()) for v in self.variants}
        self.kernels: dict[str, Kernel] = {}
        self._given = text
        if text is None:
            SOURCES[file] = self

    @functools.cached_property
    def text(self) -> str:
        """The source with its headers."""
        return source(self.file) if self._given is None else f'#line 1 "{self.file}"\n{self._given}'

    @functools.cached_property
    def parameters(self) -> dict[str, list[Parameter]]:
        """The parameters of each entry point."""
        return signatures(self.text)

    def kernel(self, name: str, strided: tuple[str, ...] = ()) -> "Kernel":
        """Declare the entry point ``name``; ``strided`` parameters may be arrays of any strides."""
        self.kernels[name] = made = Kernel(self, name, strided)
        return made

    def options(self, variant: dict[str, Any]) -> tuple[str, ...]:
        """The compiler's options for a variant; one that was not declared is a KeyError."""
        values = tuple(variant[name] for name in self.switches)
        if values not in self._known:
            raise KeyError(f"{self.file} is not compiled for {variant}")
        return ("-std=c++17", *(f"-D{n}={v}" for n, v in zip(self.switches, values, strict=True)))

    @functools.cache  # noqa: B019  sources live as long as the program
    def module(self, options: tuple[str, ...]) -> Any:
        """The file compiled by CuPy with ``options``."""
        import cupy

        return cupy.RawModule(code=self.text, options=options)


class _Function:
    """A compiled kernel on one device. A block may have 48 KB of shared memory, what the kernel itself
    declares included; more must be asked for."""

    def __init__(self, function: Any):
        self.function, self._allowed = function, (48 << 10) - function.shared_size_bytes

    def allow(self, shared: int) -> None:
        """Ask for so many bytes of dynamic shared memory, if none had as many before."""
        if shared > self._allowed:
            self.function.max_dynamic_shared_size_bytes = self._allowed = shared


class Kernel:
    """One entry point: ``kernel(grid, block, *arguments, shared=0, **variant)``.

    ``grid`` and ``block`` are ints or tuples of up to three, ``shared`` the bytes of dynamic shared
    memory. ``reaches`` are arrays that the kernel finds through addresses in device memory.
    """

    def __init__(self, of: Source, name: str, strided: tuple[str, ...]):
        self.source, self.name, self.strided = of, name, strided
        self._bound: dict[Any, tuple[list[Callable[[Any], Any]], tuple[str, ...]]] = {}
        self._functions: dict[Any, _Function] = {}

    def __call__(
        self, grid: Any, block: Any, *arguments: Any, shared: Any = 0, reaches: Any = (),
        **variant: Any,
    ) -> None:  # fmt: skip
        key = tuple(variant.items())
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = self._bind(variant)
        converters, options = bound
        if len(arguments) != len(converters):
            raise TypeError(
                f"{self.name} takes {len(converters)} arguments, {len(arguments)} given"
            )
        grid = (grid,) if isinstance(grid, int) else grid
        block = (block,) if isinstance(block, int) else block
        if not all(grid):
            return  # nothing to do: a launch of no blocks is an error to CUDA
        passed = [convert(a) for convert, a in zip(converters, arguments, strict=True)]
        where = next(kind(a) for a in arguments if kind(a))
        if where == "cuda":
            self._on_gpu(options, shared)(grid, block, tuple(passed), shared_mem=shared)
        else:
            self._emulated(options, grid, block, passed, shared, reaches)

    def _on_gpu(self, options: tuple[str, ...], shared: int) -> Any:
        import cupy

        key = (cupy.cuda.runtime.getDevice(), options)
        found = self._functions.get(key)
        if found is None:
            function = self.source.module(options).get_function(self.name)
            found = self._functions[key] = _Function(function)
        found.allow(shared)
        return found.function

    def _emulated(
        self, options: Any, grid: Any, block: Any, passed: Any, shared: int, reaches: Any
    ) -> None:
        from ..emulated import launch

        parameters = self.source.parameters[self.name]
        launch(
            self.source.file, self.source.text, options, self.name, parameters,
            grid, block, passed, shared, reaches, tuple(self.source.kernels),
        )  # fmt: skip

    def _bind(self, variant: dict[str, Any]) -> tuple[list[Callable[[Any], Any]], tuple[str, ...]]:
        """A converter for each parameter, given what the switches make of its type."""
        options = self.source.options(variant)
        parameters = self.source.parameters.get(self.name)
        if parameters is None:
            raise KeyError(f'{self.source.file} has no extern "C" kernel called {self.name}')
        made: list[Callable[[Any], Any]] = []
        for p in parameters:
            name = str(variant.get(p.element, p.element))
            label = f"{self.name}({p.name})"
            if p.pointer:
                any_strides = p.name in self.strided
                made.append(address(label, name, any_strides))
            else:
                made.append(number(label, name))
        return made, options


def processors(like: Any) -> int:
    """Number of multiprocessors of the device that ``like`` lives on."""
    if kind(like) == "cuda":
        return _attributes(like.device.id)["MultiProcessorCount"]
    return namespace(like).PROCESSORS


def compute_capability(like: Any) -> int:
    """75, 80, 90...: of the device that ``like`` lives on."""
    if kind(like) == "cuda":
        return _capability(like.device.id)
    return namespace(like).COMPUTE_CAPABILITY


def shared_limit(like: Any) -> int:
    """Bytes of shared memory that a block may ask for on the device that ``like`` lives on."""
    if kind(like) == "cuda":
        return _attributes(like.device.id)["MaxSharedMemoryPerBlockOptin"]
    return namespace(like).SHARED_LIMIT


@functools.cache
def _attributes(index: int) -> Any:
    import cupy

    return cupy.cuda.Device(index).attributes


@functools.cache
def _capability(index: int) -> int:
    import cupy

    return int(cupy.cuda.Device(index).compute_capability)
