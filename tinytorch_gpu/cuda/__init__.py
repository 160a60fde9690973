"""The GPU's makers: importing this package registers the CUDA kernels for CuPy's arrays, and for
those of the emulated device."""

import importlib
import pkgutil

from .. import ops as ops  # the operations that the makers are for

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
