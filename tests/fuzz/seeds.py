"""Where fuzzing starts: archives, answers and recordings of every kind that is read, and what was found before."""

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sonify.io.tars import BLOCK
from sonify.vlm.questions import concepts_prompt, concepts_schema
from tests.builders import TOLD, encoded, picture, told, told_json
from tests.sources.everyday import SOUNDS, film, image_bytes

FOUND = Path(__file__).parent / "found"
ANSWERS = Path(__file__).parent.parent / "vlm" / "answers"

_KINDS = (
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CONTTYPE,
    tarfile.GNUTYPE_SPARSE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
)


def seeds(target: str) -> Iterator[bytes]:
    """The inputs of a target: those that are made here, then those that fuzzing found."""
    yield from _SEEDS[target]()
    yield from (path.read_bytes() for path in sorted(FOUND.glob(f"{target}-*")))


def with_checksums(data: bytes) -> bytes:
    """Give every block that could be a header the checksum of one; else nearly all changes stop at the first block."""
    blocks = [bytearray(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
    for block in blocks:
        if len(block) == BLOCK and any(block[:100]) and block[257:262] == b"ustar":
            block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * ord(" "))
    return b"".join(blocks)


def _tars() -> Iterator[bytes]:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            long = "" if form == tarfile.USTAR_FORMAT else "k" * 200
            for name, size in (("a.jpg", 600), ("a.json", 2), ("a.jpg", 1), (f"d/\u00e9{long}.txt", 0)):
                header = tarfile.TarInfo(name)
                header.size = size
                archive.addfile(header, io.BytesIO(b"x" * size))
        yield file.getvalue()[: 16 * BLOCK]
    pax = b"16 path=abc.jpg\n10 size=1\n17 GNU.sparse.a=1\n"
    for kind in _KINDS:
        header = tarfile.TarInfo("../" + kind.decode())
        header.type = kind
        header.size = 0 if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE) else len(pax)
        data = (pax + bytes(BLOCK - len(pax))) if header.size else b""
        follower = tarfile.TarInfo("b.jpg").tobuf(tarfile.USTAR_FORMAT)
        yield with_checksums(header.tobuf(tarfile.USTAR_FORMAT) + data + follower + bytes(2 * BLOCK))


def _answers() -> Iterator[bytes]:
    for path in sorted(ANSWERS.glob("*.yaml")):
        for case in yaml.safe_load(path.read_text(encoding="utf-8")):
            yield case["answer"].encode("utf-8", "surrogatepass")


def _told() -> Iterator[bytes]:
    """Answers in the form and cut, badly written, in other shapes; and the prompt and the schema said back."""
    answers = [told_json(*one) for one in TOLD]
    yield from (answer.encode() for answer in answers)
    yield from (answer[: len(answer) * share // 8].encode() for answer in answers for share in range(1, 8))
    whole = json.loads(answers[0])
    odd = {"confidence": "high", "box": ["1", None, 1e999, -5], "presence": 5, "sounding": "no", "name": "狗 \ud800"}
    for said in (whole["concepts"], [whole, whole], {"visible": whole["concepts"]}, {"concepts": [told("dog") | odd]}):
        yield json.dumps(said).encode()
    yield f"```json\n{json.dumps(whole, indent=1)}\n```".encode()
    yield repr(whole).encode()
    yield concepts_prompt(5, "json").encode()
    yield json.dumps(concepts_schema(5)).encode()
    yield b'{"caption": NaN, "concepts": [{"name": "dog", "box": [[[[[[[[[[0]]]]]]]]]], "visible": false}]}'
    yield b"caption: a dog\ndog: sound of a dog barking (foreground)"


def _replies() -> Iterator[bytes]:
    part = {"type": "text", "text": "caption: a dog"}
    thought = {"type": "thinking", "thinking": [part]}
    said = (
        "caption: a dog",
        None,
        "",
        5,
        [part],
        [thought, part],
        ["a", "b"],
        part,
        [{"type": "refusal", "refusal": "no"}],
    )
    for content in said:
        for ending in ("stop", "length", "content_filter", "abort", {"type": "length"}, None):
            message = {"role": "assistant", "content": content, "refusal": None, "reasoning_content": "a dog"}
            yield json.dumps({"id": "x", "choices": [{"message": message, "finish_reason": ending}]}).encode()
    for error in ({"message": "no", "param": "n", "code": "c"}, {"code": 502, "message": "m"}, "no", {"type": "t"}):
        yield json.dumps({"error": error}).encode()
        yield json.dumps({"choices": [{"error": error, "text": "a"}]}).encode()
    yield from (b'{"choices": []}', b'{"object": "error", "message": "m", "code": 40303}', b"7", b"<html>")


def _sounds() -> Iterator[bytes]:
    """Of every container and codec, films and a chain; a tenth of a second is enough, where it can be chosen."""
    for codecs in SOUNDS.values():
        yield from (make() for make in codecs.values())
    yield from (film(container) for container in ("mp4", "mov", "matroska"))
    yield SOUNDS["Ogg"]["Vorbis"]() + SOUNDS["Ogg"]["Opus"]()
    yield b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + SOUNDS["FLAC"]["FLAC"]()


def _images() -> Iterator[bytes]:
    """Of every format, and of those with many forms the forms."""
    image = Image.open(io.BytesIO(picture(1, (48, 32), "PNG")))
    yield from (image_bytes(kind) for kind in ("JPEG", "PNG", "WebP", "GIF", "BMP", "AVIF", "HEIF"))
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield encoded(image, "TIFF", compression=compression)
    for mode in ("1", "L", "P", "RGBA", "CMYK", "LA"):
        yield encoded(image.convert(mode), "TIFF")
    yield encoded(image, "TIFF", big_tiff=True)
    yield from (encoded(image.convert(mode), "BMP") for mode in ("1", "P", "RGBA"))
    for kind in ("GIF", "AVIF", "PNG"):
        yield encoded(image, kind, save_all=True, append_images=[image.rotate(90)])
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    yield encoded(image, "PNG", pnginfo=text, icc_profile=b"x" * 500)


_SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "tars": _tars,
    "answers": _answers,
    "told": _told,
    "replies": _replies,
    "sounds": _sounds,
    "images": _images,
}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes: overwritten, cut out, doubled, or the file cut short. Small, for tests without a fuzzer."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed) + 1)
        size = rng.choice((1, 1, 2, 4, 16))
        match rng.randrange(5):
            case 0 | 1:
                changed[at : at + size] = rng.choice((rng.randbytes(size), b"\xff" * size, bytes(size)))
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = changed[max(at - size, 0) : at]
            case _:
                if rng.random() < 0.1:
                    del changed[at:]
    return bytes(changed)
