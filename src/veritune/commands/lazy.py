"""Lazy modules, so that `veritune --help`, a typing error and shell completion do not wait for the whole library.

The command files together import numpy, scipy and pydantic: more than a second, where `--help` takes 0.1 s. So each
file names the modules of the library once, at its head, for the type checker and for the run:

    if TYPE_CHECKING:
        from veritune.release.gate import gates
    else:
        gates = lazy("veritune.release.gate.gates")

The test of the house compares both lists.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class LazyModule:
    """A stand-in for a module, which is imported when one of its names is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)

    def __repr__(self) -> str:
        return f"<lazy module {self._name}>"


def lazy(name: str) -> LazyModule:
    """A stand-in for the module of this dotted name, which is imported at its first use."""
    return LazyModule(name)
