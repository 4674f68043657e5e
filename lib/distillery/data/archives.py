"""Where image files lie: a folder, a .zip or a .tar(.gz), listed and read in one way and never unpacked to disk.

An archive is refused before any member is read if one has ../ or an absolute path, is a link or a device, is encrypted, is an archive
itself, occurs twice, or if more is declared than the limit allows. Members are then read one at a time, never more bytes than declared.
Hidden files and what macOS, Windows and Synology leave behind are passed over.
"""

import gzip
import hashlib
import io
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from distillery import store
from distillery.checks import InputError, first_line, local_path

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar")
ACCEPTED = "a folder of class folders, or a .zip, .tar.gz, .tgz or .tar of one"
TEST_FOLDERS = ("test", "val", "valid", "validation")
LABEL_TABLES = ("val/val_annotations.txt", "LOC_val_solution.csv")  # of Tiny-ImageNet and of ImageNet-1K: classes of validation images
_IMAGENET = ("ILSVRC", "Data", "CLS-LOC")  # folders in folders of ImageNet-1K as it is distributed, with train/ and val/ in the last
MAX_UNPACKED, MAX_MEMBER = 64 * 10**9, 1 << 28  # bytes of an archive's content, of one encoded image
_MAX_HEADER = 1 << 24  # bytes tarfile may read at once while listing: names and attributes, never content
_NESTED = (*SUFFIXES, ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_TABLES = (".npz", ".csv", ".tsv", ".jsonl")  # forms that `data convert` reads by the file, and others by their folder too
_OTHER_FORMS = (*_TABLES, ".parquet", ".tar", ".cls", "idx3-ubyte", "idx3-ubyte.gz", "batches.meta", "cifar-100-python/meta")
_JUNK = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")  # of macOS, Windows and Synology


def shown(name) -> str:
    """A file name fit for one line of text: as it is where it is printable, else escaped."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def first_names(names: list[str]) -> str:
    """Names in one line: the first five, and how many more there are."""
    return ", ".join(map(shown, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def is_image(name: str) -> bool:
    """Whether a file name has one of the accepted image extensions."""
    return name.lower().endswith(EXTENSIONS)


def threads() -> int:
    """Threads for reading and decoding: the cores this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@dataclass
class Listing:
    """What an origin holds: bytes by file name and the folder names, '/' between the parts."""

    files: dict[str, int] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)


def origin(path: str | Path) -> "Folder | Zip | Tar":
    """The folder or archive at `path`. Raises InputError if it is neither."""
    found = local_path("data_root", path)
    if os.path.isdir(found):
        return Folder(found)
    if os.path.isfile(found) and found.name.lower().endswith(SUFFIXES):
        return (Zip if found.suffix.lower() == ".zip" else Tar)(found)
    broken = os.path.islink(found) and not os.path.exists(found)
    what = f"a link to {os.readlink(found)!r}, which is not there" if broken else "not a folder or archive"
    raise InputError(f"data_root: {str(path)!r} is {what}; accepted: {ACCEPTED}{converted([found.name] if os.path.isfile(found) else [])}")


def converted(names: Iterable[str]) -> str:
    """What to say where class folders are looked for and files of another form are found: '' without such files."""
    other = next((name for name in names if name.lower().endswith(_OTHER_FORMS)), "")
    return f", such as `distillery data convert` makes of {shown(other) if other.lower().endswith(_TABLES) else 'it'}" if other else ""


