"""The command line: refusals are one line with exit code 2, a run is done by its record alone, and it goes on where it stopped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from distillery import cli, data
from distillery.checks import InputError
from distillery.notebook import parameters
from distillery.notebook.types import Count, Device
from made_up import SHORTENED, class_folders, found_in_quickstart

ROOT = Path(__file__).resolve().parents[1]
BODY = """
import os
if fail == "input":
    from distillery.checks import InputError
    raise InputError("rate: 7 is not accepted; accepted: less")
if fail == "crash":
    raise RuntimeError("\\nfirst line\\nsecond line")
if fail == "mute":
    assert not fail
if fail == "die":
    os._exit(9)
if fail != "no record":
    from distillery.notebook import parameters
    from distillery.report import records
    P = parameters.settings(globals())
    folder = parameters.results_root(P.results_dir) / P.scale / "tiny" / "made-up"
    (folder / "starts").mkdir(parents=True, exist_ok=True)
    (folder / "starts" / str(os.getpid())).touch()
    missing = [{"seed": 1}] if fail == "missing" else []
    claim = records.claim("c", "ours is better", "nobody", [[0.9], [0.92]], [[0.1], [0.11]], against="random")
    records.write(folder / "record.json", notebook="tiny", key=records.record_key("tiny", vars(P)), scale=P.scale,
                  parameters=vars(P), claims=[claim], rows=[], costs={}, data={"label": "made-up", "train": 9, "test": 5}, missing=missing)
"""


@pytest.fixture
def tiny(tiny_notebook):
    return tiny_notebook(BODY)


@pytest.fixture
def run(capfd):
    """(exit code, stdout, lines of stderr that tell an error) of a command, called in this process."""

    def call(*words):
        code = cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        return code, out, [line for line in err.splitlines() if line.startswith("error: ")]

    return call


def apart(*words):
    """`run` as a user does: in a process of its own."""
    words = [sys.executable, "-m", "distillery", *map(str, words)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT / "lib")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    "words, named",
    [
        (["-p", "epic", "1"], "'epic'"),
        (["-p", "ipc", "0"], "ipc: 0"),
        (["-p", "ipc", "1.5"], "1.5"),
        (["-p", "rate", "high"], "'high'"),
        (["-p", "scale", "huge"], "'huge'"),
        (["-p", "rate", "true"], "True"),
        (["--budget", "soon"], "'soon'"),
        (["-f", "nowhere.yaml"], "nowhere.yaml"),
        (["-p", "results_dir", "/dev/null/x"], "/dev/null/x"),
        (["-p", "data_root", "~nosuchuser/x"], "~nosuchuser/x"),
        (["-p", "fail", "#2,a", "-p", "results_dir", f"{__file__}/x"], f"{__file__}/x"),
    ],
)
def test_refused_before_anything_runs(tiny, capsys, words, named):
    assert cli.main(["run", str(tiny), *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0] and "accepted" in lines[0]
    assert not (tiny.parent / "results").exists()


@pytest.mark.parametrize("words, named", [("dataset imagenet", "did you mean tiny-imagenet?"), ("n_sedes 5", "did you mean n_seeds?")])
def test_refused_before_anything_heavy_is_imported(words, named):
    code = "import sys\nfrom distillery.cli import main\nsys.exit(main(sys.argv[1:]) + 10 * ('torch' in sys.modules))"
    words = [sys.executable, "-c", code, "run", "00_quickstart", "-p", *words.split()]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT / "lib")
    assert done.returncode == 2 and named in done.stderr and len(done.stderr.splitlines()) == 1


def test_images_that_are_not_there_are_refused_before_the_kernel_starts(monkeypatch, tmp_path, run):
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: pytest.fail("executed"))
    for root in ("", tmp_path / "nowhere"):
        code, _, errors = run(
            "run", "00_quickstart", "-p", "dataset", "folder", "-p", "data_root", root, "-p", "results_dir", tmp_path / "r"
        )
        assert code == 2 and "data_root" in errors[0] and not (tmp_path / "r").exists()


def test_parameters_are_explained(run):
    code, out, _ = run("params", "00_quickstart")
    head, *lines = [line.split("  ")[0] for line in out.splitlines()]
    kinds, _ = parameters.declared(ROOT / "notebooks" / "00_quickstart.ipynb")
    assert code == 0 and lines == list(kinds) and "one of digits, mnist" in out and "root seed" in out


def test_plain_papermill_knows_every_parameter_and_refuses_others(tmp_path):
    notebook = str(ROOT / "notebooks" / "00_quickstart.ipynb")
    papermill = [sys.executable, "-m", "papermill"]
    shown = subprocess.run([*papermill, "--help-notebook", notebook], capture_output=True, text=True).stdout
    kinds, _ = parameters.declared(notebook)
    assert all(f"  {name}: " in shown for name in kinds), shown
    words = [
        *papermill,
        notebook,
        str(tmp_path / "out.ipynb"),
        "-p",
        "n_sedes",
        "5",
        "-p",
        "results_dir",
        str(tmp_path),
        "--no-progress-bar",
    ]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "lib")})
    assert done.returncode and "did you mean n_seeds?" in done.stderr


def test_a_results_folder_that_cannot_be_written(tiny, monkeypatch, capsys):
    def refuse(**where):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # the super-user may write everywhere
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: pytest.fail("executed"))
    assert cli.main(["run", str(tiny)]) == 2
    assert "cannot write" in (line := capsys.readouterr().err) and "Permission denied" in line and "accepted" in line


@pytest.mark.parametrize(
    "words, named",
    [
        (["--seed", "-1"], "--seed: -1"),
        (["--seeds", "0"], "--seeds: 0"),
        (["--epochs", "-1"], "--epochs: -1"),
        (["--width", "-1"], "--width: -1"),
        (["--networks", "0"], "--networks: 0"),
        (["--side", "-8"], "--side: -8"),
        (["--json", "set.pt/rows.json"], "cannot write set.pt/rows.json"),
        (["--json", "."], "cannot write ."),
    ],
)
def test_evaluate_refuses_before_compute_is_spent(tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("data were loaded"))
    Path("set.pt").touch()
    assert cli.main(["evaluate", "set.pt", "--data", "digits", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert named in line and "accepted" in line and [path.name for path in tmp_path.iterdir()] == ["set.pt"]


def test_a_summary_without_claims(capsys):
    record = {"path": "a/b/record.json", "notebook": "tiny", "claims": [], "missing": [], "scale": "smoke", "data": {"label": "x"}}
    cli._summary(record, "tiny")
    assert "tiny on x" in capsys.readouterr().out


def test_unknown_notebook(capsys):
    assert cli.main(["run", "99_nothing"]) == 2
    assert "00_quickstart" in capsys.readouterr().err


def test_done_by_its_record_and_only_once(tiny, run):
    code, out, _ = run("run", tiny, "-p", "ipc", "1,10", "-p", "rate", "1e-3")
    assert code == 0 and "ours is better" in out and "direction reproduced" in out
    folder = tiny.parent / "results" / "smoke" / "tiny"
    record = json.loads((folder / "made-up" / "record.json").read_text())
    assert record["parameters"]["ipc"] == [1, 10] and record["parameters"]["rate"] == 0.001
    assert (folder / "made-up" / "tiny.executed.ipynb").exists() and "replaced" not in out
    starts = len(list((folder / "made-up" / "starts").iterdir()))
    assert cli.main(["run", str(tiny), "-p", "ipc", "1,10", "-p", "rate", "1e-3"]) == 0
    assert len(list((folder / "made-up" / "starts").iterdir())) == starts  # nothing was executed again
    assert cli.main(["report"]) == 0
    assert "record of other parameters" in run("run", tiny, "-p", "ipc", "2")[1]


def test_two_runs_on_one_folder_wait_for_each_other(tiny_notebook):
    """Both count as done, no run is computed twice, and each says what it did on stderr and in its log."""
    body = """
