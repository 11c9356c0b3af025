"""Images as the datasets service leaves them: a ZIP with a manifest, divided into those to learn from and those held out. In the child only."""

import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from libs.events import Fit
from services.training.images import MOST_BYTES, Pixels, Preparation, Unfit, picture

from .outcome import Failure
from .table import divided

MANIFEST = "manifest.jsonl"
MOST_IMAGES = 1_000_000
LONGEST_MANIFEST = 1024 * MOST_IMAGES
MOST_CLASSES = 10_000
FEWEST = 4
AHEAD = 2
"""Pieces that are decoded while one is learned from."""
TARGET = "label"

SMALLEST_CUT = 0.5
"""Share of an image's area that is cut out at least when it is learned from."""
NARROWEST = 3 / 4
SHADING = 0.2
"""Of brightness and contrast, up and down."""

Rows = NDArray[np.int64]
Draw = Callable[[int], Pixels]
Drawn = Generator[tuple[Rows, Pixels], None, None]


class Line(msgspec.Struct, frozen=True):
    """Of the manifest, as far as it matters here."""

    file: str
    label: str


class Pictures(NamedTuple):
    archive: zipfile.ZipFile
    files: list[str]
    classes: list[str]
    truth: Rows
    """Numbers of classes."""
    training: Rows
    held_out: Rows

    def picture(self, index: int) -> Image.Image:
        """Raises a Failure: whoever made the archive has looked at each image."""
        name = self.files[index]
        try:
            info = self.archive.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > MOST_BYTES:
                raise Unfit("The image is packed, or too large.")
            return picture(self.archive.read(info))
        except (Unfit, zipfile.BadZipFile, KeyError, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            raise Failure("data", f"The image {name[:200]} of the prepared data set can't be read. Upload the data set again.") from error


def read(path: Path, fit: Fit) -> Pictures:
    """The same images are held out each time. Raises a Failure where there is nothing to learn."""
    archive, lines = _opened(path)
    classes = sorted({line.label for line in lines})
    if len(classes) < 2:
        raise Failure("data", "All images have the same label: there is nothing to tell apart.")
    if len(classes) > MOST_CLASSES:
        raise Failure("data", f"The images have {len(classes):,} labels; at most {MOST_CLASSES:,} can be told apart.")
    if len(lines) < FEWEST:
        raise Failure("data", f"There are {len(lines)} images: too few to learn from some and hold others out.")
    numbers = {name: number for number, name in enumerate(classes)}
    truth = np.array([numbers[line.label] for line in lines], dtype=np.int64)
    training, held_out = divided(truth, share=fit.validation_split, seed=fit.seed, classes=len(classes))
    return Pictures(archive, [line.file for line in lines], classes, truth, training, held_out)


def _opened(path: Path) -> tuple[zipfile.ZipFile, list[Line]]:
    try:
        archive = zipfile.ZipFile(path)
        info = archive.getinfo(MANIFEST)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > LONGEST_MANIFEST:
            raise zipfile.BadZipFile("no manifest of ours")
        lines = msgspec.json.Decoder(Line).decode_lines(archive.read(info))
        if len(lines) > MOST_IMAGES or len({line.file for line in lines}) < len(lines) or not {line.file for line in lines} <= set(archive.namelist()):
            raise zipfile.BadZipFile("the manifest doesn't belong to the images")
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise Failure("data", "The prepared images can't be read. Upload the data set again.") from error
    return archive, lines


class Looking:
    """Decodes what comes next while something else is computed; no more than a few pieces are in memory."""

    def __init__(self, known: Pictures, preparation: Preparation, *, seed: int, threads: int) -> None:
        self._known, self._preparation, self._seed = known, preparation, seed
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode")

    def middles(self, pieces: Iterable[Rows]) -> Drawn:
        """As they are looked at when nothing is learned."""
        return self._drawn(pieces, lambda index: self._preparation.middle(self._known.picture(index)))

    def varied(self, pieces: Iterable[Rows], *, epoch: int) -> Drawn:
        """Otherwise in each epoch; how follows from the seed, the epoch and the image alone."""
        return self._drawn(pieces, lambda index: varied(self._known.picture(index), self._preparation, np.random.default_rng((self._seed, epoch, index))))

    def _drawn(self, pieces: Iterable[Rows], draw: Draw) -> Drawn:
        coming: deque[tuple[Rows, list[Future[Pixels]]]] = deque()
        try:
            for piece in pieces:
                coming.append((piece, [self._pool.submit(draw, index) for index in piece.tolist()]))
                if len(coming) > AHEAD:
                    yield _stacked(*coming.popleft())
            while coming:
                yield _stacked(*coming.popleft())
        finally:
            for _, drawing in coming:
                for future in drawing:
                    future.cancel()


def _stacked(rows: Rows, drawing: list[Future[Pixels]]) -> tuple[Rows, Pixels]:
    return rows, np.stack([future.result() for future in drawing])


def varied(shown: Image.Image, preparation: Preparation, random: np.random.Generator) -> Pixels:
    """A part of it, perhaps mirrored, lighter or darker."""
    width, height = shown.size
    area = random.uniform(SMALLEST_CUT, 1) * width * height
    ratio = np.exp(random.uniform(np.log(NARROWEST), -np.log(NARROWEST)))
    across, down = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, top = random.uniform(0, width - across), random.uniform(0, height - down)
    mirrored = random.random() < 0.5
    contrast, brightness = random.uniform(1 - SHADING, 1 + SHADING, size=2)
    cut = preparation.cut(shown, (left, top, min(width, left + across), min(height, top + down)))
    shades = np.clip(((np.arange(256) - 128) * contrast + 128) * brightness, 0, 255).astype(np.uint8)
    pixels = shades[np.asarray(cut)]
    return pixels[:, ::-1] if mirrored else pixels
