"""Lossless compressions of encoded feature maps, by name: zlib is part of every Python, zstd and lz4 are optional.

Decompression makes as many bytes as the caller says or raises `ValueError`: a small message cannot fill the memory.
An optional package is loaded when it is first needed, and both ends say what they have before any work.
"""
from __future__ import annotations

import importlib.util
import zlib
from types import ModuleType
from typing import Callable, Dict, NamedTuple, Tuple

import cli

LEVEL = 1  # of zlib and zstd: higher levels cost several times the time for a few per cent


class Compression(NamedTuple):
    """One way to compress."""
    package: str  # that has to be there
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]  # (data, bytes that come out): at most one more; ValueError where damaged


def _zlib_decompressed(data: bytes, n_bytes: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, n_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not stream.eof:
        raise ValueError('it does not end where it should')
    return found


def _zstandard() -> ModuleType:
    return cli.optional('zstandard', 'zstandard', 'wire formats with +zstd')


def _zstd_compressed(data: bytes) -> bytes:
    return _zstandard().ZstdCompressor(level=LEVEL).compress(data)  # its size is part of what comes out


def _zstd_decompressed(data: bytes, n_bytes: int) -> bytes:
    zstandard = _zstandard()
    try:
        if zstandard.get_frame_parameters(data).content_size != n_bytes:  # what it would claim memory for
            raise ValueError('it is of another size')
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=n_bytes)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _lz4_block() -> ModuleType:
    return cli.optional('lz4.block', 'lz4', 'wire formats with +lz4')


def _lz4_compressed(data: bytes) -> bytes:
    return _lz4_block().compress(data, store_size=False)


def _lz4_decompressed(data: bytes, n_bytes: int) -> bytes:
    block = _lz4_block()
    try:
        return block.decompress(data, uncompressed_size=n_bytes)
    except block.LZ4BlockError as error:
        raise ValueError(str(error)) from None


COMPRESSIONS: Dict[str, Compression] = {
    'zlib': Compression('zlib', lambda data: zlib.compress(data, LEVEL), _zlib_decompressed),
    'zstd': Compression('zstandard', _zstd_compressed, _zstd_decompressed),
    'lz4': Compression('lz4', _lz4_compressed, _lz4_decompressed)}


def available() -> Tuple[str, ...]:
    """The compressions of which this machine has the package."""
    return tuple(name for name, found in COMPRESSIONS.items() if importlib.util.find_spec(found.package) is not None)
