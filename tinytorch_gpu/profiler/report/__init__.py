"""Everything about one model on one device in one object, and the ways to show it: one file for each."""

from .data import Report, build_report, lines

__all__ = ["Report", "build_report", "lines"]
