"""The tensors of a folder's safetensors files by name, streamed in row blocks, so that memory follows the block."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from veritune.errors import ModelError, first_line

BLOCK_BYTES = 64 * 2**20
PACKED = (".absmax", ".SCB", ".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv")


def _is_packed(name: str, dtype: str) -> bool:
    """Whether a tensor is part of quantised weights: by its name, or a matrix's 8-bit floating type."""
    return ".quant_state" in name or name.endswith(PACKED) or dtype.startswith("F8")


class Tensors:
    """The tensors of a folder's safetensors files by name, read in row blocks of at most `BLOCK_BYTES`.

    A file is opened for one tensor and closed again: pages of an open file stay mapped, and memory would follow the
    model.
    """

    def __init__(self, folder: Path, only: str = "") -> None:
        self.folder = folder
        paths = [folder / only] if only else sorted(folder.glob("*.safetensors"))
        paths = [p for p in paths if p.exists()]
        if not paths:
            raise ModelError(f"{folder}: no safetensors weights found.", fix="Save the model as safetensors.")
        self._path_of: dict[str, Path] = {}
        self._shape_of: dict[str, tuple[int, ...]] = {}
        self._dtype_of: dict[str, str] = {}
        self._made: dict[str, torch.Tensor] = {}
        for path in paths:
            try:
                with safe_open(str(path), framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        self._path_of[name] = path
                        self._shape_of[name] = tuple(file.get_slice(name).get_shape())
                        self._dtype_of[name] = file.get_slice(name).get_dtype()
            except (SafetensorError, OSError) as exc:
                raise ModelError(f"{path}: cannot be read ({first_line(exc)}).", fix="Copy the file again.") from exc
        self.names = tuple(self._shape_of)
        packed = [n for n in self.names if _is_packed(n, self._dtype_of[n])]
        if packed:
            raise ModelError(f"{folder}: the weights are quantised ({packed[0]}).", fix="Use the unquantised base.")

    def exact(self, name: str) -> str | None:
        """The name itself if there is a tensor of this name."""
        return name if name in self._shape_of else None

    def replaced(self, made: dict[str, torch.Tensor], gone: set[str]) -> Tensors:
        """The same tensors without those in `gone` and with those in `made`, which stay in memory."""
        other = copy.copy(self)
        other._made = {**self._made, **made}
        other._shape_of = {k: v for k, v in self._shape_of.items() if k not in gone}
        other._shape_of |= {k: tuple(v.shape) for k, v in made.items()}
        other.names = tuple(other._shape_of)
        return other

    def exact_tensor(self, name: str) -> torch.Tensor:
        """A tensor in its stored precision."""
        if name in self._made:
            return self._made[name]
        with safe_open(str(self._path_of[name]), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def key_of(self, module: str) -> str | None:
        """The name of a module's weight: exact, else the only one that differs by a prefix."""
        for key in (f"{module}.weight", module):
            if key in self._shape_of:
                return key
        ends = [
            n for n in self.names if n.endswith(f".{module}.weight") or module.endswith("." + n.removesuffix(".weight"))
        ]
        return ends[0] if len(ends) == 1 else None

    def tied(self, module: str) -> str | None:
        """For a head without its own weight in these files: the name of the embedding that it shares."""
        if module.rsplit(".", 1)[-1] != "lm_head":
            return None
        found = [n for n in self.names if n.endswith(("embed_tokens.weight", "wte.weight"))]
        return found[0] if len(found) == 1 else None

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape_of[name]

    def dtype(self, name: str) -> torch.dtype:
        """The stored precision of the tensor."""
        names = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
        return names.get(self._dtype_of[name], torch.float32)

    def whole(self, name: str) -> torch.Tensor:
        return self.exact_tensor(name).double()

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Row blocks in float64; each has at most `BLOCK_BYTES` in that precision, and at least one row."""
        shape = self.shape(name)
        if not shape:
            yield self.whole(name)
            return
        rows = max(1, BLOCK_BYTES // (8 * max(1, math.prod(shape[1:]))))
        with safe_open(str(self._path_of[name]), framework="pt") as file:
            part = file.get_slice(name)
            for start in range(0, shape[0], rows):
                block: torch.Tensor = part[start : start + rows]
                yield block.double()

    def head(self, name: str, elements: int = 4096) -> torch.Tensor:
        """The first rows of a tensor in float64, with about this many elements."""
        rows = max(1, elements // max(1, math.prod(self.shape(name)[1:])))
        with safe_open(str(self._path_of[name]), framework="pt") as file:
            part: torch.Tensor = file.get_slice(name)[:rows]
            return part.double()

    def norm(self, name: str) -> float:
        return math.sqrt(sum(float(block.square().sum()) for block in self.blocks(name)))
