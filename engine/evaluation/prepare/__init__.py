"""From the files that benchmarks are published as to the rows that task files name: `python -m engine evaluate --prepare`."""

from engine.evaluation.prepare.catalogue import converters, prepare
from engine.evaluation.prepare.converter import Converter, Prepared

__all__ = ["Converter", "Prepared", "converters", "prepare"]