import time
from distillery.notebook import parameters
from distillery.notebook.standard import Standard
from distillery.report import records
S = Standard()
S.p, S.notebook, S.began = parameters.settings(globals()), "tiny", time.monotonic()
def compute(key):
    time.sleep(0.5)
    return {"accuracies": [0.5]}
for i in range(8):
    S.runs.try_get("made", 1, {"seed": i}, "d", compute, f"run {i}")
(S.folder / f"computed {S.runs.computed} {time.time()}").touch()
records.write(S.folder / "x" / "record.json", notebook="tiny", key=records.record_key("tiny", vars(S.p)), scale="smoke", parameters=vars(S.p),
              claims=[], rows=[], costs=records.cost(1.0, S.runs, []), data={"label": "x", "train": 9, "test": 5}, missing=[])
"""
    notebook = tiny_notebook(body)
    words = [sys.executable, "-m", "distillery", "run", str(notebook), "--wait"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT / "lib") for _ in range(2)]
    told = [one.communicate(timeout=300)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    folder = notebook.parent / "results" / "smoke" / "tiny"
    assert sum(int(path.name.split()[1]) for path in folder.glob("computed *")) == 8 == len(list((folder / "runs").iterdir()))
    for lines in told:
        assert [line[:11] for line in lines.splitlines()] == [f"[{i + 1:>3}] run {i}" for i in range(8)]
    assert (folder / "x" / "log.txt").read_text() in told and not list(folder.glob("*.ipynb"))


def test_a_complete_record_stays_beside_an_incomplete_run(tiny, run):
    assert run("run", tiny)[0] == 0
    [kept] = (tiny.parent / "results").rglob("record.json")
    before = kept.read_bytes()
    for _ in range(2):  # an incomplete run is not done
        code, out, _ = run("run", tiny, "-p", "fail", "missing")
        assert code == 0 and "1 run(s) are not run" in out and kept.read_bytes() == before
    assert len(list(kept.parent.glob("record.*.json"))) == 1
    assert "is done" in run("run", tiny)[1]


def test_the_log_of_a_kernel_is_not_told(tiny_notebook, capfd):
    """A kernel may be interrupted between its last cell and its end, and logs that as an error."""
    notebook = tiny_notebook("import sys\nget_ipython().kernel.log.error('KeyboardInterrupt caught in kernel.')\nsys.exit('ended')")
    assert cli.main(["run", str(notebook)]) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert "SystemExit: ended" in line


@pytest.mark.parametrize("fail, code", [("input", 2), ("crash", 1), ("mute", 1), ("die", 1), ("no record", 1)])
def test_failures_are_one_line(tiny, run, fail, code):
    got, _, errors = (apart if fail == "die" else run)("run", tiny, "-p", "fail", fail)
    assert got == code and len(errors) == 1
    if fail == "input":
        assert errors[0] == "error: rate: 7 is not accepted; accepted: less"
    told = {"crash": "error: cell 3: RuntimeError: first line;", "mute": "error: cell 3: AssertionError: no message;"}
    assert errors[0].startswith(told.get(fail, "error: "))


def test_a_kill_leaves_no_part_of_a_notebook(tiny_notebook, tmp_path):
    notebook = tiny_notebook("import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(5)")
    words = [sys.executable, "-m", "distillery", "run", str(notebook)]
    assert subprocess.run(words, capture_output=True, cwd=ROOT / "lib").returncode == -9
    assert not [one for one in (tmp_path / "results").rglob("*") if one.is_file()]


def test_the_kernel_is_that_of_this_python(tiny_notebook, tmp_path, monkeypatch, run):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "another", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    notebook = tiny_notebook("import sys\nfrom distillery.checks import InputError\nraise InputError(sys.executable)")
    assert run("run", notebook)[2] == [f"error: {sys.executable}"]


def test_output_that_cannot_be_shown_or_is_not_read():
    committed = ["--results", str(ROOT / "results")]
    words = [sys.executable, "-m", "distillery", "report", *committed]
    done = subprocess.run(words, capture_output=True, cwd=ROOT / "lib", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"\\xb1" in done.stdout and done.stdout.isascii() and not done.stderr
    for ended, call in ((141, words), (0, [*words[:3], "--help"])):  # argparse minds no closed pipe
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(call, stdout=write, stderr=subprocess.PIPE, cwd=ROOT / "lib")
        os.close(write)
        assert done.returncode == ended and not done.stderr


def test_report_without_records(tmp_path, capsys):
    assert cli.main(["report", "--results", str(tmp_path)]) == 2
    assert "no record" in capsys.readouterr().err


def test_settings_of_a_notebook():
    """Plain papermill injects values into the notebook's globals; the notebook refuses what the command line refuses."""
    space = {"__annotations__": {"ipc": list[Count], "device": Device}, "ipc": 3, "device": "cpu"}
    assert parameters.settings(space).ipc == [3]
    with pytest.raises(InputError, match="tpu"):
        parameters.settings(space | {"device": "tpu"})


