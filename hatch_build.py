"""Builds the CPU's library into a wheel; without a C++ compiler the wheel is without it, and for any
machine."""

import importlib.util
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):
    """Compile ``kernels/cpu`` for a wheel that is going to be installed; a checkout builds on first use."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._folder = None
        if self.target_name != "wheel" or version == "editable":
            return
        toolchain, build = self._module("toolchain"), self._module("native/build")
        self._folder = tempfile.mkdtemp(prefix="tinytorch_gpu_")
        target = Path(self._folder) / build.PACKAGED
        try:
            build.build(target, toolchain, build.instruction_sets())
        except toolchain.CompilerError as error:
            self.app.display_warning(f"a wheel without native code: {error}")
            return
        build_data["force_include"][str(target)] = f"tinytorch_gpu/native/{build.PACKAGED}"
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact: str) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _module(self, name: str) -> Any:
        """A module of the package by itself: what the package imports may not be installed here."""
        path = Path(self.root) / "tinytorch_gpu" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
