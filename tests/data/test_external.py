"""Sets made elsewhere: the public layouts are read, nothing in a file is executed, and bad files give one line."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distillery import cli, store
from distillery.checks import InputError
from distillery.data import external, load, synthetic
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Protocol
from distillery.networks import ConvNet
from distillery.report.external import compare_with_random, stored_bytes


@pytest.fixture(scope="module")
def splits():
    return load("digits")


@pytest.fixture
def tensors(splits):
    chosen = torch.cat([splits.train.of_class(label)[:2] for label in range(10)])
    return splits.train.batch(chosen), splits.train.targets[chosen]


def test_public_layouts_agree(tmp_path, splits, tensors):
    images, labels = tensors
    torch.save({"images": images, "labels": labels}, tmp_path / "named.pt")
    torch.save((images, labels), tmp_path / "pair.pt")
    numbers = {"ConvNet": [np.float64(0.5)] * 2}  # as np.sum(..) / n gives them
    torch.save({"data": [[images, labels], [images * 0, labels]], "accs_all_exps": numbers}, tmp_path / "res_DM_CIFAR10_ConvNet_2ipc.pt")
    np.savez(tmp_path / "named.npz", images=images.numpy(), labels=labels.numpy(), classes=np.array(splits.train.classes))
    torch.save(images, tmp_path / "images_best.pt")
    torch.save(labels, tmp_path / "labels_best.pt")
    save_file({"images": images, "targets": labels}, tmp_path / "plain.safetensors")
    synthetic.export(Synthetic({"images": images, "targets": labels}, splits.train.classes), tmp_path / "ours", {})
    files = [
        ("named.pt", ""),
        ("pair.pt", ""),
        ("res_DM_CIFAR10_ConvNet_2ipc.pt", ""),
        ("named.npz", ""),
        ("images_best.pt", "labels_best.pt"),
        ("images_best.pt", ""),
        ("plain.safetensors", ""),
        ("ours.safetensors", ""),
    ]
    for name, label_file in files:
        made = external.read(tmp_path / name, label_file and tmp_path / label_file, "standardized")
        assert torch.equal(made.tensors["images"], images) and torch.equal(made.tensors["targets"], labels), name
    assert external.read(tmp_path / "named.npz", pixels="standardized").classes == splits.train.classes
    several = tmp_path / "res_DM_CIFAR10_ConvNet_2ipc.pt"
    assert [external.sets_in(tmp_path / name) for name, _ in files] == [1, 1, 2, 1, 1, 1, 1, 1]
    assert not external.read(several, pixels="standardized", which=1).tensors["images"].any()


def test_a_result_file_of_the_public_code_of_dm(tmp_path, tensors):
    """As torch 1.2 and NumPy 1.18 wrote it, which its code asks for: accuracies are numbers of NumPy, under the name of that time."""
    images, labels = tensors
    content = {"data": [[images + i, labels] for i in range(5)], "accs_all_exps": {"ConvNet": [np.float64(0.26)] * 100}}
    path = tmp_path / "res_DM_CIFAR10_ConvNet_2ipc.pt"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert external.sets_in(path) == 5 and external.sides(path) == (8, 8)
    assert torch.equal(external.read(path, pixels="standardized", which=4).tensors["images"], images + 4)


def test_pixels_are_standardized_by_the_data(tmp_path, splits, tensors):
    images, labels = tensors
    unit = splits.train.transform.inverse(images).clamp(0, 1)
    torch.save((unit, labels), tmp_path / "unit.pt")
    torch.save(((unit * 255).round().to(torch.uint8), labels), tmp_path / "bytes.pt")
    for name in ("unit.pt", "bytes.pt"):
        torch.testing.assert_close(external.read(tmp_path / name, splits=splits).tensors["images"], images, atol=1e-5, rtol=0)
        with pytest.raises(InputError, match="no data set"):
            external.read(tmp_path / name)


ONE_HOT = torch.nn.functional.one_hot


@pytest.mark.parametrize(
    "written",
    [
        lambda labels: labels[:, None],
        lambda labels: labels.to(torch.uint8),
        lambda labels: labels.half(),
        lambda labels: ONE_HOT(labels, 10),
        lambda labels: ONE_HOT(labels, 10).bool() * 7,
    ],
)
def test_hard_labels_however_written(tmp_path, tensors, written):
    torch.save((tensors[0].double(), written(tensors[1])), tmp_path / "a.pt")
    made = external.read(tmp_path / "a.pt", pixels="standardized").tensors
    assert torch.equal(made["targets"], tensors[1]) and made["targets"].dtype == torch.int64
    assert torch.equal(made["images"], tensors[0])


def test_soft_labels_are_float32(tmp_path, tensors):
    torch.save((tensors[0], ONE_HOT(tensors[1], 10).double() * 0.5), tmp_path / "a.pt")
    targets = external.read(tmp_path / "a.pt", pixels="standardized").tensors["targets"]
    assert targets.dtype == torch.float32 and targets.sum() == 10


def test_logits_formations_and_how_pixels_were_read(tmp_path, splits, tensors, refused):
    logits = ONE_HOT(tensors[1], 10) * 5.0 - 1
    torch.save((tensors[0], logits), tmp_path / "a.pt")
    made = external.read(tmp_path / "a.pt", splits=splits, logits=True, formation="partition2")
    assert torch.equal(made.decode()[1], logits.softmax(1).repeat_interleave(4, 0)) and len(made.decode()[0]) == 4 * len(logits)
    assert made.card["pixels"].startswith("standardized (-")
    torch.save((torch.linspace(0, 1, 20 * 64).view(20, 1, 8, 8), tensors[1]), tmp_path / "a.pt")
    assert external.read(tmp_path / "a.pt", splits=splits).card["pixels"] == "unit (0 to 1)"
    with refused("logits", "whole numbers"):
        external.read(tmp_path / "a.pt", splits=splits, logits=True)
    torch.save(torch.tensor(1.0), tmp_path / "lr.pt")
    with refused(tmp_path / "lr.pt", "labels ()"):
        external.read(tmp_path / "a.pt", tmp_path / "lr.pt", splits=splits)


@pytest.mark.parametrize("text", ["version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "<!DOCTYPE html><html>"])
def test_text_under_the_name_of_tensors(tmp_path, text, refused):
    (tmp_path / "a.pt").write_text(text)
    with refused(tmp_path / "a.pt", "is text", text[:15]):
        external.read(tmp_path / "a.pt")


IMAGES, LABELS = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
NAN = float("nan")


@pytest.mark.filterwarnings("ignore")  # torch, of quantized tensors
@pytest.mark.parametrize(
    "images, labels, found",
    [
        (IMAGES, torch.tensor(1), "labels ()"),
        (IMAGES, torch.zeros(4, 2, 2), "labels (4, 2, 2)"),
        (IMAGES, torch.zeros(4, 1, 1), "labels (4, 1, 1)"),
        (IMAGES, LABELS[:3], "labels (3,)"),
        (IMAGES, LABELS[:0], "labels (0,)"),
        (IMAGES, LABELS + 0.5, "labels (4,) of torch.float32"),
        (IMAGES, LABELS * NAN, "labels (4,)"),
        (IMAGES, torch.full((4, 2), NAN), "labels: 8 of 8"),
        (IMAGES, torch.ones(4, 2).long(), "labels (4, 2) of torch.int64"),
        (IMAGES, LABELS.to(torch.complex64), "complex64"),
        (IMAGES, LABELS.to_sparse(), "sparse_coo"),
        (IMAGES, [0, 1, 0, 1], "labels: a list"),
        (IMAGES, "cat", "labels: a str"),
        (IMAGES, None, "no labels"),
        (None, LABELS, "no images"),
        ([[0.0]], LABELS, "images: a list"),
        (IMAGES[0], LABELS, "images (1, 2, 2)"),
        (IMAGES[:0], LABELS[:0], "images (0, 1, 2, 2)"),
        (IMAGES.bool(), LABELS, "torch.bool"),
        (IMAGES.to(torch.complex64), LABELS, "complex64"),
        (IMAGES.to_sparse(), LABELS, "sparse_coo"),
        (torch.quantize_per_tensor(IMAGES, 0.1, 0, torch.quint8), LABELS, "quint8"),
        (IMAGES / 0, LABELS, "images: 16 of 16"),
        (IMAGES + 21, LABELS, "from 21 to 21"),
        (IMAGES - 21, LABELS, "from -21 to -21"),
        (IMAGES, IMAGES, "no labels"),
        (IMAGES.long() + 256, LABELS, "256 to 256"),
    ],
)
def test_tensors_that_are_no_set(tmp_path, splits, refused, images, labels, found):
    torch.save({"images": images, "labels": labels}, tmp_path / "a.pt")
    with refused(tmp_path / "a.pt", found):
        external.read(tmp_path / "a.pt", splits=splits)


@pytest.mark.parametrize(
    "content, held",
    [
        ([IMAGES, IMAGES[:2], IMAGES], "no labels in a list of 3: images (2, 1, 2, 2), images (4, 1, 2, 2)"),
        ({"syn": IMAGES, "lr": 1.0}, "no images in a dict with syn, lr"),
        ([], "no images in a list of 0"),
        (IMAGES, "no labels in a Tensor"),
    ],
)
def test_a_file_without_a_set_says_what_it_holds(tmp_path, splits, content, held, refused):
    torch.save(content, tmp_path / "a.pt")
    with refused(tmp_path / "a.pt", held):
        external.read(tmp_path / "a.pt", splits=splits)


@pytest.mark.parametrize("content", [[0, 1], {"names": LABELS}, "cat", {"labels": None}, LABELS[:2]])
def test_label_files_without_labels(tmp_path, content, refused):
    torch.save(IMAGES, tmp_path / "a.pt")
    torch.save(content, tmp_path / "labels.pt")
    with refused(tmp_path / "labels.pt", "labels"):
        external.read(tmp_path / "a.pt", tmp_path / "labels.pt", "standardized")


@pytest.mark.parametrize(
    "tensors, card, found",
    [
        ({"images": IMAGES / 0}, {}, "images: 16 of 16"),
        ({"images": IMAGES.to(torch.complex64)}, {}, "complex64"),
        ({"images": IMAGES[0]}, {}, "(1, 2, 2)"),
        ({"step_size": torch.tensor(NAN)}, {}, "step_size: 1 of 1"),
        ({}, {"classes": 3}, "classes 3"),
        ({}, {"classes": [0, 1]}, "classes [0, 1]"),
        ({}, {"formation": "spiral"}, "spiral"),
        ({}, {"formation": []}, "[]"),
    ],
)
def test_own_files_with_a_bad_card_or_tensors(tmp_path, tensors, card, found, refused):
    card = {"format": "distillery synthetic set, version 1", "classes": ["a", "b"], "formation": "identity"} | card
    store.save_tensors(tmp_path / "a.safetensors", {"images": IMAGES, "targets": LABELS} | tensors, card)
    with refused(tmp_path / "a.safetensors", found):
        external.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "lines, words",
    [
        (["a/0.png,a,[0.9]", 'b/1.png,b,"[0.2, 0.8]"'], "soft_label"),
        (['a/0.png,a,"[0.9, 0.1]"'], "b/1.png"),
        (['a/0.png,a,"[0.9, 0.1]"', "b/1.png,b,half"], "soft_label"),
        (['a/0.png,a,"[0.9, NaN]"', 'b/1.png,b,"[0.2, 0.8]"'], "NaN or infinite"),
    ],
)
def test_soft_labels_of_a_folder_that_are_none(tmp_path, lines, words, refused):
    files, table = ["a/0.png", "b/1.png"], tmp_path / "metadata.csv"
    assert external.soft_labels(tmp_path, files, 2) is None
    table.write_text("file_name,label\na/0.png,a\nb/1.png,b\n")
    assert external.soft_labels(tmp_path, files, 2) is None
    table.write_text("file_name,label,soft_label\n" + 'b/1.png,b,"[0.2, 0.8]"\na/0.png,a,"[0.9, 0.1]"\n')
    assert torch.equal(external.soft_labels(tmp_path, files, 2), torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    table.write_text("\n".join(["file_name,label,soft_label", *lines]))
    with refused(table, words):
        external.soft_labels(tmp_path, files, 2)


def test_bytes_of_a_set(tmp_path, splits, tensors):
    images, labels = tensors
    soft = torch.nn.functional.one_hot(labels, 10).float()
    assert stored_bytes(Synthetic({"images": images, "targets": labels})) == (4 * 20 * 64, 0)
    assert stored_bytes(Synthetic({"images": images, "targets": labels, "label_logits": soft})) == (4 * 20 * 64, 4 * 200)
    torch.save(((splits.train.transform.inverse(images) * 255).round().clamp(0, 255).to(torch.uint8), soft), tmp_path / "bytes.pt")
    assert stored_bytes(external.read(tmp_path / "bytes.pt", splits=splits)) == (20 * 64, 4 * 200)
    assert stored_bytes(splits.train.subset(torch.arange(7))) == (7 * 64, 0)


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_nothing_is_executed(tmp_path, monkeypatch, tensors):
    monkeypatch.chdir(tmp_path)
    torch.save({"images": tensors[0], "labels": Trap()}, "bad.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Trap()))
    np.savez("bad.npz", images=np.array([Trap()]), labels=np.zeros(1))
    for name in ("bad.pt", "bare.pt", "bad.npz"):
        with pytest.raises(InputError, match="accepted"):
            external.read(name)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", [b"", b"not a file", b"PK\x03\x04 cut"])
def test_damaged_files(tmp_path, content):
    for name in ("a.pt", "a.safetensors", "a.npz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            external.read(tmp_path / name)
        assert "\n" not in str(caught.value) and "accepted" in str(caught.value)


def test_sets_that_do_not_fit(splits, tensors):
    images, labels = tensors
    network, protocol = ConvNet(splits.train.shape, 10, width=4), Protocol(1, 0)
    for bad, named in (
        (Synthetic({"images": images.repeat(1, 3, 1, 1), "targets": labels}), "(3, 8, 8)"),
        (Synthetic({"images": images, "targets": labels + 5}), "5 to 14"),
        (Synthetic({"images": images, "targets": torch.rand(20, 3)}), "3 columns"),
    ):
        with pytest.raises(InputError) as caught:
            compare_with_random(bad, splits, network, protocol, 1)
        assert named in str(caught.value)


def test_learned_pixels_just_outside_are_units(tmp_path, splits, tensors):
    unit = splits.train.transform.inverse(tensors[0]) * 1.03 - 0.01
    torch.save((unit, tensors[1]), tmp_path / "a.pt")
    for pixels in ("auto", "unit"):
        made = external.read(tmp_path / "a.pt", pixels=pixels, splits=splits)
        assert made.card["pixels"].startswith("unit (-0.01") and torch.equal(made.tensors["images"], splits.train.transform(unit))


def test_the_card_of_a_set_is_held_against_the_data(tmp_path, splits, tensors, refused):
    images, labels = tensors

    def exported(classes=splits.train.classes, data=splits):
        card = {"data_digest": data.digest}
        made = Synthetic({"images": images, "targets": labels}, classes)
        return external.read(synthetic.export(made, tmp_path / "set", card, data.train.transform))

    assert external.compare(exported(), splits)[1] == []
    with refused("10 classes, of 10", "from number 8 on"):
        external.compare(exported((*splits.train.classes[:8], "9", "8")), splits)
    with refused("11 classes, of 10", "from number 10 on"):
        external.compare(exported((*splits.train.classes, "x")), splits)
    [note] = external.compare(exported(), replace(splits, train=splits.train.subset(torch.arange(1000))))[1]
    assert "another split" in note
    assert external.compare(Synthetic({"images": images, "targets": labels}), splits) == (splits, [])  # another program's


def test_a_set_is_judged_under_the_standardization_it_was_made_with(tmp_path, splits, tensors, refused):
    whitened = load("digits", normalization="zca")
    made = Synthetic({"images": whitened.train.batch(torch.arange(20)), "targets": whitened.train.targets[:20]}, whitened.train.classes)
    found = external.read(synthetic.export(made, tmp_path / "set", {"data_digest": splits.digest}, whitened.train.transform))
    here, notes = external.compare(found, splits)
    assert torch.equal(here.test.batch(torch.arange(9)), whitened.test.batch(torch.arange(9))) and not notes
    with refused("64 means", "(1, 4, 4)"):
        external.compare(found, load("digits", resize=4))


def test_command(tmp_path, tensors, capsys):
    torch.save((tensors[0], tensors[1]), tmp_path / "pair.pt")
    given = f"--data digits --width 8 --networks 2 --epochs 40 --no-flip --no-augmentation --seeds 2 --json {tmp_path}/rows.json"
    words = ["evaluate", str(tmp_path / "pair.pt"), *given.split()]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in ("pixels standardized (-", "20 stored images", "| random |", "2 x 2"))
    assert (tmp_path / "rows.json").exists()
    real = torch.nn.functional.one_hot(tensors[1], 10) - 0.1  # labels as kernel methods learn them
    torch.save((tensors[0], real), tmp_path / "pair.pt")
    assert cli.main(words) == 2 and "squared error" in capsys.readouterr().err
    assert cli.main([*words, "--loss", "half squared error"]) == 0 and "squared error" in capsys.readouterr().out
    assert cli.main([*words, "--logits"]) == 0 and cli.main([*words, "--formation", "partition2", "--logits"]) == 0
    assert cli.main([*words, "--loss", "hinge"]) == 2
    made = Synthetic({"images": tensors[0], "targets": tensors[1]}, tuple(map(str, range(10))))
    words[1] = str(synthetic.export(made, tmp_path / "own", {"data_digest": "0"}))
    assert cli.main(words) == 0 and "note: the set was made of other images" in capsys.readouterr().out
    words[1] = str(synthetic.export(replace(made, classes=tuple("abcdefghij")), tmp_path / "own", {}))
    assert cli.main(words) == 2 and "10 classes, of 10" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "none.pt"), "--data", "digits"]) == 2
    assert cli.main(["evaluate", str(tmp_path / "pair.pt"), "--data", "dogs"]) == 2
