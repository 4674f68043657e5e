"""A pool of instructions is split without overlap; each choice of a part of it is a stored run that a kill or a budget cannot lose."""

import pytest

from distillery import store
from distillery.data.instructions import make_instructions
from distillery.encoders import language
from distillery.measure import instructions
from distillery.runs import Runs
from distillery.scores import text

pytest.importorskip("peft", reason="the optional extra text is not installed")

HOW = {"masks": 2, "length": 200, "steps": 2, "lr": 3e-3, "batch": 4, "rank": 4}


def prepare(folder, n=60, **changes):
    return instructions.prepare(Runs(folder), "", "", n, 0, **HOW | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def test_parts_are_apart_and_scored(folder):
    pool = prepare(folder)
    parts = pool.split(0)
    assert (len(pool.seen), *map(len, parts)) == (24, 24, 5, 7) and sorted(sum(parts, [])) == list(range(36))
    assert parts == pool.split(0) != pool.split(1) and pool.cut == (0, 0)
    assert pool.scores["likelihood"].tolist() == pytest.approx(text.responses(pool.model, pool.encoded)[0].tolist(), rel=1e-5)
    assert pool.bills == [{"seconds": pool.scores.seconds, "samples": 3 * 36}]


def test_rows_are_by_seed_and_repeat(folder, tmp_path):
    pool = prepare(folder)
    rows, again = pool.rows([0, 1], 0.3), prepare(tmp_path).rows([0, 1], 0.3)
    told = {name: [(one["loss"], one["answers"]) for one in results] for name, results in rows.items()}
    assert told == {name: [(one["loss"], one["answers"]) for one in results] for name, results in again.items()}
    assert len(rows) == 9 and all(len(results) == 2 for results in rows.values())
    losses = text.responses(pool.model, [pool.encoded[i] for i in pool.split(1)[2]])[0]
    assert rows["before"][1]["loss"] == [pytest.approx(float(losses.mean()))]
    draws = [pool.tuned([0], 0.3, "random", draw=i)[0] for i in range(3)]
    assert rows["random"][0]["loss"] == [one["loss"][0] for one in draws] and len({*rows["random"][0]["loss"]}) == 3
    assert rows["best of 3 random"][0] == min(draws, key=lambda one: one["validation"])
    one = rows["easiest"][0]
    assert one["samples"] == 8 and one["steps"] == 2 and one["seconds"] > 0
    gains = instructions.gains(rows, "random")
    assert gains[0] == [rows["before"][0]["loss"][0] - loss for loss in rows["random"][0]["loss"]]
    assert instructions.mean_gains([rows, rows], "random")[0] == [pytest.approx(sum(gains[0]) / 3)]


def test_a_part_is_what_the_rule_keeps_of_the_pool_alone(folder, monkeypatch):
    pool, chosen = prepare(folder), []
    monkeypatch.setattr(instructions, "finetune", lambda model, encoded, kept, **_: chosen.append(kept) or model)
    pool.tuned([5], 0.25, "highest", "IFD")
    own = pool.split(5)[0]
    assert chosen == [sorted(own, key=lambda i: -pool.scores["IFD"][i])[:6]]


def test_a_second_start_computes_nothing(folder, monkeypatch):
    first = prepare(folder).rows([0, 1], 0.3)
    monkeypatch.setattr(instructions, "finetune", lambda *_, **__: pytest.fail("computed again"))
    monkeypatch.setattr(text, "responses", lambda *_, **__: pytest.fail("computed again"))
    second = prepare(folder)
    assert second.rows([0, 1], 0.3) == first and second.scores["complexity"].shape == (36,)
    assert second.runs.computed == 0 and not second.runs.missing


def test_what_a_kill_left_is_not_made_again(tmp_path, monkeypatch):
    """Stopped in the third fine-tuning of a row; the next start makes the two that are left, with the same bits."""
    whole = [one["loss"] for one in prepare(tmp_path / "whole").tuned(range(4), 0.3, "random")]
    trained, real = [], instructions.finetune

    def finetune(*given, **options):
        trained.append(1)
        if len(trained) == 4:  # the first one is that of the model before
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(instructions, "finetune", finetune)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "killed").tuned(range(4), 0.3, "random")
    trained.clear()
    found = prepare(tmp_path / "killed").tuned(range(4), 0.3, "random")
    assert len(trained) == 2 and [one["loss"] for one in found] == whole


def test_a_spent_budget_lists_what_is_missing(tmp_path):
    prepare(tmp_path).tuned([0], 0.3, "random")
    pool = prepare(tmp_path)
    pool.runs.deadline = 0
    found = pool.tuned([0, 1], 0.3, "random")
    assert found[0] and found[1] is None and pool.scores is None and not pool.runs.computed
    rows = pool.rows([0], 0.3)
    assert all(results == [None] for results in rows.values())
    assert instructions.gains(rows, "random") == [None] and instructions.mean_gains([rows], "random") == [None]


def test_other_settings_are_other_runs(tmp_path):
    runs, ids = Runs(tmp_path), []
    for changes in ({}, {"masks": 1}, {"steps": 3}, {"n": 61}, {"length": 100}, {"rank": 2}):
        instructions.prepare(runs, "", "", changes.pop("n", 60), 0, **HOW | changes).tuned([0], 0.3, "lowest", "complexity")
        ids.append(len([1 for one in tmp_path.glob("runs/*.json") if store.read_json(one)["producer"] == "instructions"]))
    assert ids == [1, 2, 3, 4, 5, 6]


def test_what_is_too_long_is_cut_and_counted(tmp_path):
    pool = prepare(tmp_path, length=20)
    assert pool.cut[0] > 0 and all(len(one.ids) <= 20 and len(one.ids) > one.start for one in pool.encoded)
    assert pool.tuned([0], 0.3, "lowest", "complexity")[0]["loss"][0] > 0


def test_no_text_is_longer_than_the_window_of_the_model(tmp_path):
    pool = prepare(tmp_path, length=5000)
    assert pool.inputs["length"] == 1024 and language.window(pool.start, 100) == 100


def test_a_trained_model_sees_nothing_before(tmp_path):
    path, model = tmp_path / "own.json", tmp_path / "model"
    entries = make_instructions(30, instructions.generator(1, "x"))
    store.write_json(path, [one._asdict() for one in entries] + [entries[0]._asdict() | {"output": ""}])
    network, tokenizer = language.tiny_model(entries, instructions.generator(1, "x"))
    network.save_pretrained(model)
    tokenizer.save_pretrained(model)
    found = instructions.prepare(Runs(tmp_path), str(model), str(path), 20, 0, **HOW)
    assert not found.seen and len(found.entries) == 20 and set(found.entries) <= set(entries) and found.silent == ["entry 31"]
    assert found.model is found.start
