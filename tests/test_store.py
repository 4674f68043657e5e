"""Atomic writes, tensors with their digest, identities, locks, finished runs."""

import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from distillery import store
from distillery.checks import InputError
from distillery.lock import lock
from distillery.runs import Runs
from distillery.store import identity, load_tensors, save_tensors, tensor_digest, write_bytes


def tensors():
    return {
        "images": torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
        "targets": torch.tensor([0, 1, 2]),
        "step": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
    }


# Writing


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    write_bytes(path, b"first and longer")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = write_bytes(tmp_path / "a.bin", b"old")
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(path.read_bytes()) or fsync(handle))
    write_bytes(path, b"new")
    assert seen[0] == b"old" and path.read_bytes() == b"new"


def test_a_full_disk_gives_one_line_and_keeps_the_old_file(tmp_path, refused):
    """The system refuses to write beyond 4096 bytes, as it refuses on a full disk."""
    path = tmp_path / "set.safetensors"
    save_tensors(path, {"x": torch.zeros(10)}, {"card": "old"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with refused(path):
            save_tensors(path, {"x": torch.ones(10000)}, {"card": "new"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    old, card = load_tensors(path)
    assert torch.equal(old["x"], torch.zeros(10)) and card == {"card": "old"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", ["{}/file/new", "{}/file", "/proc", "/proc/new"])
def test_a_folder_where_nothing_can_be_written_is_refused(tmp_path, folder, refused):
    (tmp_path / "file").write_text("in the way")
    with refused(folder.format(tmp_path)):
        write_bytes(folder.format(tmp_path) + "/a.bin", b"x")


def test_half_a_write_left_by_a_killed_process_does_not_matter(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors(), {"n": 1})
    for pid in (os.getpid(), 12345):
        (tmp_path / f".a.safetensors.{socket.gethostname()}.{pid}.tmp").write_bytes(path.read_bytes()[:40])
    save_tensors(path, tensors(), {"n": 2})
    assert load_tensors(path)[1] == {"n": 2}


# Tensors


def test_tensors_and_card_come_back(tmp_path):
    card = {"name": "ü", "numbers": [1, 2.5, None], "nested": {"yes": True}}
    digest = save_tensors(tmp_path / "a.safetensors", tensors(), card)
    back, read = load_tensors(tmp_path / "a.safetensors")
    assert read == card and back.keys() == tensors().keys()
    for name, value in tensors().items():
        assert torch.equal(back[name], value) and back[name].dtype == value.dtype
    assert tensor_digest(back) == tensor_digest(tensors())
    assert digest != save_tensors(tmp_path / "b.safetensors", tensors(), card | {"name": "o"})


def test_a_changed_card_is_corrupt(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors(), {"formation": "identity"})
    path.write_bytes(path.read_bytes().replace(b"identity", b"idendity"))
    with pytest.raises(InputError, match="corrupt"):
        load_tensors(path)


def test_digest_sees_names_types_shapes_and_values():
    x = torch.arange(6.0)
    variants = [{"x": x}, {"y": x}, {"x": x.double()}, {"x": x.view(2, 3)}, {"x": x + 1e-6}, {"x": x, "y": x}]
    assert len({tensor_digest(variant) for variant in variants}) == 6
    assert tensor_digest({"a": x, "b": x + 1}) == tensor_digest({"b": x + 1, "a": x})
    assert tensor_digest({"x": x.view(2, 3).T.contiguous().T}) == tensor_digest({"x": x.view(2, 3)})


def test_every_truncation_is_found(tmp_path, refused):
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors(), {"n": 1})
    content = path.read_bytes()
    for length in [0, 1, 7, 8, 9, *range(10, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:length])
        with refused(path):
            load_tensors(path)


def test_a_changed_byte_is_found_or_changes_no_tensor(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors(), {"n": 1})
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    found = 0
    for at in range(0, len(content)):
        if at < data and at % 3:
            continue
        changed = bytearray(content)
        changed[at] ^= 0x11
        path.write_bytes(changed)
        try:
            back, _ = load_tensors(path)
        except InputError as error:
            assert "accepted" in str(error) and "\n" not in str(error)
            found += at >= data
        else:
            assert at < data and tensor_digest(back) == tensor_digest(tensors())
    assert found == len(content) - data


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"not tensors at all, rather a text" * 9])
def test_other_files_are_refused(tmp_path, content, refused):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with refused(path):
        load_tensors(path)


def test_missing_files_folders_and_foreign_safetensors_are_refused(tmp_path, refused):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    for name in ("missing.safetensors", "", "foreign.safetensors"):
        with refused(tmp_path / name):
            load_tensors(tmp_path / name)


def test_file_digest_is_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert store.file_digest(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


# Identities


def test_identity_sees_producer_version_inputs_and_data():
    base = ("DM", 1, {"ipc": 1, "lr": 0.1}, "data")
    others = [
        ("DC", 1, {"ipc": 1, "lr": 0.1}, "data"),
        ("DM", 2, {"ipc": 1, "lr": 0.1}, "data"),
        ("DM", 1, {"ipc": 1, "lr": 0.2}, "data"),
        ("DM", 1, {"ipc": "1", "lr": 0.1}, "data"),
        ("DM", 1, {"ipc": 1, "lr": 0.1}, "other"),
    ]
    assert len({identity(*key) for key in [base, *others]}) == 6
    assert identity("DM", 1, {"lr": 0.1, "ipc": 1}, "data") == identity(*base)
    assert re.fullmatch("[0-9a-f]{16}", identity(*base))


# Locks

OWNER = """
import sys, time
from distillery.lock import lock
with lock(sys.argv[1]):
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """A living process that owns x.lock."""
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "x.lock")], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"in\n"
        yield child
        child.kill()


def test_a_lock_is_held_and_let_go(tmp_path):
    path = tmp_path / "runs" / "x.lock"
    with lock(path):
        assert str(os.getpid()) in path.read_text()
    assert not path.exists()
    with pytest.raises(KeyError), lock(path):
        raise KeyError
    assert not path.exists()


def test_a_living_owner_is_respected_waited_for_and_followed_when_it_dies(tmp_path, owner, refused):
    path = tmp_path / "x.lock"
    with refused(f"process {owner.pid} on {socket.gethostname()}"), lock(path):
        pass
    threading.Timer(0.5, owner.kill).start()
    began = time.monotonic()
    with lock(path, wait=True):
        assert time.monotonic() - began > 0.4
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b'{"pid": 1', b'{"pid": "x", "host": []}', b"[1]", b"1" * 9999])
def test_what_a_dead_process_left_is_taken_over(tmp_path, content):
    path = tmp_path / "x.lock"
    path.write_bytes(content)
    with lock(path):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    assert not path.exists()


def test_an_owner_whose_lock_was_removed_leaves_the_new_one(tmp_path):
    path = tmp_path / "x.lock"
    with lock(path):
        path.unlink()
        path.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("harm", ["a folder in its place", "a file for a folder", "no locks"])
def test_a_lock_that_cannot_be_made_is_refused(tmp_path, monkeypatch, harm, refused):
    path = tmp_path / "runs" / "x.lock"
    if harm == "no locks":
        monkeypatch.setattr("fcntl.flock", lambda *_: os.stat(tmp_path / "an error of the system"))
    elif harm == "a file for a folder":
        path.parent.write_text("")
    else:
        path.mkdir(parents=True)
    with refused(path), lock(path):
        pass


WORKER = """
import sys, time
from pathlib import Path
from distillery.lock import lock
assert not {"torch", "numpy"} & sys.modules.keys()
folder, name = Path(sys.argv[1]), sys.argv[2]
while not (folder / "go").exists():
    time.sleep(0.001)
for i in range(20):
    with lock(folder / "x.lock", wait=True):
        (folder / "inside").touch(exist_ok=False)
        time.sleep(0.002)
        (folder / "inside").unlink()
        if i == 9 and name == "0":
            import os
            os._exit(0)  # dies as the owner
"""


def test_only_one_worker_is_inside(tmp_path):
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(i)], stderr=subprocess.PIPE) for i in range(4)]
    (tmp_path / "go").touch()
    errors = [worker.communicate()[1] for worker in workers]
    assert not any(worker.returncode for worker in workers), errors
    with lock(tmp_path / "x.lock"):  # the one that died may have been the last to hold it
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["go"]


# Runs


def counting(value=1.5):
    calls = []

    def compute(key):
        calls.append(key)
        return {"accuracy": value, "list": [1, None]}

    return compute, calls


def test_a_run_is_computed_once(tmp_path):
    compute, calls = counting()
    runs = Runs(tmp_path)
    first = runs.get("p", 1, {"ipc": 1}, "data", compute)
    again = Runs(tmp_path)
    assert again.get("p", 1, {"ipc": 1}, "data", compute) == first == {"accuracy": 1.5, "list": [1, None]}
    assert (runs.computed, runs.reused, again.computed, again.reused) == (1, 0, 0, 1)
    assert calls == [identity("p", 1, {"ipc": 1}, "data")]
    again.get("p", 1, {"ipc": 2}, "data", compute)
    assert len(calls) == 2
    assert not list(tmp_path.rglob("*.lock"))


def test_runs_of_other_folders_are_read_and_nothing_is_written_there(tmp_path):
    compute, calls = counting()
    other = Runs(tmp_path / "other")
    first = other.get("p", 1, {"ipc": 1}, "data", compute)
    (other.folder / "artifacts").mkdir()
    other.artifact("kept").touch()
    before = sorted(other.folder.rglob("*"))
    runs = Runs(tmp_path / "own", also=[tmp_path / "none", other.folder])
    assert runs.get("p", 1, {"ipc": 1}, "data", compute) == first and runs.get("p", 1, {"ipc": 2}, "data", compute)
    assert len(calls) == 2 and (runs.computed, runs.reused) == (1, 1) and sorted(other.folder.rglob("*")) == before
    assert runs.artifact("kept").is_relative_to(other.folder) and runs.artifact("new").is_relative_to(runs.folder)
    assert runs.own("kept").is_relative_to(runs.folder)


def test_a_failed_run_is_not_stored(tmp_path):
    runs = Runs(tmp_path)

    def fail(key):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        runs.get("p", 1, {}, "data", fail)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.lock"))
    assert runs.get("p", 1, {}, "data", counting()[0])["accuracy"] == 1.5


def test_a_spent_budget_starts_nothing_and_lists_what_is_missing(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    runs = Runs(tmp_path, budget_minutes=2)
    compute, calls = counting()
    assert runs.get("p", 1, {"ipc": 1}, "data", compute)
    now[0] = 119
    assert not runs.spent()
    now[0] = 121
    assert runs.get("p", 1, {"ipc": 2}, "data", compute) is None
    assert runs.get("p", 1, {"ipc": 1}, "data", compute)  # what is there is read all the same
    assert runs.missing == [{"ipc": 2}] and len(calls) == 1


def test_a_budget_that_waiting_for_another_process_took_starts_nothing(tmp_path, monkeypatch):
    runs, answers = Runs(tmp_path, budget_minutes=2), iter([False, True])
    monkeypatch.setattr(runs, "spent", lambda: next(answers))
    compute, calls = counting()
    assert runs.get("p", 1, {"ipc": 1}, "data", compute) is None
    assert not calls and runs.missing == [{"ipc": 1}]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("1.5", "1.6"),
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: re.sub('"id": "....', '"id": "0000', text),
    ],
    ids=["changed", "truncated", "empty", "another kind", "another run"],
)
def test_a_corrupt_run_is_refused(tmp_path, damage, refused):
    compute, calls = counting()
    Runs(tmp_path).get("p", 1, {}, "data", compute)
    path = Runs(tmp_path).path(calls[0])
    path.write_text(damage(path.read_text()))
    with refused(path):
        Runs(tmp_path).get("p", 1, {}, "data", compute)
    assert len(calls) == 1
    path.unlink()
    assert Runs(tmp_path).get("p", 1, {}, "data", compute) and len(calls) == 2


def test_json_is_read_whole_or_refused(tmp_path, refused):
    path = store.write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    assert store.read_json(path) == {"b": 1, "a": [1.5, None]}
    with refused(tmp_path / "missing.json"):
        store.read_json(tmp_path / "missing.json")


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "text", ['{"b": 1', DEEP, "NaN", "[-Infinity]", "1e999", "9" * 25, "9" * 5000, "\udcff"], ids=lambda text: text[:8]
)
def test_no_json_but_plain_values_is_read(tmp_path, text, refused):
    from safetensors.torch import save_file

    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    with refused(tmp_path / "a.json", "remove it"):
        store.read_json(tmp_path / "a.json")
    card = text.encode(errors="replace").decode()
    for meta in (card, f'{{"digest": "", "card": {card}}}'):
        save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors", {"distillery": meta})
        for verify in (False, True):
            with refused(tmp_path / "a.safetensors"):
                load_tensors(tmp_path / "a.safetensors", verify)


@pytest.mark.parametrize(
    "meta", ["[]", "3", "null", '{"digest": ""}', '{"card": {}}', '{"digest": "", "card": []}', '{"digest": "", "card": 3}']
)
def test_metadata_of_the_wrong_kind_are_refused(tmp_path, meta, refused):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors", {"distillery": meta})
    for verify in (False, True):
        with refused(tmp_path / "a.safetensors", "no distillery card"):
            load_tensors(tmp_path / "a.safetensors", verify)
