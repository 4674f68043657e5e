"""Where image files lie: a folder, a .zip or a .tar(.gz), listed and read in one way and never unpacked to disk.

An archive is a stranger's. Its members are listed first and the archive is refused before any member is read if one
has ../ or an absolute path, is a link or a device, is encrypted, is an archive itself, occurs twice, or if more is
declared than the limit allows. Members are then read one at a time into memory, never more bytes than declared.
Hidden files and what macOS and Windows leave behind (`__MACOSX`, `.DS_Store`, `Thumbs.db`) are passed over.
"""

import gzip
import hashlib
import io
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distillery import store
from distillery.checks import InputError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar")
ACCEPTED = "a folder of class folders, or a .zip, .tar.gz, .tgz or .tar of one"
MAX_MEMBER = 1 << 28  # bytes of one encoded image
_MAX_HEADER = 1 << 24  # bytes tarfile may read at once while listing: names and attributes, never content
_NESTED = (*SUFFIXES, ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")


def shown(name) -> str:
    """A file name fit for one line of text: as it is where it is printable, else escaped."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def is_image(name: str) -> bool:
    """Whether a file name has one of the accepted image extensions."""
    return name.lower().endswith(EXTENSIONS)


def threads() -> int:
    """Threads for reading and decoding: the cores this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@dataclass
class Listing:
    """What an origin holds: bytes by file name and the folder names, '/' between the parts."""

    files: dict[str, int]
    folders: set[str]


def origin(path: str | Path, max_unpacked_gb: float = 64.0) -> "Folder | Zip | Tar":
    """The folder or archive at `path`. Raises InputError if it is neither."""
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(f"data_root: {path!r} is not a folder or archive; accepted: {ACCEPTED}")
    text = os.path.expanduser(path)
    if os.path.isdir(text):
        return Folder(Path(text))
    if os.path.isfile(text) and text.lower().endswith(SUFFIXES):
        return (Zip if text.lower().endswith(".zip") else Tar)(Path(text), int(max_unpacked_gb * 1e9))
    raise InputError(f"data_root: {str(path)!r} is not a folder or archive; accepted: {ACCEPTED}")


class Folder:
    """A folder on disk. A single top folder is entered; nothing below class folders inside a split is looked at."""

    def __init__(self, path: Path):
        self.path = self.root = path
        self.name = path.resolve().name
        self._listing: Listing | None = None

    def listing(self, choose: Callable[[set[str]], set[str]] = set) -> Listing:
        """List the files; `choose` picks, from the names of the top folders, those to enter."""
        if self._listing is None:
            try:
                self._listing = self._walk(choose)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise InputError(f"cannot list {shown(self.path)}: {reason}; accepted: a readable folder") from error
        return self._listing

    def _walk(self, choose) -> Listing:
        folders, files = _entries(self.root)
        for _ in range(3):
            if any(map(is_image, files)) or len(folders) != 1:
                break
            inner, inner_files = _entries(self.root / folders[0])
            if not inner or any(map(is_image, inner_files)):
                break
            self.root, folders, files = self.root / folders[0], inner, inner_files
        found = Listing({name: (self.root / name).stat().st_size for name in files}, set(folders))
        waiting = sorted(choose(set(folders)))
        while waiting:
            folder = waiting.pop()
            below, files = _entries(self.root / folder)
            for name in files:
                try:
                    found.files[f"{folder}/{name}"] = os.stat(self.root / folder / name).st_size
                except OSError:
                    found.files[f"{folder}/{name}"] = 0  # a broken link: named later among the unreadable files
            found.folders.update(f"{folder}/{name}" for name in below)
            if folder.count("/") < 2:
                waiting += [f"{folder}/{name}" for name in below]
        return found

    @property
    def nbytes(self) -> int:
        return sum(self.listing().files.values())

    def digest(self) -> str:
        """sha256 over the names of folders and files, and over size and content of images and label tables."""
        listing = self.listing()
        names = sorted(listing.files)
        sha = hashlib.sha256(ascii(sorted(listing.folders)).encode())
        with ThreadPoolExecutor(threads()) as pool:
            for lines in pool.map(self._contents, (names[i : i + 256] for i in range(0, len(names), 256))):
                sha.update(lines)
        return sha.hexdigest()

    def _contents(self, names: list[str]) -> bytes:
        """One line for each name: the name, and of images and label tables the size and sha256 of the content."""
        lines = []
        for name in names:
            line = ascii(name)
            if is_image(name) or name.endswith("annotations.txt"):
                try:
                    with open(f"{self.root}/{name}", "rb", buffering=0) as file:
                        content = hashlib.file_digest(file, "sha256").hexdigest()
                except OSError:
                    content = "unreadable"
                line += f" {self.listing().files[name]} {content}"
            lines.append(line)
        return "\n".join([*lines, ""]).encode()

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | Path]]:
        """(name, path) for each name: whoever decodes a file opens it."""
        for name in names:
            yield name, self.root / name


