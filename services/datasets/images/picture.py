"""One image of a stranger's, made like all others: RGB, upright, no larger than a model looks at."""

from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
LONGEST_SIDE = 512
"""Pixels. Models look at 224 to 384; a little more leaves room for cutting and keeps a data set a tenth of what cameras make."""
MOST_PIXELS = 50_000_000
"""Of an image as it comes, told by its header before it is decoded: 200 MB of memory, and more than cameras make."""
MOST_BYTES = 64 * 1024 * 1024
"""Of the file."""
QUALITY = 95

Image.MAX_IMAGE_PIXELS = None  # ours is looked at first, and refuses
ImageFile.LOAD_TRUNCATED_IMAGES = False


class Unusable(Exception):
    """The reason, as a stable code."""


class Picture(NamedTuple):
    data: bytes
    extension: str
    width: int
    height: int
    animated: bool
    """The first of several images in one file."""


def normalised(data: bytes) -> Picture:
    """What came without loss stays so."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Unusable("too_many_pixels")
            lossy, animated = image.format == "JPEG", bool(getattr(image, "is_animated", False))
            image.draft("RGB", (LONGEST_SIDE * 2, LONGEST_SIDE * 2))  # a JPEG can be decoded at a smaller size
            upright = ImageOps.exif_transpose(image)
            made = _rgb(upright)
    except UnidentifiedImageError:
        raise Unusable("not_an_image") from None
    except (MemoryError, Unusable):
        raise
    except Exception as error:  # a stranger's image breaks its decoder in every possible way
        raise Unusable("damaged") from error
    made.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = BytesIO()
    if lossy:
        made.save(out, "JPEG", quality=QUALITY, subsampling=0)
    else:
        made.save(out, "PNG", compress_level=3)
    return Picture(out.getvalue(), "jpg" if lossy else "png", made.width, made.height, animated)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _eight_bits(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        shown = image.convert("RGBA")
        ground = Image.new("RGBA", shown.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, shown).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Of 16 bits or more: from black to the brightest that its kind can have, or that it has."""
    deep = image.convert("F")
    low, high = _extrema(deep)
    if image.mode != "F" and low >= 0 and high <= 65_535:
        low, high = 0.0, 65_535.0 if high > 255 else 255.0
    scale = 255.0 / (high - low) if high > low else 0.0
    return deep.point(lambda value: value * scale - low * scale).convert("L")


def _extrema(image: Image.Image) -> tuple[float, float]:
    extrema: Any = image.getextrema()
    return float(extrema[0]), float(extrema[1])
