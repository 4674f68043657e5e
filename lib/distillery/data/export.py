"""What came out, for others: a folder that `datasets` and ImageFolder read, the pair of files of MTT's public code, or an .npz."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillery import store
from distillery.checks import InputError, check_choice, local_path
from distillery.data import kept as lists
from distillery.data import synthetic
from distillery.data.synthetic import Synthetic

KINDS = ("imagefolder", "pt", "npz")


def export(file: str | Path, to: str, out: str | Path, copy: bool = False) -> Path:
    """Write a distilled set, or what a list keeps, in a form that others read.

    file    a .safetensors file of `distillery distill` or of a notebook, or a list of `distillery prune`
    to      'imagefolder': class folders (of PNG files; of a list: links to its files) and a metadata.csv of file_name and label, which
            torchvision's ImageFolder and `datasets.load_dataset('imagefolder', data_dir=...)` read; soft labels are a third column, as JSON
            'pt': a folder of images_best.pt and labels_best.pt as MTT writes them, images as stored (standardized), README.json saying by what
            'npz': images (M, C, H, W) float32 in [0, 1], labels (M,) or soft (M, classes), and classes
    out     where to: nothing may be there; it is there whole or not at all
    copy    of a list: copies of its files, in place of links
    raises  InputError on a file that is neither, a list other than as imagefolder, images that cannot be brought back to [0, 1], and
            labels without classes as imagefolder
    """
    check_choice("to", to, KINDS)
    file, out = local_path("file", file), local_path("out", out)
    lists.absent(out, None)
    if file.suffix == ".csv":
        if to != "imagefolder":
            raise InputError(f"to: {to!r} of a list, whose images differ in size; accepted: imagefolder")
        return _list(file, out, copy)
    return {"imagefolder": _imagefolder, "pt": _pt, "npz": _npz}[to](synthetic.load(file), file, out)


def held_out(file: str | Path) -> bool:
    """Whether a set or a list says which images of its data were held out to judge it: what is exported does not."""
    file = local_path("file", file)
    if file.suffix == ".csv":
        return any(row["kept"] is None for row in lists.read(file))
    return bool(synthetic.load(file).card.get("held_out"))


def _list(file: Path, out: Path, copy: bool) -> Path:
    rows = [row for row in lists.read(file) if row["kept"]]
    gone = [row["file"] for row in rows if not row["file"].is_file()]
    if gone or not rows:
        what = f"{len(gone)} of {len(rows)} files are not there, first {gone[0]}" if rows else "nothing is kept"
        raise InputError(f"{file}: {what}; accepted: a list beside its images, these not in an archive")
    for data in {row["file"].parent.parent for row in rows}:  # of class folders
        lists.absent(out, None, data)
    with store.new_folder(out) as made:
        _metadata(made, [(lists.put(row["file"], made / row["class"], copy), row["class"]) for row in rows])
    return out


def _metadata(folder: Path, rows: list[tuple]) -> None:
    """metadata.csv: files below the folder with their labels, and soft labels where there are any."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "label", "soft_label"][: len(rows[0])])
    writer.writerows([path.relative_to(folder).as_posix(), *more] for path, *more in rows)
    store.write_bytes(folder / "metadata.csv", text.getvalue().encode(errors="surrogateescape"))


def _imagefolder(made: Synthetic, file: Path, out: Path) -> Path:
    pixels, targets, classes = synthetic.unit_pixels(made), made.decode()[1], made.classes
    soft = targets.is_floating_point()
    if not classes or (soft and targets.shape[1] != len(classes)):
        raise InputError(
            f"{file}: targets {tuple(targets.shape)} without as many classes; accepted: pt or npz, which keep them as they are"
        )
    rows = []
    with store.new_folder(out) as folder:
        for i, (image, target) in enumerate(zip(_bytes(pixels), targets)):
            name = classes[int(target.argmax() if soft else target)]
            path = folder / name / f"{i:06d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(path)
            rows.append((path, name, *([json.dumps(target.tolist())] if soft else [])))
        _metadata(folder, rows)
    return out


def _bytes(pixels: Tensor) -> np.ndarray:
    """Images (M, C, H, W) in [0, 1] -> uint8 (M, H, W, C), or (M, H, W) of one channel."""
    images = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return images[..., 0] if images.shape[3] == 1 else images


def _pt(made: Synthetic, file: Path, out: Path) -> Path:
    images, targets = made.decode()
    transform = made.card.get("transform") or {}
    whitened = "matrix" in transform
    by = {name: value.tolist() for name, value in transform.items()} if transform and not whitened else None
    says = {
        "images": f"{tuple(images.shape)} float32, {'whitened by ZCA' if whitened else 'standardized' if by else 'as stored'}",
        "pixels in [0, 1]": "images * std + mean, channel by channel" if by else "see transform.* of the .safetensors" if whitened else "not known",
        "standardized by": by, "labels": f"{tuple(targets.shape)} {'soft or real-valued' if targets.is_floating_point() else 'classes'}",
        "classes": made.classes, "step size": float(made.tensors["step_size"]) if "step_size" in made.tensors else None, "made from": file.name,
        "read by": "distillery evaluate images_best.pt --labels labels_best.pt --pixels standardized --data DATA",
    }  # fmt: skip
    with store.new_folder(out) as folder:
        torch.save(images.contiguous(), folder / "images_best.pt")
        torch.save(targets.contiguous(), folder / "labels_best.pt")
        store.write_json(folder / "README.json", says)
    return out


def _npz(made: Synthetic, file: Path, out: Path) -> Path:
    arrays = {"images": synthetic.unit_pixels(made).numpy(), "labels": made.decode()[1].numpy()}
    arrays |= {"classes": np.array(made.classes)} if made.classes else {}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return store.write_bytes(out, content.getvalue())
