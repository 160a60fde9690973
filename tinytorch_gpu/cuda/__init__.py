"""The GPU's makers: importing this package registers the fused kernels for CuPy arrays.

The kernels are not there yet; until then every operation runs its reference through CuPy.
"""
