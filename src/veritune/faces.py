"""The public names of a package, each imported from its module when it is first used.

`import veritune` then costs nothing that its user does not need. A package's `__init__.py` lists its names once more
under `TYPE_CHECKING`, for type checkers and editors; the test of the house compares both lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def face(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for `package` that import its public names on first use; `homes` maps each name to
    its module, relative to `package`.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: sorted(homes)
