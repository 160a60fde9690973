"""The CPU's fast makers: importing this package registers them for NumPy arrays."""
