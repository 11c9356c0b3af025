"""A ZIP of images: which of them are any, what each shows, and the ZIP of those that can be learned from."""

import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import msgspec

from libs.events import Column
from services.datasets.confined.frames import Described, Order, Prepared, Progress, Refusal, Say
from services.datasets.confined.package import IMAGES, TABLES, Damaged, Entry, Package, TooLarge, unpacked

from .picture import MOST_BYTES, Unusable, normalised

CLASSES = 1_000
LONGEST_LABEL = 200
FILES = ("file", "filename", "file_name", "image", "path", "image_path", "filepath", "name", "id")
LABELS = ("label", "class", "target", "category", "y")
SPLITS = ("train", "training", "val", "valid", "validation", "test", "eval")
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file, so that the same images give the same bytes."""

_encode = msgspec.json.Encoder().encode


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the snapshot's manifest. Who trains reads these names."""

    file: str
    label: str
    width: int
    height: int
    source: str
    """Its name where it came from."""


class Labels(NamedTuple):
    of: Callable[[Entry], str]
    """Empty: there is none."""
    unlabelled: str
    """The reason then."""
    besides: dict[str, int]
    """Lines of the manifest that no image belongs to, by reason."""
    notes: list[str]


def read(package: Package, order: Order, say: Say) -> Prepared:
    if order.dataset_type.strip().casefold() == "regression":
        raise Refusal("images_need_classes", "Images are told apart by classes; a regression on images is not to be had. Upload them as a classification.")
    tables = [entry for entry in package.entries if entry.extension in TABLES]
    files = [entry for entry in package.entries if entry.extension not in TABLES]
    labels = _manifest(package, tables, files, order, say) or _folders(files, tables)
    refused = Counter[str](package.skipped)
    refused.update(labels.besides)
    classes = Counter[str]()
    animated = done = 0
    lines: list[bytes] = []
    with open(order.snapshot, "wb", closefd=False) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as snapshot:
        for entry in files:
            done += entry.info.compress_size
            say(Progress(done=done))
            if not (label := labels.of(entry)):
                refused[labels.unlabelled] += 1
                continue
            try:
                picture = normalised(package.content(entry, most=MOST_BYTES))
            except Unusable as why:
                refused[str(why)] += 1
                continue
            except (TooLarge, Damaged) as why:
                refused["too_large" if isinstance(why, TooLarge) else "damaged"] += 1
                continue
            name = f"images/{len(lines):06d}.{picture.extension}"
            snapshot.writestr(zipfile.ZipInfo(name, EPOCH), picture.data)
            lines.append(_encode(Line(file=name, label=label, width=picture.width, height=picture.height, source=entry.name)) + b"\n")
            classes[label] += 1
            animated += picture.animated
        snapshot.writestr(zipfile.ZipInfo("manifest.jsonl", EPOCH), b"".join(lines))
    _check(classes, refused, labels.notes)
    rows = len(lines) + refused.total()
    counts = sorted(classes.items(), key=lambda item: (-item[1], item[0]))
    say(Described(column=Column(index=0, name="image", type="image", role="feature", distinct=len(lines))))
    say(Described(column=Column(index=1, name="label", type="category", role="target", distinct=len(classes), categories=counts[:50])))
    notes = [*labels.notes]
    if animated:
        notes.append(f"{animated:,} images move; the first picture of each is taken.")
    if once := [label for label, times in counts if times == 1]:
        notes.append(f"{len(once)} classes have a single image, {once[0][:50]!r} for one: too few to learn from and to check.")
    return Prepared(
        contents="image", task="classification", target="label", rows=rows, valid=len(lines), classes=len(classes), refused=dict(refused), notes=notes
    )


def _folders(files: list[Entry], tables: list[Entry]) -> Labels:
    """The folder that an image lies in, below what is around them all, names its class."""
    notes = [f"{entry.name[:100]!r} is not a manifest, which has a column 'file' and a column 'label'; it was left out." for entry in _meant(tables)[:3]]
    parts = {entry.name: list(entry.path.parts) for entry in files}
    while _wrapped(list(parts.values())):
        parts = {name: rest[1:] for name, rest in parts.items()}
    tops = {rest[0].casefold() for rest in parts.values() if len(rest) > 1}
    if tops and tops <= set(SPLITS):
        notes.append(f"The folders {', '.join(sorted(tops))} were put together; what is held out is chosen anew for each run.")
        parts = {name: rest[1:] if len(rest) > 1 else rest for name, rest in parts.items()}
    return Labels(lambda entry: rest[0][:LONGEST_LABEL] if len(rest := parts[entry.name]) > 1 else "", "no_label", {}, notes)


