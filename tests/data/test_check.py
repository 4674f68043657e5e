"""`distillery data check`: what it reports, and its exit code."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from distillery import cli
from distillery.data.check import check


def save(path, seed=0, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for p, part in enumerate(("train", "test")):
        for c, name in enumerate(("cat", "big dog")):
            for i in range(4):
                save(tmp_path / "set" / part / name / f"{i}.png", 100 * p + 10 * c + i)
    return tmp_path / "set"


def run(capsys, path):
    code = cli.main(["data", "check", str(path)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_clean_set(capsys, root):
    code, out, err = run(capsys, root)
    assert code == 0 and not err
    for line in (
        "2 classes, 8 training and 8 test images",
        "big dog       4      4",
        "a class, training: 4 images",
        "sizes:             8x8 (16)",
        "modes:             RGB (16)",
        "0 test image(s) are also training images",
        "unreadable:        0",
    ):
        assert line in out, out
    assert out.splitlines()[-1] == "usable"


def test_an_archive(capsys, root, tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(root, "set")
    code, out, _ = run(capsys, tmp_path / "a.tar.gz")
    assert code == 0 and "8 training and 8 test images" in out


def test_duplicates_across_train_and_test(capsys, root):
    save(root / "test/cat/9.png", 0)  # training image cat/0
    Image.open(root / "train/cat/1.png").save(root / "test/cat/8.bmp")  # the same pixels in another format
    save(root / "train/big dog/9.png", 2)  # training image cat/2, under another label
    code, out, _ = run(capsys, root)
    assert code == 0 and "2 test image(s) are also training images" in out
    assert "train/cat/0.png = test/cat/9.png" in out and "train/cat/1.png = test/cat/8.bmp" in out
    assert "3 image(s) repeat another, 1 of them under two labels" in out


def test_unreadable_files_are_all_named(capsys, root):
    (root / "train/cat/2.png").write_bytes(b"no image")
    (root / "test/cat/3.png").write_bytes(b"")
    for i in range(12):
        (root / f"train/cat/x{i}.png").write_bytes(b"GIF89a")
    code, out, err = run(capsys, root)
    assert code == 2 and not err and "unreadable:        14" in out
    assert "  train/cat/2.png: text" in out and all(f"  train/cat/x{i}.png: GIF" in out for i in range(12))
    assert "not usable: 14 of 28 images cannot be read" in out


def test_sizes_and_modes(capsys, root):
    save(root / "train/cat/0.png", 1, (9, 7))
    save(root / "train/cat/1.png", 1, mode="L")
    save(root / "train/cat/2.png", 1, mode="RGBA")
    Image.fromarray(np.full((8, 8), 60000, np.uint16)).save(root / "train/cat/3.png")
    code, out, _ = run(capsys, root)
    assert code == 0 and "8x8 (15), 9x7 (1)" in out
    for mode in ("RGB (13)", "L (1)", "RGBA (1)", "I;16 16 bits (1)"):
        assert mode in out, out
    assert "1 image(s) with an alpha channel laid on white" in out and "1 image(s) of 16 bits scaled to 8" in out
    assert out.splitlines()[-1] == "usable with resize=SIDE: the sizes differ"


def test_too_few_images(capsys, root, tmp_path):
    for i in range(2):
        save(tmp_path / "few" / "cat" / f"{i}.png", i)
        save(tmp_path / "few" / "dog" / f"{i}.png", 10 + i)
    code, out, _ = run(capsys, tmp_path / "few")
    assert code == 2 and "not usable: 2 class(es) with fewer than 3 images, first cat" in out


@pytest.mark.parametrize("harm", ["missing", "empty class", "one class", "foreign", "broken archive"])
def test_what_is_no_data_set_gives_one_line(capsys, root, tmp_path, harm):
    path = {"missing": tmp_path / "nowhere", "broken archive": tmp_path / "a.zip"}.get(harm, root)
    (tmp_path / "a.zip").write_bytes(b"PK")
    if harm == "empty class":
        (root / "train/emu").mkdir()
    elif harm == "one class":
        path = root / "train" / "cat"
    elif harm == "foreign":
        (root / "train/cat/notes.doc").write_text("x")
    code, out, err = run(capsys, path)
    assert code == 2 and not out and len(err.splitlines()) == 1 and "accepted" in err


def test_many_classes_are_cut_short(tmp_path):
    for i in range(25):
        for j in range(3):
            save(tmp_path / "many" / f"c{i:02}" / f"{j}.png", 10 * i + j)
    lines, usable = check(tmp_path / "many")
    assert usable and "  ... and 5 more classes" in lines
    assert "75 images, no test part" in lines[0]


def test_names_that_no_line_can_hold(tmp_path):
    for name in ("a\nb", "c\x1b[31m"):
        for j in range(3):
            save(tmp_path / "set" / name / f"{j}.png", hash(name) % 1000 + j)
    (tmp_path / "set" / "a\nb" / "x\ny.png").write_bytes(b"")
    lines, usable = check(tmp_path / "set")
    assert not usable and all(line.isprintable() for line in lines)


def test_the_check_shows_progress_only_when_asked(root, capsys):
    check(root, progress=True)
    assert "checking" in capsys.readouterr().err
    check(root)
    assert not capsys.readouterr().err
