"""A GPU made of software: CUDA kernels compiled as C++ and run thread by thread, under checks.

``launch`` runs a kernel of a ``.cu`` file on ``Array``s; ``recorded`` collects what launches did;
``using`` changes the settings. Slow, and strict: what a GPU would silently get wrong is an error here
that names the line. There is no timing and no occupancy; contraction and flushing of subnormal numbers are
the host compiler's, matrix instructions add up more exactly than the hardware, and a thread that has
returned before its block's last barrier is refused though hardware allows it.
"""

from .arrays import Array, CaptureError, Pool, traffic, using_pool
from .compiler import CompilerError, compiler
from .runtime import Counters, KernelError, Launch, launch, recorded, settings, using

__all__ = [
    "Array", "CaptureError", "CompilerError", "Counters", "KernelError", "Launch", "Pool", "compiler",
    "launch", "recorded", "settings", "traffic", "using", "using_pool",
]  # fmt: skip