def _meant(tables: list[Entry]) -> list[Entry]:
    """Other texts may be about the images."""
    return [entry for entry in tables if entry.extension != ".txt"]


def _wrapped(paths: list[list[str]]) -> bool:
    return len({path[0] for path in paths}) == 1 and all(len(path) > 1 for path in paths) and any(len(path) > 2 for path in paths)


def _manifest(package: Package, tables: list[Entry], files: list[Entry], order: Order, say: Say) -> Labels | None:
    for entry in tables:
        with TemporaryFile() as file:
            unpacked(package, entry, file, order.limits)
            found = _read_manifest(file, order, say)
        if found is not None:
            return _matched(entry, found, files)
    return None


def _read_manifest(file: IO[bytes], order: Order, say: Say) -> list[tuple[str, str]] | None:
    """(file, label) of each line; None: it is about something else."""
    from services.datasets.tables.source import place
    from services.datasets.tables.table import opened

    try:
        source = opened(file, order, say)
    except Refusal:
        return None
    folded = [name.strip().casefold() for name in source.names]
    which = next((folded.index(name) for name in FILES if name in folded), None)
    wanted = order.target.strip().casefold()
    what = folded.index(wanted) if wanted in folded else next((folded.index(name) for name in LABELS if name in folded), None)
    if which is None or what is None:
        return None
    found: list[tuple[str, str]] = []
    for frame, _ in source.batches():
        found += [(str(file or "").strip(), str("" if label is None else label).strip()) for file, label in frame.select(place(which), place(what)).iter_rows()]
        if len(found) > order.limits.images:
            raise Refusal("too_many_entries", f"The manifest has more than {order.limits.images:,} lines, which are the most.")
    return found


def _matched(manifest: Entry, lines: list[tuple[str, str]], files: list[Entry]) -> Labels:
    """By the path from the manifest's folder or from the top, else by a name that only one file has, or only one image before its extension."""
    folder = manifest.path.parent
    by_path = {str(entry.path): entry.name for entry in files}
    by_name = _only((entry.path.name, entry.name) for entry in files)
    by_stem = _only((entry.path.stem, entry.name) for entry in files if entry.extension in IMAGES)
    labels: dict[str, str] = {}
    besides = Counter[str]()
    lost = ""
    for told, label in lines:
        path = PurePosixPath(told.replace("\\", "/"))
        name = by_path.get(str(folder / path)) or by_path.get(str(path)) or by_name.get(path.name) or by_stem.get(path.name)
        if name is None:
            besides["file_missing"] += 1
            lost = lost or told
        elif name in labels:
            besides["named_twice"] += 1
        else:
            labels[name] = label[:LONGEST_LABEL]
    notes = [f"The labels are those of {manifest.name!r}."]
    unlabelled = sum(not label for label in labels.values())
    if unlabelled:
        notes.append(f"{unlabelled:,} of its lines have no label.")
    if besides["file_missing"]:
        notes.append(f"{besides['file_missing']:,} of its lines name a file that is not in the ZIP, {lost[:100]!r} for one.")
    return Labels(lambda entry: labels.get(entry.name, ""), "no_label", dict(besides), notes)


def _only(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What one alone is called."""
    found: dict[str, str] = {}
    times = Counter[str]()
    for name, file in named:
        found[name] = file
        times[name] += 1
    return {name: file for name, file in found.items() if times[name] == 1}


def _check(classes: Counter[str], refused: Counter[str], notes: list[str]) -> None:
    why = ", ".join(f"{reason} ({times:,})" for reason, times in refused.most_common())
    told = "".join(f" {note}" for note in notes)
    if not classes:
        raise Refusal(
            "no_usable_images",
            f"None of the files in the ZIP is an image with a label: {why or 'it holds none'}.{told} Put each image into a folder that is called like its class.",
        )
    if len(classes) == 1:
        left = f" Files left out: {why}.{told}" if why else told
        raise Refusal("one_class", f"All images are {next(iter(classes))[:50]!r}. There must be two classes to tell them apart.{left}")
    if len(classes) > CLASSES:
        raise Refusal("too_many_classes", f"The images have {len(classes):,} labels; {CLASSES:,} are the most.")
