"""Zstandard streams as files that are read. A stream that ends before its frame does is an error, never less data."""

from __future__ import annotations

import io
from typing import IO, Any

CHUNK = 1 << 20


class ZstdFile(io.RawIOBase):
    """A file object over the decompressed bytes of one or more Zstandard frames. Raises OSError if a frame is damaged
    or cut.

    `zstandard`'s own readers return what they have where a file is cut.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._ready = b""
        self._rest = b""
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._advance():
            pass
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()

    def _advance(self) -> bool:
        """Decompress one more chunk into `_ready`; False at the file's end."""
        import zstandard

        chunk = self._rest or self._file.read(CHUNK)
        self._rest = b""
        if not chunk:
            if self._frame is not None:
                raise OSError("the Zstandard stream is cut off")
            return False
        self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
        try:
            self._ready = self._frame.decompress(chunk)
        except zstandard.ZstdError as exc:
            raise OSError(str(exc)) from exc
        if self._frame.eof:
            self._rest, self._frame = self._frame.unused_data, None
        return True


def decompress(data: bytes, limit: int) -> bytes:
    """The content of Zstandard frames. Raises OSError for damaged or cut frames, and for content longer than `limit`
    bytes.
    """
    with ZstdFile(io.BytesIO(data)) as file, io.BufferedReader(file) as reader:
        content = reader.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"expected at most {limit:,} bytes, found more")
    return content
