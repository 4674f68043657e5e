"""Miniatures of the layouts that sets of clips have: what is found in which order, what is said, what is refused. No file holds a video."""

import os

import pytest

from distillery.data.video_layouts import plan_of_clips


def tree(root, *names, **texts):
    """Empty files and, for names that end in /, empty folders; and text files of some content."""
    for name in names:
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(parents=True) if name.endswith("/") else place.touch()
    for name, text in texts.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


def shape(plan):
    """By part and class the files of a plan, which come in this order."""
    parts = [slice(None, plan.n_train), slice(plan.n_train, None)]
    assert plan.labels == [label for part in parts for label in sorted(plan.labels[part])]
    return [
        {plan.classes[label]: [f for f, one in zip(plan.files[part], plan.labels[part]) if one == label] for label in plan.labels[part]}
        for part in parts
    ]


# ---------------------------------------------------------------- class folders


@pytest.mark.parametrize("top", ["", "some set/"])
def test_class_folders(tmp_path, top):
    names = [f"{top}{name}" for name in ("dog/b.mp4", "dog/a.avi", "dog/deeper/c.MKV", "cat/a.webm", "cat/b.mov", "cat/.c.mp4")]
    plan = plan_of_clips(tree(tmp_path, *names, f"{top}cat/notes.png", f"{top}dog/notes.png", f"{top}stray.mp4"))
    assert plan.classes == ["cat", "dog"] and plan.n_train == 5
    assert shape(plan)[0] == {"cat": [names[3], names[4]], "dog": [names[1], names[0], names[2]]}
    assert plan.notes == [
        f"2 file(s) that are no clips passed over: {top}cat/notes.png, {top}dog/notes.png",
        f"1 clip(s) of no part or class passed over: {top}stray.mp4",
    ]


def test_class_folders_of_folders_of_frames(tmp_path):
    frames = [f"{name}/{i}.jpg" for name in ("dog/b", "dog/a", "cat/x/c", "cat/d") for i in range(2)]
    plan = plan_of_clips(tree(tmp_path, *frames, "dog/none/", "dog/a/n_frames", "dog/cover.png"))
    assert shape(plan)[0] == {"cat": ["cat/d", "cat/x/c"], "dog": ["dog/a", "dog/b", "dog/none"]}  # the empty one is named where it is read
    assert plan.notes == ["1 file(s) that are no clips passed over: dog/cover.png"]


@pytest.mark.parametrize("parts", [("train", "test"), ("Train", "val"), ("train", "validation")])
def test_class_folders_in_parts(tmp_path, parts):
    names = [f"{part}/{name}/{i}.mp4" for part in parts for name in ("cat", "dog") for i in range(2)]
    plan = plan_of_clips(tree(tmp_path, *names))
    assert plan.files == names and plan.n_train == 4 and plan.labels == [0, 0, 1, 1] * 2
    assert plan.notes == ([] if "test" in parts else [f"{parts[1]}/ serves as test: there is no test/ with these classes"])


def test_a_part_without_classes_is_passed_over(tmp_path):
    names = [f"{part}/{name}/0.mp4" for part in ("train", "val") for name in ("cat", "dog")]
    plan = plan_of_clips(tree(tmp_path, *names, "test/0.mp4"))
    assert plan.files == names
    assert plan.notes[0].startswith("val/ serves as test") and plan.notes[1] == "1 clip(s) of no part or class passed over: test/0.mp4"


# ---------------------------------------------------------------- Kinetics

HEAD = "label,youtube_id,time_start,time_end,split\n"


def rows(part, *clips):
    return HEAD + "".join(f'"{label}",{name},{start},{start + 10},{part}\n' for label, name, start in clips)


TRAIN = rows("train", ("zumba", "b_b", 5), ("zumba", "-a", 12), ("abseiling", "cc", 100), ("abseiling", "dd", 0))
VAL = rows("val", ("zumba", "ee", 3), ("abseiling", "ff", 7))


@pytest.mark.parametrize("place", ["", "annotations/"])
@pytest.mark.parametrize("val", ["val.csv", "validate.csv", "validation.csv"])
def test_kinetics(tmp_path, place, val):
    clips = ["train/b_b_000005_000015.mp4", "train/-a_000012_000022.mp4", "train/zumba/cc_000100_000110.mkv"]
    more = [
        "replacement/all/dd_000000_000010.mp4",
        "replacement/b_b_000005_000015.mp4",
        "val/ee_000003_000013.mp4",
        "val/ff_000007_000017.mp4",
        "x_000001_000011.mp4",
    ]
    unlabelled = "youtube_id,time_start,time_end,split\nx,1,11,test\n"
    plan = plan_of_clips(tree(tmp_path, *clips, *more, **{f"{place}train.csv": TRAIN, place + val: VAL, f"{place}test.csv": unlabelled}))
    assert plan.classes == ["abseiling", "zumba"] and plan.n_train == 4
    assert shape(plan) == [{"abseiling": [more[0], clips[2]], "zumba": [clips[1], clips[0]]}, {"abseiling": [more[3]], "zumba": [more[2]]}]
    assert plan.notes == [
        "test.csv has no labels",
        f"{val} serves as test",
        "1 clip(s) are those of replacement/: replacement/all/dd_000000_000010.mp4",
        "2 clip(s) of no part or class passed over: replacement/b_b_000005_000015.mp4, x_000001_000011.mp4",
    ]


