"""The body of a request as its client wrote it, compressed or not."""

import asyncio

import zstandard
from fastapi import Request

from tinsmith.backend.wire.gate import MAX_DATA_BYTES
from tinsmith.errors import TinsmithError


async def read_body(request: Request) -> bytes:
    """The body, decompressed if the Content-Encoding says zstd."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding == "identity":
        return await request.body()
    if encoding != "zstd":
        raise TinsmithError(
            f"the body's Content-Encoding must be zstd, identity or left out, got {encoding!r}"
        )
    return await asyncio.to_thread(decompress, await request.body())


def decompress(data: bytes) -> bytes:
    """One whole zstd frame, refused before its memory is taken if it says or shows that it is too
    large."""
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size != zstandard.CONTENTSIZE_UNKNOWN and size > MAX_DATA_BYTES:
            raise TinsmithError(
                f"the body must be at most {MAX_DATA_BYTES} bytes when decompressed, got "
                f"{size}; send fewer datums at once"
            )
        return zstandard.ZstdDecompressor().decompress(
            data, max_output_size=MAX_DATA_BYTES, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise TinsmithError(
            f"the body is not one whole zstd frame of at most {MAX_DATA_BYTES} bytes: {error}"
        ) from error
