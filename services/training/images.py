"""From an image as people have it to the numbers that a model takes, and back: the same for who trains and who predicts. Needs numpy and Pillow alone."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
LONGEST_SIDE = 512
"""Pixels. Larger ones are made smaller first, as they were for training."""
MOST_PIXELS = 50_000_000
"""Of an image as it comes, told by its header before it is decoded."""
MOST_BYTES = 64 * 1024 * 1024
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}

Pixels = NDArray[np.uint8]
"""[height, width, 3], or of several."""


class Unfit(ValueError):
    """What can't be looked at, in words for whoever sent it."""


class Preparation(msgspec.Struct, frozen=True, kw_only=True):
    """What `preprocess.json` holds: all that is needed to get from an image to the model's input `x`, and from its output `y` to an answer.

    `x` is float32 of [images, 3, size, size], red first: the square in the image's middle, by 255, less the mean, by the deviation.
    """

    kind: Literal["image"] = "image"
    version: int = 1
    size: int
    crop: float
    """The square's side, as a share of the image's shorter one."""
    resample: Literal["bilinear", "bicubic", "lanczos"]
    mean: list[float]
    std: list[float]
    target: str
    classes: list[str]
    """The model's outputs are the probabilities of these."""

    def encode(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        return self.scaled(np.stack([self.middle(picture) for picture in pictures]))

    def middle(self, picture: Image.Image) -> Pixels:
        side = min(picture.size) * self.crop
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        return np.asarray(self.cut(picture, (left, top, left + side, top + side)))

    def cut(self, picture: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
        return picture.resize((self.size, self.size), RESAMPLING[self.resample], box=box)

    def scaled(self, pixels: Pixels) -> NDArray[np.float32]:
        mean, std = (np.array(values, dtype=np.float32) for values in (self.mean, self.std))
        x = (pixels.astype(np.float32) / 255 - mean) / std
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)

    def decode(self, output: NDArray[Any]) -> list[dict[str, Any]]:
        """A class, how sure the model is of it, and what it makes of the others."""
        return [
            {
                "prediction": self.classes[winner],
                "confidence": float(row[winner]),
                "probabilities": {name: float(share) for name, share in zip(self.classes, row, strict=True)},
            }
            for winner, row in zip(output.argmax(axis=1).tolist(), output, strict=True)
        ]


def picture(data: bytes) -> Image.Image:
    """A stranger's file: RGB, upright, no larger than what was learned from; what is transparent is white. Raises Unfit."""
    if len(data) > MOST_BYTES:
        raise Unfit(f"The image has {len(data):,} bytes; {MOST_BYTES:,} are the most.")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Unfit(f"The image has {image.width} x {image.height} pixels; {MOST_PIXELS:,} are the most.")
            image.draft("RGB", (LONGEST_SIDE * 2, LONGEST_SIDE * 2))  # a JPEG can be decoded at a smaller size
            made = _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise Unfit(f"That is no image of a kind that can be read here: {', '.join(FORMATS)}.") from None
    except (MemoryError, Unfit):
        raise
    except Exception as error:  # a stranger's image breaks its decoder in every possible way
        raise Unfit(f"The image is damaged: {str(error)[:200]}") from error
    made.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return made


def drawn(values: Any) -> Image.Image:
    """Numbers as JSON has them: rows of pixels of red, green and blue, from 0 to 255, or to 1 where none is larger. Raises Unfit."""
    try:
        pixels = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise Unfit("The pixels must be numbers in rows of the same length.") from None
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size or pixels.shape[0] * pixels.shape[1] > MOST_PIXELS:
        raise Unfit(f"The pixels must be [height, width, 3], and these are {list(pixels.shape)}.")
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 255:
        raise Unfit("Pixels go from 0 to 255, or from 0 to 1.")
    bright = pixels * 255 if pixels.max() <= 1 else pixels
    return Image.fromarray(np.round(bright).astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _eight_bits(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, (255, 255, 255, 255)), shown).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Of 16 bits or more: from black to the brightest that its kind can have, or that it has."""
    deep = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = float(deep.min()), float(deep.max())
    if image.mode != "F" and low >= 0 and high <= 65_535:
        low, high = 0.0, 65_535.0 if high > 255 else 255.0
    scaled = (deep - low) * (255.0 / (high - low)) if high > low else deep * 0
    return Image.fromarray(scaled.astype(np.uint8))