class Zip:
    """A .zip archive, read in memory."""

    def __init__(self, path: Path, limit: int, max_member: int = MAX_MEMBER):
        self.path = self.root = path
        self.limit, self.max_member = limit, max_member
        self.name = _stem(path)
        self._listing: Listing | None = None
        self._stored: dict[str, zipfile.ZipInfo] = {}

    @property
    def nbytes(self) -> int:
        return self.path.stat().st_size

    def digest(self) -> str:
        """sha256 of the archive file."""
        return _digest(self.path)

    def listing(self, choose=set) -> Listing:
        """List the members, refusing an unsafe archive; `choose` has no use here."""
        if self._listing is None:
            found = _Members(self.path, self.limit, self.max_member)
            with _whole(self.path), zipfile.ZipFile(self.path) as archive:
                for info in archive.infolist():
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                        found.refuse(info.filename, "is a link or a device")
                    if info.flag_bits & 1:
                        found.refuse(info.filename, "is encrypted")
                    name = found.add(info.filename.replace("\\", "/"), info.file_size, info.is_dir())
                    if name:
                        self._stored[name] = info
            self._listing = found.listing
        return self._listing

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(name, content) for each name."""
        self.listing()
        with _whole(self.path), zipfile.ZipFile(self.path) as archive:
            for name in names:
                info = self._stored[name]
                with archive.open(info) as file:
                    # Asking for one byte more than declared makes zipfile check the CRC; without a size it would
                    # inflate the whole stream at once, however long it really is.
                    content = file.read(info.file_size + 1)
                if len(content) != info.file_size:
                    raise zipfile.BadZipFile(f"{name!r} holds other than the declared {info.file_size} bytes")
                yield name, content


class Tar:
    """A .tar, .tar.gz or .tgz archive, read in memory from front to end."""

    def __init__(self, path: Path, limit: int, max_member: int = MAX_MEMBER):
        self.path = self.root = path
        self.limit, self.max_member = limit, max_member
        self.name = _stem(path)
        self._listing: Listing | None = None
        self._where: dict[str, int] = {}

    @property
    def nbytes(self) -> int:
        return self.path.stat().st_size

    def digest(self) -> str:
        """sha256 of the archive file."""
        return _digest(self.path)

    def _stream(self):
        with open(self.path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return gzip.open(self.path) if packed else open(self.path, "rb")

    def listing(self, choose=set) -> Listing:
        """List the members, refusing an unsafe archive; `choose` has no use here."""
        if self._listing is None:
            found = _Members(self.path, self.limit, self.max_member)
            with _whole(self.path), self._stream() as stream:
                headers = _Headers(stream, 2 * self.limit + _MAX_HEADER)
                with tarfile.open(fileobj=headers, mode="r:") as archive:
                    while (member := archive.next()) is not None:
                        archive.members.clear()  # it would keep every header it has seen
                        if not (member.isreg() or member.isdir()) or member.issparse():
                            found.refuse(member.name, "is a link, a device or a sparse file")
                        name = found.add(member.name, member.size, member.isdir())
                        if name:
                            self._where[name] = member.offset_data
                if headers.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut or broken header for the end
                    raise tarfile.ReadError("no end of archive")
            self._listing = found.listing
        return self._listing

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(name, content) for each name, in the order of the archive."""
        sizes = self.listing().files
        with _whole(self.path), self._stream() as stream:
            for name in sorted(names, key=self._where.__getitem__):
                stream.seek(self._where[name])
                content = stream.read(sizes[name])
                if len(content) != sizes[name]:
                    raise tarfile.ReadError(f"{name!r} is cut short")
                yield name, content


