"""Fine-tuning of a small language model: in a copy, by LoRA or of all weights, with the same bits again."""

import pytest
import torch

from distillery.data.instructions import make_instructions
from distillery.encoders.language import tiny_model
from distillery.scores.text import responses
from distillery.seeds import generator
from distillery.training import language
from distillery.training.language import finetune, response_nll, with_lora
from made_up import small_language_model

pytest.importorskip("transformers", reason="the optional extra text is not installed")


@pytest.fixture(scope="module")
def trained():
    model, _, _, encoded = small_language_model(120, 40)
    return model, encoded


@pytest.mark.parametrize("rank, lr", [(0, 3e-3), (8, 1e-2)])
def test_fine_tuning_learns_in_a_copy_and_repeats(trained, refused, rank, lr):
    if rank:
        pytest.importorskip("peft", reason="the optional extra text is not installed")
    model, encoded = trained
    before, state = responses(model, encoded[60:])[0], torch.random.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    one, again = (finetune(model, encoded, range(60, 120), 15, generator(0, "x"), lr=lr, batch=16, rank=rank) for _ in range(2))
    losses = responses(one, encoded[60:])[0]
    assert losses.mean() < before.mean() and torch.equal(losses, responses(again, encoded[60:])[0]) and not one.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    with refused("chosen"):
        finetune(model, encoded, [], 1, generator(0, "x"))


def test_lora_begins_where_the_model_is_and_trains_its_own_weights_in_float32(trained):
    pytest.importorskip("peft", reason="the optional extra text is not installed")
    encoded = trained[1]
    model, _ = tiny_model(make_instructions(120, generator(0, "entries")), generator(1, "model"))
    before = responses(model.bfloat16(), encoded[:20])[0]
    tuned = with_lora(model, 4)
    assert torch.equal(responses(tuned, encoded[:20])[0], before)
    learned = {name: one for name, one in tuned.named_parameters() if one.requires_grad}
    assert {name.split(".")[-4] for name in learned} == {"q_proj", "v_proj"} and all("lora" in name for name in learned)
    assert {one.dtype for one in learned.values()} == {torch.float32} and len(learned) == 2 * 2 * 2
    names = {name.rsplit(".lora", 1)[0] for name in learned}
    factor = {tuned.get_submodule(name).scaling["default"] for name in names}
    assert factor == {2.0}  # alpha over the rank


def test_lora_of_an_unknown_architecture(refused):
    pytest.importorskip("peft", reason="the optional extra text is not installed")
    with refused("Sequential", "rank 0"):
        with_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2)


def test_without_peft(trained, monkeypatch, refused):
    monkeypatch.setitem(language.require.__globals__, "find_spec", lambda _: None)
    with refused("peft", "distillery[text]"):
        finetune(*trained, [0], 1, generator(0, "x"))


def test_word_for_word_is_what_greedy_decoding_gives(trained):
    model, encoded = trained
    exact, told = response_nll(model, encoded)[1], []
    for one in encoded:
        ids = one.ids[: one.start]
        for _ in range(len(one.ids) - one.start):
            with torch.no_grad():
                ids = torch.cat([ids, model(input_ids=ids[None]).logits[0, -1:].argmax(-1)])
        told.append(torch.equal(ids, one.ids))
    assert exact.tolist() == told and any(told) and not all(told)