@pytest.mark.slow
def test_quickstart_on_a_folder_nobody_tuned_for(tmp_path, run):
    """Grey images; README's line on coloured ones is run by test_documents.py."""
    class_folders(tmp_path / "images", "L", (28, 28))
    words = ["-p", "dataset", "folder", "-p", "data_root", tmp_path / "images", "-p", "results_dir", tmp_path / "results"]
    code, out, errors = run("run", "00_quickstart", *words, *SHORTENED)
    assert code == 0, (out, errors)
    found_in_quickstart(tmp_path / "results" / "smoke" / "00_quickstart", "images")


@pytest.mark.slow
def test_quickstart_on_one_image_a_class_of_odd_names(tmp_path, run):
    """One training image of each class is left, all black in one of them; names hold a dollar, a byte that is no UTF-8, and Markdown."""
    root = tmp_path / "my_*pets*"
    class_folders(root / "train", "RGB", (16, 16))
    for label, name in enumerate(("$a_$", "caf\udce9", "*dog*")):
        (root / "train" / f"class {label}").rename(root / "train" / name)
        for image in sorted((root / "train" / name).iterdir())[2:]:
            image.unlink()
    for image in (root / "train" / "*dog*").iterdir():
        Image.new("RGB", (16, 16)).save(image)
    shutil.copytree(root / "train", root / "test")
    code, out, _ = run("data", "check", root)
    assert code == 0 and out.endswith("\nusable\n")
    words = ["-p", "dataset", "folder", "-p", "data_root", root, "-p", "results_dir", tmp_path / "results"]
    code, out, errors = run("run", "00_quickstart", *words, *SHORTENED)
    assert code == 0, (out, errors)
    found_in_quickstart(tmp_path / "results" / "smoke" / "00_quickstart", root.name)