class Folder:
    """A folder on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.resolve().name

    @cached_property
    def listing(self) -> Listing:
        """The files. Where train/ and a test folder are beside each other, nothing else there is entered, nor what lies beside ImageNet's images.

        Raises InputError on a circle of links.
        """
        found, waiting = Listing(), [""]
        with readable(self.path):
            while waiting:
                folder = waiting.pop()
                with os.scandir(self.path / folder) as entries:
                    kept = sorted((entry for entry in entries if not is_junk(entry.name)), key=lambda entry: entry.name)
                below = [entry for entry in kept if entry.is_dir()]  # links are followed, a broken one is a file without bytes
                files = (entry for entry in kept if not entry.is_dir())
                found.files |= {folder + entry.name: entry.stat().st_size if entry.is_file() else 0 for entry in files}
                found.folders.update(folder + entry.name for entry in below)
                for entry in filter(os.DirEntry.is_symlink, below):
                    if any(os.path.samefile(entry, above) for above in (self.path.resolve() / folder / "x").parents):
                        raise InputError(f"{shown(self.path / folder)}: {entry.name!r} is a link to a folder above; accepted: no circles")
                parts = [entry for entry in below if entry.name.casefold() in ("train", *TEST_FOLDERS)]
                images = [entry for entry in below if entry.name == "Data" and os.path.isdir(f"{entry.path}/CLS-LOC")]
                entered = images or (parts if {entry.name.casefold() for entry in parts} > {"train"} else below)
                waiting += [f"{folder}{entry.name}/" for entry in entered]
        found.files |= {name: (self.path / name).stat().st_size for name in self.above}
        return found

    @cached_property
    def above(self) -> list[str]:
        """The label table of ImageNet-1K, as ../, where it lies at the top of the tree and only a lower part of that is given."""
        parts, names = self.path.resolve().parts, []
        for depth in (1, 2, 3):
            if parts[-depth:] == _IMAGENET[:depth] and self.path.joinpath(*_IMAGENET[depth:], "train").is_dir():
                names.append("../" * depth + LABEL_TABLES[1])
        return [name for name in names if (self.path / name).is_file()]

    def digest(self) -> str:
        """sha256 over the names of folders and files, and over size and content of images and label tables."""
        sha, names = hashlib.sha256(ascii(sorted(self.listing.folders)).encode()), sorted(self.listing.files)
        with ThreadPoolExecutor(threads()) as pool:
            for start in range(0, len(names), 4096):
                sha.update("".join(pool.map(self._line, names[start : start + 4096])).encode())
        return sha.hexdigest()

    def _line(self, name: str) -> str:
        if not is_image(name) and not name.endswith(("annotations.txt", LABEL_TABLES[1])):
            return f"{name!a}\n"
        try:
            content = store.file_digest(f"{self.path}/{name}")
        except OSError:
            content = "unreadable"
        return f"{name!a} {self.listing.files[name]} {content}\n"

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Path]]:
        """(name, path) for each name: whoever decodes a file opens it."""
        return ((name, self.path / name) for name in names)


class _Archive:
    """An archive, listed and read in memory."""

    def __init__(self, path: Path):
        self.path = path
        self.name = re.sub(r"(?i)(\.tar\.gz|\.tgz|\.tar|\.zip)$", "", path.name)

    @cached_property
    def listing(self) -> Listing:
        """The members. Raises InputError if the archive is damaged or one of them is unsafe."""
        self._found, self._where, self._declared = Listing(), {}, 0
        with _whole(self.path):
            self._list()
        return self._found

    def digest(self) -> str:
        """sha256 of the archive file."""
        with readable(self.path):
            return store.file_digest(self.path)

    def _refuse(self, name: str, why: str):
        raise InputError(f"{shown(self.path)}: member {name!r} {why}; accepted: an archive of plain files with relative paths")

    def _add(self, name: str, size: int, is_folder: bool, where) -> None:
        """Check one member, and list it if it is a folder or a file to be read."""
        if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
            self._refuse(name, "has an absolute path")
        if ".." in re.split(r"[/\\]", name):
            self._refuse(name, "leads out of the archive with '..'")
        self._declared += size
        if self._declared > MAX_UNPACKED:
            allowed = f"{MAX_UNPACKED / 1e9:g} GB"
            raise InputError(f"{shown(self.path)} declares more than {allowed}, at member {name!r}; accepted: {allowed}, or a folder")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not parts or any(map(is_junk, parts)):
            return
        self._found.folders.update("/".join(parts[:i]) for i in range(1, len(parts) + is_folder))
        if is_folder:
            return
        name = "/".join(parts)
        if name.lower().endswith(_NESTED):
            self._refuse(name, "is an archive itself")
        if size > MAX_MEMBER:
            self._refuse(name, f"declares {size} bytes, above the {MAX_MEMBER} of one file,")
        if name in self._found.files:
            self._refuse(name, "occurs twice")
        self._found.files[name], self._where[name] = size, where


class Zip(_Archive):
    """A .zip archive."""

    def _list(self) -> None:
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    self._refuse(info.filename, "is a link or a device")
                if info.flag_bits & 1:
                    self._refuse(info.filename, "is encrypted")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
                    how = f"{info.compress_type} ({zipfile.compressor_names.get(info.compress_type, 'unknown')})"
                    self._refuse(info.filename, f"is packed by method {how}, so pack it again by Deflate")
                self._add(info.filename.replace("\\", "/"), info.file_size, info.is_dir(), info)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(name, content) for each name."""
        _ = self.listing  # refuses what is unsafe
        with _whole(self.path), zipfile.ZipFile(self.path) as archive:
            for name in names:
                size = self._where[name].file_size
                with archive.open(self._where[name]) as file:
                    # one byte more than declared: zipfile then checks the CRC; with no size it inflates the stream however long it is
                    content = file.read(size + 1)
                if len(content) != size:
                    raise zipfile.BadZipFile(f"{name!r} holds other than the declared {size} bytes")
                yield name, content