def test_kinetics_in_folders_of_frames_of_which_some_are_missing(tmp_path):
    test = rows("test", ("zumba", "gg", 1), ("abseiling", "hh", 2))
    names = ["b_b_000005_000015", "cc_000100_000110", "gg_000001_000011", "hh_000002_000012"]
    frames = [f"clips/{name}/{i:02d}.jpg" for name in names for i in range(3)]
    plan = plan_of_clips(
        tree(
            tmp_path,
            *frames,
            "clips/-a_000012_000022/",
            "replacement/-a_000012_000022/01.jpg",
            **{"train.csv": TRAIN, "val.csv": VAL, "test.csv": test},
        )
    )
    assert shape(plan)[0] == {"abseiling": [f"clips/{names[1]}"], "zumba": [f"clips/{names[0]}", "replacement/-a_000012_000022"]}
    assert plan.notes[:2] == [
        "val.csv passed over: validation clips are drawn from train.csv",
        "1 of 6 listed clips are missing: dd_000000_000010",
    ]


# ---------------------------------------------------------------- UCF101 and HMDB51


@pytest.mark.parametrize("suffix", [".avi", "/frame000001.jpg"])
def test_ucf101(tmp_path, suffix):
    names = [f"UCF-101/{name}/v_{name}_g0{i}_c01" for name in ("Archery", "YoYo") for i in (1, 2, 3)]
    lists = {}
    for split, (train, test) in enumerate((((0, 1, 3), (2, 4)), ((2, 3, 4), (0, 5))), 1):
        lines = [names[i].removeprefix("UCF-101/") + ".avi" for i in range(6)]
        lists[f"ucfTrainTestlist/trainlist0{split}.txt"] = "".join(f"{lines[i]} {1 + (i > 2)}\n" for i in train)
        lists[f"ucfTrainTestlist/testlist0{split}.txt"] = "".join(f"{lines[i]}\r\n" for i in test)
    root = tree(tmp_path, *(name + suffix for name in names), **lists, **{"ucfTrainTestlist/classInd.txt": "1 Archery\n2 YoYo\n"})
    files = [name + suffix if suffix == ".avi" else name for name in names]
    first, second = plan_of_clips(root), plan_of_clips(root, split=2)
    assert first.files == [files[i] for i in (0, 1, 3, 2, 4)] and first.n_train == 3 and first.labels == [0, 0, 1, 0, 1]
    assert second.files == [files[i] for i in (2, 3, 4, 0, 5)] and second.classes == ["Archery", "YoYo"]
    assert first.notes == ["split 1 of UCF101", f"1 clip(s) of no part or class passed over: {files[5]}"]


def test_hmdb51(tmp_path):
    names = [f"{name}/{i} #x_{name}.avi" for name in ("wave", "run") for i in range(4)]
    use = {1: "1120", 2: "2101", 3: "1212"}
    lists = {
        f"lists/testTrainMulti_7030_splits/{name}_test_split{split}.txt": "".join(f"{i} #x_{name}.avi {part} \n" for i, part in enumerate(parts))
        for name in ("wave", "run") for split, parts in use.items()
    }  # fmt: skip
    root = tree(tmp_path, *names, **lists)
    plan = plan_of_clips(root)
    assert plan.files == [names[i] for i in (4, 5, 0, 1, 6, 2)] and plan.n_train == 4 and plan.classes == ["run", "wave"]
    assert plan.notes == ["split 1 of HMDB51", f"2 clip(s) of no part or class passed over: {names[7]}, {names[3]}"]
    assert plan_of_clips(root, 3).files == [names[i] for i in (4, 6, 0, 2, 5, 7, 1, 3)]


def test_clips_of_one_name_are_told_apart_by_the_folder_of_their_class(tmp_path):
    names = [f"{name}/{i}.avi" for name in ("run", "wave") for i in (1, 2)]
    lists = {f"testTrainMulti_7030_splits/{name}_test_split1.txt": "1.avi 1\n2.avi 2\n" for name in ("run", "wave")}
    assert plan_of_clips(tree(tmp_path, *names, **lists)).files == [names[i] for i in (0, 2, 1, 3)]


# ---------------------------------------------------------------- what is refused