class _Headers:
    """A stream that gives tarfile its headers and skips contents: no long reads, nothing beyond the limit."""

    def __init__(self, stream, limit: int):
        self.stream, self.limit, self.tell = stream, limit, stream.tell
        self.last = b""

    def read(self, n: int = -1) -> bytes:
        if not 0 <= n <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {n} bytes")
        self.last = self.stream.read(n)
        return self.last

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if position > self.limit:
            raise tarfile.ReadError(f"content up to byte {position}")
        return self.stream.seek(position, whence)


class _Members:
    """The members of an archive as they are listed, each checked."""

    def __init__(self, path: Path, limit: int, max_member: int):
        self.label, self.limit, self.max_member = shown(path), limit, max_member
        self.listing = Listing({}, set())
        self.total = 0

    def refuse(self, name: str, why: str):
        raise InputError(f"{self.label}: member {name!r} {why}; accepted: an archive of plain files with relative paths")

    def add(self, name: str, size: int, is_folder: bool) -> str:
        """Check one member; its clean name if it is a file to be read, else ''."""
        if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
            self.refuse(name, "has an absolute path")
        if ".." in re.split(r"[/\\]", name):
            self.refuse(name, "leads out of the archive with '..'")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        self.total += size
        if self.total > self.limit:
            raise InputError(
                f"{self.label} declares more than {self.limit / 1e9:g} GB of content, at member {name!r}; "
                f"accepted: up to max_unpacked_gb={self.limit / 1e9:g}"
            )
        if not parts or any(_junk(part) for part in parts):
            return ""
        name = "/".join(parts)
        if is_folder:
            self.listing.folders.add(name)
            return ""
        if name.lower().endswith(_NESTED):
            self.refuse(name, "is an archive itself")
        if size > self.max_member:
            self.refuse(name, f"declares {size} bytes, above the {self.max_member} of one file,")
        if name in self.listing.files:
            self.refuse(name, "occurs twice")
        self.listing.files[name] = size
        self.listing.folders.update("/".join(parts[:i]) for i in range(1, len(parts)))
        return name


@contextmanager
def _whole(path: Path):
    """Damage in an archive, in whichever of many ways its reader puts it, becomes one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile, tarfile, gzip and zlib raise a dozen kinds on broken input
        reason = shown((str(error).splitlines() or [type(error).__name__])[0])
        raise InputError(
            f"{shown(path)} is damaged or incomplete ({reason}); accepted: a whole archive, "
            "so fetch it again if its download was interrupted"
        ) from error


def _digest(path: Path) -> str:
    try:
        return store.file_digest(path)
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {error.strerror}; accepted: {ACCEPTED}") from error


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """(folders, files) directly inside a folder, sorted; links are followed."""
    found: dict[bool, list[str]] = {True: [], False: []}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _junk(entry.name):
                found[entry.is_dir()].append(entry.name)
    return sorted(found[True]), sorted(found[False])


def _junk(part: str) -> bool:
    return part.startswith(".") or part in _JUNK


def _stem(path: Path) -> str:
    return re.sub(r"(?i)(\.tar\.gz|\.tgz|\.tar|\.zip)$", "", path.name)
