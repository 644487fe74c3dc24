"""Images that cannot be shown to a model, and odd ones that can: chat bodies, made here."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from functools import cache
from typing import Any

from PIL import Image

TINY_PNG_SIDE = 32


def data_url(content: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def url_of(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return data_url(out.getvalue())


def saved(kind: str, side: tuple[int, int] = (TINY_PNG_SIDE, TINY_PNG_SIDE), mode: str = "RGB", **more: Any) -> bytes:
    """A plain picture in some format."""
    image = Image.linear_gradient("L").resize(side).convert("RGB" if mode in ("P", "I;16") else mode)
    if mode in ("P", "I;16"):
        image = image.convert("P") if mode == "P" else Image.new("I;16", side, 30000)
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def animated(kind: str, frames: int = 5) -> bytes:
    first, *rest = [Image.new("RGB", (TINY_PNG_SIDE, TINY_PNG_SIDE), (50 * i, 0, 0)) for i in range(frames)]
    out = io.BytesIO()
    first.save(out, kind, save_all=True, append_images=rest)
    return out.getvalue()


def png(width: int, height: int, rows: bytes | None = None) -> bytes:
    """A black PNG of any size in its header; `rows`: its packed pixels, None for as many as the header says."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    if rows is None:
        packed = zlib.compressobj(9)
        line = bytes(1 + (width + 7) // 8)
        rows = b"".join(packed.compress(line) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@cache
def contents() -> dict[str, tuple[bytes, str]]:
    """What a picture's bytes may be, by name, and the type that is claimed for them."""
    whole, photo = saved("PNG", mode="RGB"), saved("JPEG", quality=90)
    return {
        "nothing in it": (b"", "image/png"),
        "words": (b"this is no picture at all", "image/png"),
        "zeros": (bytes(1000), "image/png"),
        "half a png": (_half(whole), "image/png"),
        "half a jpeg": (_half(photo), "image/jpeg"),
        "a png's first bytes": (whole[:20], "image/png"),
        "png with a wrong checksum": (whole[:40] + bytes(8) + whole[48:], "image/png"),
        "no width": (png(0, 16, b""), "image/png"),
        "no size": (png(0, 0, b""), "image/png"),
        "size without pixels": (png(64, 64, b""), "image/png"),
        "a size of 2^31": (png(2**31 - 1, 2**31 - 1, b""), "image/png"),
        "a bomb": (png(16_000, 16_000), "image/png"),  # a few kB that would be 768 MB
        "a bomb of 14 bytes": (b"qoif" + b"\x7f\xff\xff\xff" * 2 + b"\x03\x00", "image/qoi"),
        "png with a wrong length": (whole[:33] + struct.pack(">I", 20) + whole[37:], "image/png"),
        "most of an avif": (saved("AVIF")[:-20], "image/avif"),
        "blp of no kind": (
            b"BLP2" + struct.pack("<I", 1) + bytes(4) + struct.pack("<II", 8, 8) + bytes(1200),
            "image/blp",
        ),
        "dds of no kind": (b"DDS " + struct.pack("<IIII", 124, 0x1007, 8, 8) + bytes(108), "image/dds"),
        "large": (png(5_000, 4_000), "image/png"),
        "one pixel": (png(1, 1), "image/png"),
        "a line": (png(1, 2_000), "image/png"),
        "a long line": (png(10_000, 2), "image/png"),
        "animated gif": (animated("GIF"), "image/gif"),
        "animated webp": (animated("WEBP"), "image/webp"),
        "animated png": (animated("PNG"), "image/png"),
        "two pages of tiff": (animated("TIFF", 2), "image/tiff"),
        "cmyk": (saved("JPEG", mode="CMYK"), "image/jpeg"),
        "sixteen bits": (saved("PNG", mode="I;16"), "image/png"),
        "palette": (saved("PNG", mode="P", transparency=3), "image/png"),
        "transparent": (saved("PNG", mode="RGBA"), "image/png"),
        "grey with alpha": (saved("PNG", mode="LA"), "image/png"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "image/svg+xml"),
        "pdf": (b"%PDF-1.4\n%%EOF", "application/pdf"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "image/x-eps"),
        "says text": (whole, "text/plain"),
    }


@cache
def parts() -> dict[str, Any]:
    """Content parts by name; every one must be answered, and no answer may be a 500."""
    out: dict[str, Any] = {name: _url(data_url(content, mime)) for name, (content, mime) in contents().items()}
    good = data_url(saved("PNG"))
    urls: dict[str, Any] = {
        "not base64": "data:image/png;base64,@@@@",
        "base64 cut": good[:-3],
        "base64 with spaces": good[:40] + " " + good[40:],
        "no base64 word": "data:image/png,abc",
        "no comma": "data:image/png;base64",
        "only data": "data:",
        "empty": "",
        "a space": " ",
        "no scheme": "picture.png",
        "file": "file:///etc/hostname",
        "ftp": "ftp://127.0.0.1/picture.png",
        "private": "http://127.0.0.1:9/picture.png",
        "metadata": "http://169.254.169.254/latest/meta-data",
        "no host": "http:///picture.png",
        "unknown host": "http://no.such.host.invalid/picture.png",
        "bad port": "http://example.invalid:99999/picture.png",
        "null": None,
        "a number": 3,
        "a list": ["a"],
    }
    out |= {f"url {name}": _url(url) for name, url in urls.items()}
    out |= {
        "no url": {"type": "image_url", "image_url": {}},
        "no image_url": {"type": "image_url"},
        "image_url text": {"type": "image_url", "image_url": good},
        "image_url null": {"type": "image_url", "image_url": None},
        "detail unknown": {"type": "image_url", "image_url": {"url": good, "detail": "sharp"}},
        "unknown part": {"type": "picture", "picture": good},
        "type null": {"type": None, "image_url": {"url": good}},
        "a video": {"type": "video_url", "video_url": {"url": data_url(animated("GIF"), "video/mp4")}},
        "a broken video": {"type": "video_url", "video_url": {"url": data_url(b"no video", "video/mp4")}},
        "audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        "embeddings": {"type": "image_embeds", "image_embeds": "AAAA"},
        "embeddings null": {"type": "image_embeds", "image_embeds": None},
        "pil": {"type": "image_pil", "image_pil": "AAAA"},
        "uuid alone": {"type": "image_url", "image_url": None, "uuid": "never-seen"},
    }
    return out


def _url(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def body(*content: Any, **more: Any) -> dict[str, Any]:
    """A chat body of one message that has words and these parts."""
    words = {"type": "text", "text": "What is this?"}
    message = {"role": "user", "content": [words, *content]}
    return {"model": "tiny", "messages": [message], "max_tokens": 2, "temperature": 0, **more}


def bodies(mark: str = "<image>") -> dict[str, dict[str, Any]]:
    """All of them as chat bodies; `mark`: how the model's prompts say "an image here"."""
    good = _url(data_url(saved("PNG")))
    out = {name: body(part) for name, part in parts().items()}
    out |= {f"after a good one: {name}": body(good, parts()[name]) for name in ("half a png", "no size", "a bomb")}
    out |= {
        "a mark without an image": body({"type": "text", "text": f"so {mark} what?"}),
        "more marks than images": body(good, {"type": "text", "text": f"so {mark} what?"}),
        "too many": body(*[good] * 40),
        "in a system message": {
            **body(),
            "messages": [{"role": "system", "content": [good]}, {"role": "user", "content": "What is this?"}],
        },
        "in an answer": {
            **body(),
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [good]}],
        },
        "longer than the model": body(*[good] * 4, {"type": "text", "text": "a" * 5000}),
        "processor kwargs": body(good, mm_processor_kwargs={"size": {"height": 1}}),
        "processor kwargs of a wrong type": body(good, mm_processor_kwargs=3),
        "media kwargs": body(good, media_io_kwargs={"image": {"image_mode": "no such mode"}}),
        "media kwargs of a wrong type": body(good, media_io_kwargs=3),
    }
    return out