PLAIN = ("cat/a.mp4", "dog/b.mp4")
KINETICS = tuple(
    f"{name}.mp4"
    for name in ("b_b_000005_000015", "-a_000012_000022", "cc_000100_000110", "dd_000000_000010", "ee_000003_000013", "ff_000007_000017")
)
TABLES = {"train.csv": TRAIN, "val.csv": VAL}
UCF = {"ucfTrainTestlist/trainlist01.txt": "A/a.avi 1\nB/b.avi 2\n", "ucfTrainTestlist/testlist01.txt": "A/c.avi\nB/d.avi\n"}
UCF_CLIPS = ("A/a.avi", "B/b.avi", "A/c.avi", "B/d.avi")
HMDB = {f"testTrainMulti_7030_splits/{name}_test_split1.txt": f"{name}.avi 1\n{name}2.avi 2\n" for name in "ab"}
REFUSED = {
    "nothing": ((), {}, "holds no clips"),
    "images": (("cat/1.png", "dog/1.png"), {}, "cat/ holds images"),
    "images alone": (("1.png",), {}, "holds no clips"),
    "one class": (PLAIN[:1], {}, "1 class folder(s)"),
    "an empty class": ((*PLAIN, "owl/"), {}, "class 'owl' has no clip"),
    "a class of other files": ((*PLAIN, "owl/a.flac"), {}, "class 'owl' has no clip"),
    "both kinds": ((*PLAIN, "dog/c/1.png"), {}, "the video 'cat/a.mp4' and the folder of frames 'dog/c'"),
    "other classes": (("train/cat/a.mp4", "train/dog/a.mp4", "test/cat/b.mp4", "test/owl/b.mp4"), {}, "2 class(es) are not in both train and test: dog, owl"),
    "parts inside": (("cat/train/a.mp4", "cat/test/a.mp4", "dog/train/a.mp4"), {}, "class 'cat' holds test and train"),
    "a table alone": (KINETICS, {"train.csv": TRAIN}, "no labelled part beside train.csv"),
    "unlabelled": (KINETICS, {"train.csv": TRAIN, "test.csv": HEAD + ",ee,3,13,test\n"}, "no labelled part beside train.csv"),
    "no column": (KINETICS, TABLES | {"val.csv": "label,youtube_id\nzumba,ee\n"}, "val.csv: no column 'time_start' among label, youtube_id"),
    "an empty table": (KINETICS, TABLES | {"train.csv": ""}, "train.csv: no column 'label' among none"),
    "no time": (KINETICS, TABLES | {"val.csv": f"{HEAD}zumba,ee,soon,13,val\n"}, "val.csv, row 2: label 'zumba', youtube_id 'ee', time_start 'soon'"),
    "a short row": (KINETICS, TABLES | {"val.csv": f"{VAL}zumba,gg\n"}, "val.csv, row 4: label 'zumba', youtube_id 'gg', time_start None"),
    "no label": (KINETICS, TABLES | {"train.csv": f"{TRAIN},gg,1,11,train\n"}, "train.csv, row 6: label ''"),
    "no text": (KINETICS, TABLES | {"val.csv": f"{VAL}\0"}, "val.csv"),
    "twice in a table": (KINETICS, TABLES | {"train.csv": TRAIN + TRAIN[len(HEAD) :]}, "train.csv lists clip 'b_b_000005_000015' again"),
    "in both tables": (KINETICS, TABLES | {"val.csv": VAL + TRAIN[len(HEAD) :]}, "val.csv lists clip 'b_b_000005_000015' again, under 'zumba'"),
    "two of a name": ((*KINETICS, "more/ee_000003_000013.webm"), TABLES, "ee_000003_000013.mp4 and more/ee_000003_000013.webm"),
    "none is there": (("x/a.mp4",), TABLES, "none of 6 listed clips, such as 'b_b_000005_000015'"),
    "none of a class": (KINETICS[:2] + KINETICS[4:], TABLES, "of train.csv, class 'abseiling', no clip is there"),
    "classes of the tables": (KINETICS, TABLES | {"val.csv": VAL.replace("zumba", "Zumba")}, "2 class(es) are not in both train.csv and val.csv: Zumba, zumba"),
    "a list is missing": (UCF_CLIPS, dict([*UCF.items()][:1]), "cannot read", "testlist01.txt"),
    "a line without class": (UCF_CLIPS, UCF | {"ucfTrainTestlist/trainlist01.txt": "a.avi 1\n"}, "trainlist01.txt: 'a.avi 1'"),
    "no lists of the split": (("a/a.avi", "b/b.avi"), {"testTrainMulti_7030_splits/a_test_split2.txt": "a.avi 1\n"}, "no lists *_test_split1.txt"),
    "another number": (("a/a.avi",), HMDB | {"testTrainMulti_7030_splits/a_test_split1.txt": "a.avi 3\n"}, "a_test_split1.txt: 'a.avi 3'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_other_trees_are_refused(tmp_path, refused, what):
    names, texts, *told = REFUSED[what]
    with refused(*told):
        plan_of_clips(tree(tmp_path, *names, **texts))


@pytest.mark.parametrize("split", [2, 0, "1"])
def test_splits_are_those_of_lists(tmp_path, refused, split):
    with refused("split", split):
        plan_of_clips(tree(tmp_path, *PLAIN), split)


def test_a_circle_of_links_and_a_missing_folder_are_refused(tmp_path, refused):
    os.symlink(tmp_path, tree(tmp_path, *PLAIN) / "dog" / "up")
    with refused("up is a link to a folder above"):
        plan_of_clips(tmp_path)
    with refused("cannot read", "nowhere"):
        plan_of_clips(tmp_path / "nowhere")
