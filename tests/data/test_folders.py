"""Folders, archives and published sets: what is read, what is handled and said, what is refused."""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import random
import re
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin
from torchvision import datasets, transforms

from distillery import data, store
from distillery.checks import InputError
from distillery.data import archives, decoding, folders, named
from distillery.data import cache as cache_module
from distillery.data.cache import Building, Shards, cache_folder, cached
from distillery.data.check import check
from distillery.seeds import generator
from made_up import WRITERS, encoded, files, picture, refusal, to_folder, to_tar, to_zip


def load(path, **options):
    return data.load("folder", path, **options)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "default cache"))


# ---------------------------------------------------------------- folders and archives


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_place_gives_the_same_set(tmp_path, kind):
    content = files()
    plain = load(to_folder(tmp_path / "plain", content))
    splits = load(WRITERS[kind](tmp_path / f"some set.{kind}", content))
    assert splits.digest == plain.digest
    assert len(splits.train) + len(splits.validation) == 8 and len(splits.test) == 8
    assert splits.train.classes == ("cat", "dog")
    shuffled = list(content.items())
    random.Random(1).shuffle(shuffled)
    assert load(WRITERS[kind](tmp_path / f"other order.{kind}", dict(shuffled))).digest == plain.digest


def test_pixels_are_those_of_the_files(tmp_path):
    content = files(n=3)
    found = folders.load_files(to_tar(tmp_path / "a.tar.gz", content))
    for name, pixels in zip(sorted(n for n in content if n.startswith("train")), found.pixels):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content[name]))), pixels.permute(1, 2, 0))
    assert found.targets.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3 and found.n_train == 6


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_top_folder_is_entered_and_junk_passed_over(tmp_path, kind):
    content = files()
    junk = {
        "__MACOSX/set/train/cat/._0.png": b"x",
        "set/.DS_Store": b"x",
        "set/train/.DS_Store": b"x",
        "set/train/cat/._0.png": b"x",
        "set/train/cat/Thumbs.db": b"x",
        "set/train/cat/thumbs.DB": b"x",
        "set/train/cat/Desktop.ini": b"x",
        "set/train/@eaDir/0.png@SynoResource": b"x",
        "set/train/cat/@eaDir/0.png": b"x",
        "set/README.txt": b"hello",
    }
    path = WRITERS[kind](tmp_path / f"a.{kind}", {f"set/{n}": v for n, v in content.items()} | junk)
    assert load(path).digest == load(to_folder(tmp_path / "plain", content)).digest


def test_only_train_is_split(tmp_path):
    splits = load(to_zip(tmp_path / "a.zip", files(parts=("train",), n=10)))
    assert len(splits.test) == 4 and "20% of each class drawn as test images" in splits.notes


def test_images_held_out_are_the_share_that_is_asked_for():
    kept, all_ = data.load("digits"), data.load("digits", held_out=0)
    assert len(all_.validation) == 0 and len(all_.train) == len(kept.train) + len(kept.validation)
    assert torch.equal(all_.test.pixels, kept.test.pixels) and all_.digest != kept.digest
    assert len(data.load("digits", held_out=0.5).validation) == pytest.approx(len(all_.train) / 2, abs=10)
    with pytest.raises(InputError, match="held_out: 2"):
        data.load("digits", held_out=2)


@pytest.mark.parametrize("part", ["val", "valid", "Validation"])
def test_val_serves_as_test(tmp_path, part):
    splits = load(to_folder(tmp_path / "a", files(parts=("train", part))))
    assert len(splits.test) == 8 and any(part in note for note in splits.notes)


def test_unlabelled_test_gives_way_to_val_and_otherwise_val_is_passed_over(tmp_path):
    content = files(parts=("train", "val"))
    unlabelled = {f"test/images/{i}.png": encoded(picture(90 + i)) for i in range(3)}
    splits = load(to_folder(tmp_path / "a", content | unlabelled))
    assert len(splits.test) == 8 and "val/" in splits.notes[0]
    splits = load(to_folder(tmp_path / "b", files(parts=("train", "val", "test"))))
    assert len(splits.test) == 8 and "val/ passed over" in splits.notes[0]


def test_names_with_spaces_and_other_letters(tmp_path):
    classes = ("größe 1", "猫 cat", "été")
    for kind in WRITERS:
        splits = load(WRITERS[kind](tmp_path / f"ein Satz ü.{kind}", files(classes)))
        assert splits.train.classes == tuple(sorted(classes))


def test_formats_and_modes_mixed(tmp_path):
    gray, color = picture(1, "L"), picture(2)
    content = {
        "cat/a.png": encoded(gray),
        "cat/b.JPG": encoded(color, "JPEG"),
        "cat/c.bmp": encoded(color, "BMP"),
        "dog/a.webp": encoded(color, "WEBP", lossless=True),
        "dog/b.jpeg": encoded(gray, "JPEG"),
        "dog/c.png": encoded(color.quantize(16)),
        "dog/d.png": encoded(gray.convert("1")),
    }
    found = folders.load_files(to_folder(tmp_path / "a", content))
    assert found.pixels.shape == (7, 3, 8, 8)
    assert np.array_equal(found.pixels[0], np.broadcast_to(np.asarray(gray), (3, 8, 8)))
    assert np.array_equal(found.pixels[3].permute(1, 2, 0), np.asarray(color))
    assert found.notes == ["3 gray image(s) of 7 made RGB"]


def test_gray_where_all_are_gray_even_if_color_comes_late(tmp_path):
    content = files(parts=("",), n=100, mode="L")
    assert folders.load_files(to_zip(tmp_path / "a.zip", content)).pixels.shape[1] == 1
    content["dog/99.png"] = encoded(picture(7))
    found = folders.load_files(to_zip(tmp_path / "b.zip", content))
    assert found.pixels.shape[1] == 3 and found.notes == ["199 gray image(s) of 200 made RGB"]
    lazy = folders.load_files(tmp_path / "b.zip", cache_dir=tmp_path / "cache", mapped=True)
    assert torch.equal(lazy.pixels[:], found.pixels)