class Tar(_Archive):
    """A .tar, .tar.gz or .tgz archive, read from front to end."""

    def _stream(self):
        with open(self.path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return gzip.open(self.path) if packed else open(self.path, "rb")

    def _list(self) -> None:
        with self._stream() as stream:
            headers = _Headers(stream)
            with tarfile.open(fileobj=headers, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # it would keep every header it has seen
                    if not (member.isreg() or member.isdir()) or member.issparse():
                        self._refuse(member.name, "is a link, a device or a sparse file")
                    self._add(member.name, member.size, member.isdir(), member.offset_data)
            if headers.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut or broken header for the end
                raise tarfile.ReadError("no end of archive")

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(name, content) for each name, in the order of the archive."""
        sizes, starts = self.listing.files, self._where
        with _whole(self.path), self._stream() as stream:
            for name in sorted(names, key=starts.__getitem__):
                stream.seek(starts[name])
                content = stream.read(sizes[name])
                if len(content) != sizes[name]:
                    raise tarfile.ReadError(f"{name!r} is cut short")
                yield name, content


class _Headers:
    """A stream that gives tarfile its headers and skips contents: no long reads, nothing beyond the limit."""

    def __init__(self, stream):
        self.stream, self.tell, self.last = stream, stream.tell, b""

    def read(self, n: int = -1) -> bytes:
        if not 0 <= n <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {n} bytes")
        self.last = self.stream.read(n)
        return self.last

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if position > 2 * MAX_UNPACKED + _MAX_HEADER:
            raise tarfile.ReadError(f"content up to byte {position}")
        return self.stream.seek(position, whence)


@contextmanager
def _whole(path: Path):
    """Damage in an archive, in whichever of many ways its reader puts it, becomes one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile, tarfile, gzip and zlib raise a dozen kinds on broken input
        why = f"{shown(path)} is damaged or incomplete ({shown(first_line(error))})"
        raise InputError(f"{why}; accepted: a whole archive, so fetch it again if its download was interrupted") from error


@contextmanager
def readable(path: Path):
    """A file or folder that cannot be read becomes one line."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {shown(path)}: {reason}; accepted: a readable file or folder") from error


def is_junk(part: str) -> bool:
    """Whether a part of a path is hidden, or left behind by a system."""
    return part.startswith(".") or part.casefold() in _JUNK
