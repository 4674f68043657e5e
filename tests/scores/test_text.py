"""Scores of instructions by a small language model that is trained for a second: losses, complexity, IFD; shards that are stored."""

import json

import pytest
import torch
from scipy.stats import spearmanr

from distillery import selection
from distillery.data.instructions import TASKS, encode, shards
from distillery.runs import Runs
from distillery.scores import text
from distillery.scores.complexity import maskable, masked_plain
from distillery.scores.text import response_loss_plain, responses, score
from distillery.seeds import generator
from made_up import small_language_model

pytest.importorskip("transformers", reason="the optional extra text is not installed")


@pytest.fixture(scope="module")
def trained():
    return small_language_model(300, 60)


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """Of the other half, in two shards."""
    model, tokenizer, entries, _ = trained
    return score(model, tokenizer, [entries[150:250], entries[250:]], Runs(tmp_path_factory.mktemp("runs")))


def test_losses_are_their_definition(trained):
    model, _, _, encoded = trained
    wanted = [response_loss_plain(model, one) for one in encoded[:12]]
    assert responses(model, encoded[:12])[0].tolist() == pytest.approx(wanted, rel=1e-4)


def test_losses_do_not_depend_on_the_batch(trained, monkeypatch):
    model, _, _, encoded = trained
    many = responses(model, encoded[:40])[0]
    monkeypatch.setattr(text, "batches", lambda encoded, device: [[i] for i in range(len(encoded))])
    assert torch.allclose(responses(model, encoded[:40])[0], many, rtol=1e-4)


def test_batches_hold_so_many_tokens_and_everything_once(trained):
    encoded = trained[3]
    found = text.batches(encoded, torch.device("cpu"))
    assert sorted(i for one in found for i in one) == list(range(300))
    assert all(len(one) * max(len(encoded[i].ids) for i in one) <= 1024 for one in found)
    lengths = [len(encoded[i].ids) for one in found for i in one]
    assert lengths == sorted(lengths) and len(found) < 30


def test_scores_are_their_definitions(trained, scored):
    """Masks: shares 0, .2 and .4 of the original weights of every linear layer but the head, written into a copy."""
    model, tokenizer, entries, encoded = trained
    wanted = []
    for share in (0, 0.2, 0.4):
        again = type(model)(model.config).eval()
        again.load_state_dict(model.state_dict())
        names = maskable(again)
        assert len(names) == 14 and not any("head" in name or "embed" in name for name in names)
        found = masked_plain({name: again.get_parameter(name) for name in names}, share, "layer")
        with torch.no_grad():
            for name in names:
                again.get_parameter(name).copy_(found[name])
        wanted.append(responses(again, encoded[150:])[0])
    assert torch.allclose(scored.path, torch.stack(wanted), rtol=1e-4)
    assert torch.equal(scored["complexity"], scored.path.mean(0)) and torch.equal(scored["likelihood"], scored.path[0])
    bare = responses(model, encode(tokenizer, entries[150:], alone=True))[0]
    assert torch.allclose(scored["IFD"], wanted[0] / bare, rtol=1e-3)
    assert scored["length"].tolist() == [len(one.output) + 1 for one in entries[150:]]  # characters and the end


def test_a_path_of_one_is_the_plain_loss(trained, tmp_path):
    model, tokenizer, entries, encoded = trained
    found = score(model, tokenizer, [entries[:20]], Runs(tmp_path), masks=1)
    assert torch.equal(found["complexity"], responses(model, encoded[:20])[0])


def test_scoring_leaves_the_model_as_it_was(trained, tmp_path):
    model, tokenizer, entries, _ = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score(model, tokenizer, [entries[:8]], Runs(tmp_path))
    assert not model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_complexity_beside_plain_likelihood(trained, scored, tmp_path):
    """On instructions it has not seen: another order under strong masks, nearly the same under the published ones."""
    model, tokenizer, entries, _ = trained
    strong = score(model, tokenizer, [entries[150:]], Runs(tmp_path), interval=0.45)
    close, far = (float(spearmanr(one["complexity"], one["likelihood"])[0]) for one in (scored, strong))
    assert far < close <= 1 and close > 0.9


def test_what_was_learned_is_less_complex(trained, scored):
    counts = torch.tensor([one.instruction == TASKS["count"][0] for one in trained[2][150:]])
    assert scored["complexity"][counts].mean() < scored["complexity"][~counts].mean()  # one digit of four


def test_flexrand_without_classes(scored):
    for gamma in (0.25, 0.75):
        kept = selection.select(scored["complexity"], 75, None, "flexrand", generator(0, "x"), gamma)
        assert len(set(kept.tolist())) == 75


@pytest.fixture
def file(trained, tmp_path):
    """Thirty lines, of which one has no response."""
    lines = [one._asdict() for one in trained[2][:30]]
    lines[7]["output"] = ""
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "a.jsonl"


def test_what_a_kill_left_is_not_made_again(trained, file, tmp_path, monkeypatch):
    """Stopped in the fifth of eight passes over a shard; the next start makes the four that are left, with the same bits."""
    model, tokenizer = trained[:2]
    parts, how = shards(file, 16), {"masks": 3, "length": 44}
    whole, made, real = score(model, tokenizer, parts, Runs(tmp_path / "whole"), **how), [], text.responses

    def counted(*given):
        made.append(1)
        if len(made) == 5:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(text, "responses", counted)
    with pytest.raises(KeyboardInterrupt):
        score(model, tokenizer, parts, Runs(tmp_path / "killed"), **how)
    made.clear()
    runs = Runs(tmp_path / "killed")
    found = score(model, tokenizer, parts, runs, **how)
    assert len(made) == 4 and runs.computed == 4 and runs.reused == 4
    assert torch.equal(found.path, whole.path) and torch.equal(found.alone, whole.alone) and found.path.shape == (3, 29)
    assert found.silent == ["line 8"] and found.prompts == whole.prompts and found.responses == whole.responses > 0


def test_a_spent_budget_gives_no_scores(trained, file, tmp_path):
    runs = Runs(tmp_path)
    runs.deadline = 0
    assert score(*trained[:2], shards(file, 16), runs) is None and len(runs.missing) == 2


def test_scores_on_ray_have_the_same_bits(trained, file, tmp_path, ray):
    model, tokenizer = trained[:2]
    here, there = (
        score(model, tokenizer, shards(file, 16), Runs(tmp_path / engine), masks=2, engine=engine) for engine in ("local", "ray")
    )
    assert torch.equal(here.path, there.path) and torch.equal(here.alone, there.alone) and here.silent == there.silent