def test_alpha_is_laid_on_white(tmp_path):
    content = files(parts=("",))
    clear = picture(5, "RGBA")
    clear.putalpha(0)
    content["cat/0.png"] = encoded(clear)
    content["cat/1.png"] = encoded(picture(6).convert("P"), transparency=0)
    found = folders.load_files(to_folder(tmp_path / "a", content))
    assert (found.pixels[0] == 255).all() and "2 image(s) with an alpha channel laid on white" in found.notes
    gray = {name: encoded(picture(i, "LA")) for i, name in enumerate(content)}
    found = folders.load_files(to_folder(tmp_path / "b", gray))
    assert found.pixels.shape[1] == 1
    value, alpha = (np.asarray(picture(0, "LA"))[..., 0].astype(float), np.asarray(picture(0, "LA"))[..., 1] / 255)
    assert np.abs(found.pixels[0, 0].numpy() - (value * alpha + 255 * (1 - alpha))).max() <= 1


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit RGB file, which Pillow reads and cannot write."""
    import zlib

    height, width, _ = pixels.shape
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    body = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_16_bits_are_scaled_to_8_and_said(tmp_path):
    deep = np.random.default_rng(3).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    content = files(parts=("",), mode="L")
    content["cat/0.png"] = encoded(Image.fromarray(deep[..., 0]))
    found = folders.load_files(to_folder(tmp_path / "a", content))
    assert np.array_equal(found.pixels[0, 0], deep[..., 0] >> 8)
    assert found.notes == ["1 image(s) of 16 bits scaled to 8"]
    content["cat/0.png"] = png16(deep)
    found = folders.load_files(to_folder(tmp_path / "b", content))
    assert np.array_equal(found.pixels[0].permute(1, 2, 0), deep >> 8)
    assert "1 image(s) of 16 bits scaled to 8" in found.notes


def test_resize_and_max_side(tmp_path):
    content = files(parts=("",), size=(12, 8))
    path = to_zip(tmp_path / "a.zip", content)
    assert load(path, resize=5).train.shape == (3, 5, 5)
    splits = load(path, max_side=6)
    assert splits.train.shape == (3, 4, 6) and "shrunk from 12x8 to 6x4 (max_side 6)" in splits.notes
    content["cat/0.png"] = encoded(picture(0, size=(9, 9)))
    uneven = to_zip(tmp_path / "b.zip", content)
    with refusal("2 sizes", "0.png is 9x9", "12x8", "resize="):
        load(uneven)
    assert load(uneven, resize=5).train.shape == (3, 5, 5)
    thin = to_folder(tmp_path / "thin", files(parts=("",), size=(300, 5)))
    with refusal("max_side", "300x5 16x1", "resize"):
        load(thin, max_side=16)
    assert (
        load(thin, resize=4).train.shape == (3, 4, 4)
        and check(thin)[0][-1] == "usable with resize=SIDE or max_side 0: long and thin images"
    )
    for value in (-1, 2.5, True, "8"):
        with refusal("resize", repr(value)):
            load(path, resize=value)
        with refusal("max_side", repr(value)):
            data.load("digits", max_side=value)


def circle(size, center, radius):
    image = Image.new("L", size)
    box = (center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius)
    ImageDraw.Draw(image).ellipse(box, fill=255)
    return image


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (120, 120)])
def test_resize_keeps_a_circle_round(tmp_path, size):
    drawn = circle(size, (size[0] / 2, size[1] / 2), 40)
    content = files(parts=("",), mode="L", size=size) | {"cat/0.png": encoded(drawn)}
    found = folders.load_files(to_folder(tmp_path / "a", content), resize=50)
    small = found.pixels[0, 0] > 127  # (50, 50)
    tall, wide = (int(small.any(axis).sum()) for axis in (1, 0))
    assert abs(tall - wide) <= 1 and abs(wide - 80 * 50 / min(size)) <= 2
    square = size[0] == size[1]
    assert any(note.startswith("8 image(s) that are not square") for note in found.notes) != square
    if square:  # the same bits as ever
        assert np.array_equal(found.pixels[0, 0], drawn.resize((50, 50), Image.Resampling.BILINEAR))
    public = transforms.Compose([transforms.Resize(50), transforms.CenterCrop(50)])(drawn)  # as MTT's code has it
    assert np.abs(found.pixels[0, 0].numpy().astype(float) - np.asarray(public)).mean() < 1
    pixels = np.asarray(drawn)[None, None].repeat(2, 0)
    again, notes = decoding.fit(pixels, 50, 0)  # images decoded before
    assert np.array_equal(again[0], found.pixels[0]) and len(notes) == (1 if square else 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photographs_are_turned_upright(tmp_path, kind):
    content, upright = files(parts=("",), size=(12, 12)), {}
    for orientation in range(10):  # 0 and 9 mean nothing
        exif = Image.Exif()
        exif[0x0112] = orientation
        name = f"cat/{orientation}.{kind.lower()}"
        content[name] = encoded(circle((12, 12), (3, 5), 2), kind, exif=exif)
        upright[name] = ImageOps.exif_transpose(Image.open(io.BytesIO(content[name])))
    content["dog/odd.jpg"] = encoded(picture(size=(12, 12)), "JPEG", exif=b"Exif\0\0no EXIF")
    path = to_folder(tmp_path / "a", content)
    found = folders.load_files(path)
    for name, pixels in zip(folders.plan_of(archives.origin(path)).files, found.pixels):
        if name in upright:
            assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(upright[name].convert("RGB"))), name
    note = "7 image(s) turned upright, as their EXIF orientation says"
    assert note in found.notes and f"note: {note}" in check(path)[0]


def test_named_sets_are_resized_too():
    splits = data.load("digits", max_side=4)
    assert splits.train.shape == (1, 4, 4) and "shrunk from 8x8 to 4x4 (max_side 4)" in splits.notes
    assert data.load("digits", max_side=16).digest == data.load("digits").digest


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/tmp/evil.png", "C:\\evil.png", "..\\evil.png"])
@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
def test_members_that_leave_the_archive(tmp_path, kind, name):
    path = WRITERS[kind](tmp_path / f"a.{kind}", files() | {name: b"x"})
    with refusal("a." + kind, "evil.png"):
        load(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing was written anywhere


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind):
    link = tarfile.TarInfo("train/cat/link.png")
    link.type, link.linkname = kind, "/etc/passwd"
    with refusal("link.png", "is a link, a device"):
        load(to_tar(tmp_path / "a.tar.gz", files(), [link]))


def test_links_in_a_zip(tmp_path):
    path = to_zip(tmp_path / "a.zip", files())
    link = zipfile.ZipInfo("train/cat/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with refusal("link.png", "is a link"):
        load(path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("inner", ["train/cat/more.zip", "inner.tar.gz", "train.7z"])
def test_nested_archives(tmp_path, kind, inner):
    with refusal(inner, "is an archive itself"):
        load(WRITERS[kind](tmp_path / f"a.{kind}", files() | {inner: b"PK"}))


def test_double_and_encrypted_members(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("cat/a.png", b"1")
            archive.writestr("cat/a.png", b"2")
    with refusal("cat/a.png", "occurs twice"):
        load(tmp_path / "a.zip")
    path = to_zip(tmp_path / "b.zip", files())
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with refusal("is encrypted"):
        load(path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_declared_size_above_the_limit(tmp_path, monkeypatch, kind):
    path = WRITERS[kind](tmp_path / f"a.{kind}", files() | {"train/cat/huge.bmp": bytes(3_000_000)})
    for limit, said in (("MAX_MEMBER", "3000000 bytes"), ("MAX_UNPACKED", "0.002 GB")):
        monkeypatch.setattr(archives, limit, 2_000_000)
        with refusal("huge.bmp", said):
            load(path)


def test_a_tar_that_declares_terabytes_is_refused_unread(tmp_path):
    member = tarfile.TarInfo("train/cat/0.png")
    member.size = 1 << 42
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with refusal("declares more than 64 GB"):
        load(tmp_path / "a.tar.gz")
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with gzip.open(tmp_path / "b.tar.gz", "wb") as file:
        file.write(name.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with refusal("b.tar.gz is damaged", "a header of"):
        load(tmp_path / "b.tar.gz")


def test_a_zip_member_longer_than_declared(tmp_path):
    """A bomb that lies: 30 MB under a declaration of 1,000 bytes, in both headers."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in (files(parts=("",)) | {"cat/liar.bmp": bytes(30_000_000)}).items():
            archive.writestr(name, value)
    content = path.read_bytes()
    assert content.count(struct.pack("<I", 30_000_000)) == 2
    path.write_bytes(content.replace(struct.pack("<I", 30_000_000), struct.pack("<I", 1000)))
    with refusal("a.zip is damaged", "cat/liar.bmp"):
        load(path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_interrupted_download_of_an_archive(tmp_path, kind, share):
    path = WRITERS[kind](tmp_path / f"a.{kind}", files(n=30))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with refusal(f"a.{kind} is damaged or incomplete", "interrupted"):
        load(path)


def test_a_tar_cut_between_members(tmp_path):
    path = to_tar(tmp_path / "a.tar", files())
    with tarfile.open(path) as archive:
        middle = archive.getmembers()[5].offset
    path.write_bytes(path.read_bytes()[:middle])
    with refusal("a.tar is damaged or incomplete"):
        load(path)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_classes_only_in_one_part(tmp_path, kind):
    content = files() | {"test/emu/0.png": encoded(picture())}
    with refusal("'emu'", "not in both train and test"):
        load(WRITERS[kind](tmp_path / f"a.{kind}", content))
    content = files() | {"train/emu/0.png": encoded(picture())}
    with refusal("'emu'", "not in both train and test"):
        load(WRITERS[kind](tmp_path / f"b.{kind}", content))


def test_parts_in_other_case(tmp_path):
    upper = {name.replace("train", "Train"): value for name, value in files().items()}
    assert load(to_zip(tmp_path / "a.zip", upper)).train.classes == ("cat", "dog")
    with refusal("'Train'", "'train'"):
        load(to_zip(tmp_path / "b.zip", files() | upper))


def test_folders_that_are_no_data_set(tmp_path):
    root = to_folder(tmp_path / "a", files(parts=("",)))
    with refusal("is not a folder", "nowhere"):
        load(tmp_path / "nowhere")
    for path in ("", None, 3, "x\0y", "~nobody-here/x", "y" * 5000, root / "cat/0.png"):
        with refusal("data_root"):
            load(path)
    with refusal("holds 1 class folder(s)"):
        load(to_folder(tmp_path / "one", {"cat/a.png": encoded(picture())}))
    (root / "emu").mkdir()
    with refusal("'emu'", "is empty"):
        load(root)
    (root / "emu/notes.txt").write_text("x")
    with refusal("emu", "1 non-image file(s)", "notes.txt"):
        load(root)
    (root / "emu/notes.txt").unlink()
    (root / "emu/deeper.png").mkdir()
    with refusal("'emu'", "is empty"):
        load(root)


def test_unreadable_images_are_counted_and_named(tmp_path):
    content = files(parts=("",), n=70)
    content["cat/1.png"] = b""
    content["cat/3.png"] = content["cat/3.png"][:60]
    content["dog/2.png"] = b"no image at all"
    content["dog/3.png"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
    for kind in ("folder", "zip", "tar.gz"):
        with refusal("4 of 140 images cannot be read", "cat/1.png"):
            load(WRITERS[kind](tmp_path / f"a.{kind}", content))
    with refusal("140 of 140"):
        load(to_zip(tmp_path / "b.zip", dict.fromkeys(content, b"x")))


@pytest.mark.parametrize(
    "content, why",
    [
        (encoded(picture(), "GIF"), "GIF"),
        (encoded(picture(), "TIFF"), "TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"<!DOCTYPE html>\n<html>", "text"),
        (b"", "an empty file"),
        (encoded(picture(), "JPEG")[:-20], "truncated"),
        (b"\x01\x02\xff\xfe" * 9, "no image"),
    ],
)
def test_what_an_unreadable_file_is(tmp_path, content, why):
    path = to_folder(tmp_path / "a", files(parts=("",)) | {"cat/1.jpg": content})
    with refusal("cat/1.jpg (", why, "JPEG, PNG"):
        load(path)
    with refusal("cat/1.jpg (", why):
        load(to_zip(tmp_path / "a.zip", files(parts=("",)) | {"cat/1.jpg": content}))
    (line,) = (line for line in check(path)[0] if line.startswith("  cat/1.jpg: "))
    assert why in line


def test_a_long_text_or_color_profile_in_a_png(tmp_path):
    prompt = PngImagePlugin.PngInfo()
    prompt.add_text("prompt", "x" * 2_000_000, zip=True)
    longer = {"cat/0.png": encoded(picture(0), pnginfo=prompt), "cat/1.png": encoded(picture(1), icc_profile=bytes(2_000_000))}
    plain = folders.load_files(to_folder(tmp_path / "a", files(parts=("",))))
    assert torch.equal(folders.load_files(to_folder(tmp_path / "b", files(parts=("",)) | longer)).pixels, plain.pixels)


def test_a_zip_by_a_method_that_zipfile_does_not_know(tmp_path):
    path = to_zip(tmp_path / "a.zip", files())
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        content[content.index(mark) + at] = 9
    path.write_bytes(content)
    with refusal("packed by method 9 (deflate64)", "pack it again"):
        load(path)


def test_an_image_of_too_many_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    content = files(parts=("",)) | {"cat/0.png": encoded(picture(0, size=(11, 10)))}
    with refusal("1 of 8 images cannot be read", "cat/0.png"):
        load(to_zip(tmp_path / "a.zip", content))


def test_a_broken_link_in_a_folder(tmp_path):
    root = to_folder(tmp_path / "a", files(parts=("",)))
    os.symlink(tmp_path / "gone.png", root / "cat/9.png")
    with refusal("1 of 9 images cannot be read", "9.png"):
        load(root)


# ---------------------------------------------------------------- cache and mapped sets


def held(cache):
    return [sorted(file.name for file in folder.iterdir()) for folder in cache.glob("[!.]*")]


def no_decoding(*_, **__):
    raise AssertionError("decoded again")


@pytest.mark.parametrize("kind", ["folder", "tar.gz"])
def test_second_load_reads_the_cache(tmp_path, monkeypatch, kind):
    path, cache = WRITERS[kind](tmp_path / f"a.{kind}", files()), tmp_path / "cache"
    first = load(path, cache_dir=cache, max_side=6)
    assert held(cache) == [["00000.npy", "files.txt", "manifest.safetensors", "seen.npy"]]
    monkeypatch.setattr(folders, "decode", no_decoding)
    again = load(path, cache_dir=cache, max_side=6)
    assert again.digest == first.digest and again.notes == first.notes
    with pytest.raises(AssertionError):
        load(path, cache_dir=cache, max_side=5)


def test_the_cache_follows_the_files(tmp_path):
    root, cache = to_folder(tmp_path / "a", files()), tmp_path / "cache"
    first = load(root, cache_dir=cache).digest
    (root / "train/cat/0.png").write_bytes(encoded(picture(77)))
    assert load(root, cache_dir=cache).digest != first
    (root / "train/cat/0.png").write_bytes(encoded(picture(0)))
    assert load(root, cache_dir=cache).digest == first and len(held(cache)) == 2
    (root / "train/emu").mkdir()
    with refusal("emu"):
        load(root, cache_dir=cache)


def test_a_digest_is_remembered_until_files_change(tmp_path, monkeypatch):
    root, cache = to_folder(tmp_path / "a", files()), tmp_path / "cache"
    read, digest = [], archives.Folder.digest
    monkeypatch.setattr(archives.Folder, "digest", lambda where: (read.append(where), digest(where))[1])
    load(root, cache_dir=cache)
    load(root, cache_dir=cache)
    assert len(read) == 2 and not (cache / ".digests").exists()  # files this young may change again within their times
    monkeypatch.setattr("distillery.data.cache.SETTLED", -60.0)
    first = [load(root, cache_dir=cache).digest for _ in range(2)]
    assert len(read) == 3 and first[0] == first[1]
    (root / "train/cat/0.png").write_bytes(encoded(picture(77)))
    assert load(root, cache_dir=cache).digest != first[0] and len(read) == 4
    (note,) = (cache / ".digests").iterdir()
    note.write_text("{}")
    load(root, cache_dir=cache)
    assert len(read) == 5


def test_the_default_cache(tmp_path, monkeypatch):
    load(to_zip(tmp_path / "a.zip", files()))
    assert len(held(tmp_path / "default cache")) == 1
    monkeypatch.delenv("DISTILLERY_CACHE")
    assert cache_folder() == Path.home() / ".cache/distillery"


@pytest.mark.parametrize("suffix", ["00000.npy", "manifest.safetensors"])
@pytest.mark.parametrize("harm", ["cut", "flip", "other", "empty", "gone"])
def test_a_corrupt_cache_file_is_replaced_and_said(tmp_path, suffix, harm):
    path, cache = to_zip(tmp_path / "a.zip", files()), tmp_path / "cache"
    for mapped in (False,) if (suffix, harm) == ("00000.npy", "flip") else (False, True):  # a mapped file is not read
        first = load(path, cache_dir=cache, mapped=mapped)
        digest = first.digest  # before the file it may be mapped from is harmed
        (file,) = cache.glob(f"*/{suffix}")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes({"cut": content[:-9], "flip": content, "empty": b"", "other": b"{}", "gone": b""}[harm])
        if harm == "gone":
            file.unlink()
        again = load(path, cache_dir=cache, mapped=mapped)
        said = any("decoded again" in note for note in again.notes)
        assert again.digest == digest and said == ((suffix, harm) != ("manifest.safetensors", "gone"))
        assert load(path, cache_dir=cache, mapped=mapped).notes == first.notes


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path):
    path = to_zip(tmp_path / "a.zip", files())
    (tmp_path / "file").write_text("in the way")
    splits = load(path, cache_dir=tmp_path / "file" / "cache")
    assert splits.digest == load(path).digest
    assert any("cannot be written" in note for note in splits.notes)
    with refusal("cannot write"):
        load(path, cache_dir=tmp_path / "file" / "cache", mapped=True)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_mapped_sets_equal_those_in_memory(tmp_path, kind):
    path, cache = WRITERS[kind](tmp_path / f"a.{kind}", files(n=10)), tmp_path / "cache"
    memory = load(path, per_class=8)
    for _ in range(2):  # decoded to disk, then read from there
        mapped = load(path, per_class=8, cache_dir=cache, mapped=True)
        assert isinstance(mapped.train.pixels, data.LazyImages) and mapped.digest == memory.digest
        for part in ("train", "validation", "test"):
            ours, theirs = getattr(mapped, part), getattr(memory, part)
            indices = torch.randint(len(ours), (2, 3), generator=generator(0, "i"))
            assert torch.equal(ours.batch(indices), theirs.batch(indices))
            assert ours.shape == theirs.shape and ours.device == theirs.device
            assert torch.equal(ours.subset(indices[0]).batch(indices[0] % 3), theirs.subset(indices[0]).batch(indices[0] % 3))
        assert torch.equal(mapped.to("cpu").train.batch(torch.tensor([1])), memory.train.batch(torch.tensor([1])))
    assert held(cache) == [["00000.npy", "files.txt", "manifest.safetensors", "seen.npy"]]  # and no temporary file
    whole = load(path, per_class=8, cache_dir=cache)  # the same file, read and verified
    assert whole.digest == memory.digest and isinstance(whole.train.pixels, torch.Tensor)
    assert torch.equal(data.fit_zca(mapped.train).matrix, data.fit_zca(memory.train).matrix)


def test_mapped_named_sets(tmp_path):
    assert data.load("digits", mapped=True, cache_dir=tmp_path).digest == data.load("digits").digest


def test_mapped_pixels_are_not_read(tmp_path):
    """A file of 256 MB is mapped: resident memory does not grow until images are asked for."""
    shape, card = (1024, 1, 512, 512), {"classes": ["é"], "n_train": 1024, "notes": []}

    def produce(allocate):
        built = allocate(shape)
        built[5][:] = 7
        built.seen[:] = 1
        return built, torch.zeros(1024, dtype=torch.int64), dict(card)

    def read(mapped):
        return cached(tmp_path, "a", "made up", produce, mapped)

    read(True)
    before = resident()
    found = read(True)
    images = data.ImageSet(found.pixels, found.targets, ("a",)).subset(torch.arange(1024))
    assert (images.batch(torch.tensor([5])) == 7 / 255).all() and found.classes == ["é"]
    assert resident() - before < 50e6
    assert read(False).notes == []  # the digest holds


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_shards_are_one_array(tmp_path, monkeypatch, rows):
    monkeypatch.setattr("distillery.data.cache.SHARD", rows * 12)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 2, 2)).astype(np.uint8)
    built = Building(pixels.shape, tmp_path / "a").fill(pixels)
    built.note()
    shards = pickle.loads(pickle.dumps(Shards(tmp_path / "a")))  # a copy is made of the files
    assert len(shards.arrays) == -(-10 // rows) and shards.shape == pixels.shape
    for index in (torch.tensor([[9, 0, 3], [3, 3, 5]]), torch.tensor(7), torch.arange(10), torch.tensor([], dtype=torch.int64)):
        assert np.array_equal(shards[index], pixels[index])
    os.unlink(tmp_path / "a" / "00000.npy")
    with pytest.raises(ValueError, match="numbered"):
        Shards(tmp_path / "a")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize("first", ["L", "RGB"])
def test_a_killed_build_goes_on(tmp_path, monkeypatch, kind, first):
    """Killed after 5 of 16 images; what was noted is not decoded again, and the set is that of one go, also where gray images come first."""
    monkeypatch.setattr("distillery.data.cache.SHARD", 3 * 3 * 64)  # three images
    content = files()
    if first == "L":
        content["train/cat/0.png"] = encoded(picture(3).convert("L"))
    path, cache = WRITERS[kind](tmp_path / f"a.{kind}", content), tmp_path / "cache"
    whole, opened, cracked = load(path, cache_dir=tmp_path / "other"), [], decoding.open_image

    def opening(payload):
        opened.append(payload)
        if len(opened) == dies:
            raise KeyboardInterrupt
        return cracked(payload)

    monkeypatch.setattr(decoding, "open_image", opening)
    monkeypatch.setattr(decoding, "NOTED", 0.0)
    monkeypatch.setattr(decoding, "_CHUNK", 1)
    dies = 9 if first == "RGB" else 12
    with pytest.raises(KeyboardInterrupt):
        load(path, cache_dir=cache)
    (part,) = cache.glob(".*.part")
    there = int((np.load(part / "seen.npy") > 0).sum())
    assert 5 <= there < 9 and not list(cache.glob("[!.]*"))
    dies, opened[:] = 0, []
    again = load(path, cache_dir=cache)
    assert len(opened) == 1 + 16 - there and again.digest == whole.digest and again.notes == whole.notes
    assert held(cache) == [sorted([f"{i:05d}.npy" for i in range(6)] + ["files.txt", "manifest.safetensors", "seen.npy"])]


def test_a_damaged_shard_alone_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("distillery.data.cache.SHARD", 3 * 3 * 64)
    path, cache = to_folder(tmp_path / "a", files()), tmp_path / "cache"
    first, opened, cracked = load(path, cache_dir=cache).digest, [], decoding.open_image
    (shard,) = cache.glob("*/00002.npy")
    shard.write_bytes(shard.read_bytes()[:-5])
    monkeypatch.setattr(decoding, "open_image", lambda payload: (opened.append(payload), cracked(payload))[1])
    again = load(path, cache_dir=cache, mapped=True)
    assert again.digest == first and len(opened) == 1 + 3 and any("00002.npy" in note for note in again.notes)


def test_a_disk_that_does_not_keep_what_is_written_is_named_in_one_line(tmp_path, monkeypatch):
    finish = cache_module._finish

    def forgetful(built, targets, card, home):
        finish(built, targets, card, home)
        (home / "00000.npy").write_bytes(b"")

    monkeypatch.setattr("distillery.data.cache._finish", forgetful)
    path, cache = to_folder(tmp_path / "a", files()), tmp_path / "cache"
    with refusal("not as it was written"):
        load(path, cache_dir=cache)
    monkeypatch.undo()
    assert any("decoded again" in note for note in load(path, cache_dir=cache).notes)


@pytest.mark.parametrize("what", ["version", "rows", "order"])
def test_a_manifest_that_does_not_fit_its_shards_is_not_believed(tmp_path, monkeypatch, what):
    monkeypatch.setattr("distillery.data.cache.SHARD", 3 * 3 * 64)
    path, cache = to_folder(tmp_path / "a", files()), tmp_path / "cache"
    first = load(path, cache_dir=cache)
    (manifest,) = cache.glob("*/manifest.safetensors")
    tensors, card = store.load_tensors(manifest)
    tensors = {name: value.clone() for name, value in tensors.items()}
    if what == "version":
        card["version"] += 1
    elif what == "rows":
        tensors["targets"] = tensors["targets"][:-1]
    else:
        (manifest.parent / "00001.npy").rename(manifest.parent / "00009.npy")
    store.save_tensors(manifest, tensors, card)
    again = load(path, cache_dir=cache, mapped=True)
    assert again.digest == first.digest and any("decoded again" in note for note in again.notes)
    assert load(path, cache_dir=cache).notes == first.notes


def test_bad_files_leave_no_part_of_a_set(tmp_path):
    root = to_folder(tmp_path / "a", files() | {"train/cat/9.png": b"text"})
    with refusal("1 of 17 images cannot be read"):
        load(root, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_no_space_is_known_before_decoding(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(decoding, "scan", no_decoding)
    with refusal("cannot write", "No space left"):
        load(to_folder(tmp_path / "a", files()), cache_dir=tmp_path / "cache", mapped=True)


# ---------------------------------------------------------------- published sets


def publish(monkeypatch, name, root, content: dict[str, bytes]):
    """Let made-up files be the published ones."""
    root.mkdir(parents=True, exist_ok=True)
    for file, value in content.items():
        (root / file).write_bytes(value)
    pins = {file: hashlib.sha256(value).hexdigest() for file, value in content.items()}
    monkeypatch.setitem(named.FILES, name, pins)


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, as the published files have them."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        self.write(b"T" + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_string


def python2_pickle(value) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(value)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def cifar_archive(path: Path, name="cifar10") -> tuple[np.ndarray, list[int]]:
    publisher = getattr(datasets, name.upper())
    rng, content, pixels, labels = np.random.default_rng(0), {}, [], []
    for file, _ in publisher.train_list + publisher.test_list:
        pixels.append(rng.integers(0, 256, (20, 3072)).astype(np.uint8))
        labels.append([i % 10 for i in range(20)])
        key = b"labels" if name == "cifar10" else b"fine_labels"
        content[f"{publisher.base_folder}/{file}"] = python2_pickle({b"data": pixels[-1], key: labels[-1]})
    names = {publisher.meta["key"].encode(): [b"c%d" % i for i in range(10)]}
    content[f"{publisher.base_folder}/{publisher.meta['filename']}"] = python2_pickle(names)
    content[f"{publisher.base_folder}/readme.html"] = b"x"
    to_tar(path, content)
    return np.concatenate(pixels).reshape(-1, 3, 32, 32), sum(labels, [])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_converted_once(tmp_path, monkeypatch, name):
    (file,) = named.FILES[name]
    pixels, labels = cifar_archive(tmp_path / file, name)
    publish(monkeypatch, name, tmp_path, {file: (tmp_path / file).read_bytes()})
    found = named.load(name, tmp_path)
    assert np.array_equal(found.pixels, pixels) and found.targets.tolist() == labels
    assert found.n_train == len(pixels) - 20 and found.classes == [f"c{i}" for i in range(10)]
    (tmp_path / file).unlink()  # from here on only the converted file is read
    monkeypatch.setattr(named, "unpickle", no_decoding)
    splits = data.load(name, tmp_path, normalization="published")
    assert len(splits.test) == 20
    assert torch.equal(splits.train.transform.mean, torch.tensor(data.PUBLISHED[name][0]))


def test_pickles_hold_arrays_and_nothing_else():
    content = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": [1, 2.5, "x", None, (True,)]}
    assert np.array_equal(named.unpickle(python2_pickle(content), "file")["a"], content["a"])

    class Evil:
        def __reduce__(self):
            return os.system, ("touch /tmp/evil",)

    for value in (Evil(), {"data": Evil()}, [print], np.array([Evil()], dtype=object), Path("x")):
        with refusal("file", "numeric arrays"):
            named.unpickle(pickle.dumps(value, 2), "file")
    for broken in (b"", b"\x80", pickle.dumps(content)[:40], b"garbage", b"\x80\x02cbuiltins\neval\n."):
        with refusal("file"):
            named.unpickle(broken, "file")


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(struct.pack(">i", n) for n in values.shape)
    return gzip.compress(header + values.tobytes())


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist(tmp_path, monkeypatch, name):
    rng = np.random.default_rng(0)
    sizes = (40, 20)
    images = [rng.integers(0, 256, (n, 28, 28)).astype(np.uint8) for n in sizes]
    labels = [(np.arange(n) % 10).astype(np.uint8) for n in sizes]
    content = dict(zip(named.FILES[name], map(idx, (images[0], labels[0], images[1], labels[1]))))
    publish(monkeypatch, name, tmp_path / ("MNIST" if name == "mnist" else "FashionMNIST") / "raw", content)
    found = named.load(name, tmp_path)
    assert np.array_equal(found.pixels[:, 0], np.concatenate(images)) and found.n_train == 40
    assert found.targets.tolist() == np.concatenate(labels).tolist() and len(found.classes) == 10
    assert data.load(name, tmp_path, normalization="published", max_side=14).test.shape == (1, 14, 14)


def test_svhn(tmp_path, monkeypatch):
    from scipy.io import savemat

    rng, content, images = np.random.default_rng(0), {}, []
    for file in named.FILES["svhn"]:
        images.append(rng.integers(0, 256, (32, 32, 3, 20)).astype(np.uint8))
        savemat(tmp_path / file, {"X": images[-1], "y": (np.arange(20) % 10 + 1).astype(np.uint8)[:, None]})
        content[file] = (tmp_path / file).read_bytes()
    publish(monkeypatch, "svhn", tmp_path, content)
    found = named.load("svhn", tmp_path)
    assert np.array_equal(found.pixels[3].permute(1, 2, 0), images[0][..., 3])
    assert found.targets[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] and found.n_train == 20


def tiny_files(n=3):
    wnids = ("n01", "n02")
    content = {"tiny-imagenet-200/wnids.txt": b"n01\nn02\n", "tiny-imagenet-200/words.txt": b"x"}
    for name in wnids:
        content[f"tiny-imagenet-200/train/{name}/{name}_boxes.txt"] = b"x"
        for i in range(n):
            content[f"tiny-imagenet-200/train/{name}/images/{name}_{i}.JPEG"] = encoded(picture(i), "JPEG")
    for i in range(4):
        content[f"tiny-imagenet-200/val/images/val_{i}.JPEG"] = encoded(picture(20 + i), "JPEG")
        content[f"tiny-imagenet-200/test/images/test_{i}.JPEG"] = encoded(picture(30 + i), "JPEG")
    table = "".join(f"val_{i}.JPEG\t{wnids[i % 2]}\t0\t0\t9\t9\n" for i in range(4))
    return content | {"tiny-imagenet-200/val/val_annotations.txt": table.encode()}


def test_tiny_imagenet(tmp_path, monkeypatch):
    (file,) = named.FILES["tiny-imagenet"]
    publish(monkeypatch, "tiny-imagenet", tmp_path, {file: to_zip(tmp_path / file, tiny_files()).read_bytes()})
    splits = data.load("tiny-imagenet", tmp_path, normalization="published")
    assert len(splits.train) + len(splits.validation) == 6 and splits.test.counts() == [2, 2]
    assert splits.train.classes == ("n01", "n02") and splits.test.name == "tiny-imagenet"
    assert load(tmp_path / file).digest == splits.digest  # the layout is known by its label table
    assert check(tmp_path / file)[1]
    root = to_folder(tmp_path / "unpacked", tiny_files())
    for place in (root, root / "tiny-imagenet-200"):
        again = data.load("tiny-imagenet", place)
        assert again.digest == splits.digest and any("no published checksum" in note for note in again.notes)
    top = root / "tiny-imagenet-200"
    for i in range(4):  # as the usual scripts sort them, the table left in place
        (top / f"val/n0{i % 2 + 1}").mkdir(exist_ok=True)
        (top / f"val/images/val_{i}.JPEG").rename(top / f"val/n0{i % 2 + 1}/val_{i}.JPEG")
    (top / "val/images").rmdir()
    assert load(top).digest == load(root).digest == splits.digest
    (top / "val/val_annotations.txt").unlink()
    assert load(top).digest == splits.digest and check(top)[1]


def test_a_label_table_that_names_missing_files(tmp_path):
    root = to_folder(tmp_path / "a", tiny_files())
    (root / "tiny-imagenet-200/val/images/val_0.JPEG").unlink()
    with refusal("val_0.JPEG", "not there"):
        data.load("tiny-imagenet", root)


def test_wrong_checksum_and_interrupted_download(tmp_path):
    (file,) = named.FILES["cifar10"]
    for content in (b"", b"the first bytes only"):
        (tmp_path / file).write_bytes(content)
        for place in (tmp_path, tmp_path / file):
            with refusal(file, f"{len(content)} bytes", named.FILES["cifar10"][file]):
                data.load("cifar10", place)
        assert (tmp_path / file).read_bytes() == content  # a user's file is not overwritten


def test_download(tmp_path, monkeypatch):
    (file,) = named.FILES["cifar10"]
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    cifar_archive(there / file)
    content = (there / file).read_bytes()
    publish(monkeypatch, "cifar10", there, {file: content})
    monkeypatch.setitem(named._ADDRESSES, "cifar10", f"{there.as_uri()}/")
    assert len(named.load("cifar10", here).pixels) == 120
    assert (here / file).read_bytes() == content and [p.name for p in here.iterdir()] == [file]

    (here / file).unlink()
    (there / file).write_bytes(content[:1000])  # the connection breaks
    with refusal(file, "invalid hash value", "data_root"):
        named.load("cifar10", here, cache_dir=tmp_path / "other cache")
    assert not list(here.iterdir())
    assert not (tmp_path / "other cache").exists()


def test_addresses_and_pins():
    for name, pins in named.FILES.items():
        assert all(re.fullmatch("[0-9a-f]{64}", pin) for pin in pins.values())
        assert named._ADDRESSES[name].startswith("http") and named._ADDRESSES[name].endswith("/")
    assert named._ADDRESSES["mnist"] in datasets.MNIST.mirrors and named._ADDRESSES["fashion-mnist"] in datasets.FashionMNIST.mirrors
    for publisher in (datasets.CIFAR10, datasets.CIFAR100):
        name = publisher.__name__.lower()
        assert publisher.url == named._ADDRESSES[name] + next(iter(named.FILES[name]))
    assert {url for url, *_ in datasets.SVHN.split_list.values()} > {named._ADDRESSES["svhn"] + file for file in named.FILES["svhn"]}


def test_without_network_the_refusal_names_the_file(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", offline)
    for name, pins in named.FILES.items():
        with refusal("cannot fetch", next(iter(pins)), "no route to host"):
            data.load(name, tmp_path / name)


@pytest.mark.parametrize("value", ["published", "published:digits", "published:", "other", "published:cifar10:x"])
def test_published_constants_are_refused_where_there_are_none(tmp_path, value):
    with refusal("normalization"):
        data.load("digits", normalization=value)


def test_published_constants_by_name(tmp_path):
    path = to_zip(tmp_path / "a.zip", files())
    splits = load(path, normalization="published:cifar10")
    assert torch.allclose(splits.test.transform.std, torch.tensor([0.2023, 0.1994, 0.2010]))
    with refusal("mnist", "1 channel(s), the images have 3"):
        load(path, normalization="published:mnist")
    with refusal("folder"):
        load(path, normalization="published")


# ---------------------------------------------------------------- fuzzed folders

GOOD = [encoded(picture(i, mode), kind) for i in range(3) for mode in ("L", "RGB") for kind in ("PNG", "BMP", "JPEG")]
ODD = [
    encoded(picture(1, size=(5, 9))),
    encoded(picture(2, "RGBA")),
    encoded(picture(2, "LA")),
    png16(np.ones((8, 8, 3))),
    encoded(picture(3).quantize(4), transparency=1),
    encoded(picture(3).convert("CMYK"), "JPEG"),
    b"",
    b"GIF89a",
    b"PK\3\4",
]
contents = st.one_of(
    st.sampled_from(GOOD),
    st.sampled_from(GOOD),
    st.sampled_from(GOOD),
    st.sampled_from(ODD),
    st.binary(max_size=60),
    st.builds(lambda good, cut: good[:cut], st.sampled_from(GOOD), st.integers(0, 300)),
    st.builds(
        lambda good, at, byte: good[:at] + bytes([byte]) + good[at + 1 :], st.sampled_from(GOOD), st.integers(0, 200), st.integers(0, 255)
    ),
)
letters = st.characters(codec="utf-8", exclude_characters="/\0")
parts = st.one_of(
    st.sampled_from(["train", "test", "val", "Train", "cat", "dog", "Cat", "emu", "__MACOSX", ".x", "images"]),
    st.text(letters, min_size=1, max_size=6).filter(lambda text: text not in (".", "..")),
)
leaves = st.builds(lambda stem, suffix: stem + suffix, parts, st.sampled_from([".png", ".JPG", ".bmp", ".webp", ".txt", ""]))
names = st.builds(lambda folders, leaf: "/".join([*folders, leaf]), st.lists(parts, max_size=4), leaves)
likely = st.builds("{}{}/{}.png".format, st.sampled_from(["train/", "test/", ""]), st.sampled_from(["cat", "dog"]), st.integers(0, 9))
trees = st.builds(
    lambda base, extra: base | extra,
    st.sampled_from([{}, files(parts=("",)), files(), files(parts=("top/train", "top/val"), mode="L")]),
    st.dictionaries(st.one_of(likely, likely, names), contents, max_size=4),
)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees, kind=st.sampled_from(["folder", "zip", "tar.gz"]), options=st.sampled_from([{}, {"resize": 6}, {"mapped": True}]))
@example(tree=files(parts=("",)), kind="zip", options={})
def test_fuzzed_folders_never_give_a_traceback(tree, kind, options):
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / f"a.{kind}"
        root = root if kind != "folder" else Path(scratch) / "a"
        if kind == "folder":
            root.mkdir()
            for name, content in tree.items():
                with contextlib.suppress(OSError, ValueError):  # a file where a folder is wanted, a name too long
                    to_folder(root, {name: content})
        else:
            WRITERS[kind](root, tree)
        for look in (lambda: load(root, cache_dir=Path(scratch) / "cache", **options), lambda: check(root)):
            try:
                look()
            except InputError as error:
                assert len(str(error).splitlines()) == 1 and "accepted" in str(error), str(error)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    harm=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 3000),
    kind=st.sampled_from(["zip", "tar", "tar.gz"]),
)
def test_fuzzed_archives_never_give_a_traceback(harm, cut, kind):
    with tempfile.TemporaryDirectory() as scratch:
        path = WRITERS[kind](Path(scratch) / f"a.{kind}", files(n=2))
        content = bytearray(path.read_bytes())
        for at, byte in harm:
            content[at % len(content)] = byte
        path.write_bytes(content[: len(content) - cut] if cut < 1500 else content)
        try:
            load(path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1 and "accepted" in str(error), str(error)
