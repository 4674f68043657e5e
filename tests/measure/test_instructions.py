"""A pool of instructions is split without overlap, and a choice of half of it is fine-tuned on and judged."""

import pytest

from distillery import store
from distillery.measure import instructions
from distillery.scores import text

pytest.importorskip("transformers")

HOW = {"masks": 2, "length": 200, "steps": 2, "lr": 3e-3, "batch": 4}


@pytest.fixture(scope="module")
def pool():
    return instructions.prepare("", "", 40, 0, **HOW)


def test_parts_are_apart_and_scored(pool):
    assert (pool.before, len(pool.entries), len(pool.held_out), len(pool.test), pool.budget) == (16, 12, 6, 6, 6)
    assert {name: len(scores) for name, scores in pool.scores.items()} == {"complexity": 12, "likelihood": 12}
    assert pool.scores["likelihood"].tolist() == pytest.approx(text.response_losses(pool.model, pool.encoded).tolist())


def test_rows_are_by_seed_and_repeat(pool):
    rows = pool.rows([0, 1])
    assert all(len(results) == 2 for results in rows.values()) and rows["before"][0]["steps"] == 0
    likelihood = float((-text.response_losses(pool.model, pool.test)).exp().mean())
    assert rows["before"][0]["accuracies"] == pytest.approx([likelihood])
    tries = [pool.tuned([0], "random", draw=i)[0] for i in range(3)]
    assert rows["random"][0]["accuracies"] == tries[0]["accuracies"]
    best = max(tries, key=lambda one: one["validation"])
    assert rows["best of random"][0]["accuracies"] == best["accuracies"]
    one = rows["easiest"][0]
    assert one["samples"] == 8 and one["steps"] == 2 and one["artifact"] is None and one["seconds"] > 0


def test_a_trained_model_sees_nothing_before(pool, tmp_path):
    path, model = tmp_path / "own.json", tmp_path / "model"
    entries = text.make_instructions(30, instructions.generator(1, "x"))
    store.write_json(path, [one._asdict() for one in entries])
    network, tokenizer = text.tiny_model(entries, instructions.generator(1, "x"))
    network.save_pretrained(model)
    tokenizer.save_pretrained(model)
    found = instructions.prepare(str(model), str(path), 0, 0, **HOW)
    assert found.before == 0 and len(found.entries) == 18 and set(found.entries) <= set(entries)
