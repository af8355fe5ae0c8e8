"""config.json of a Hugging Face Llama folder -> the fields of LlamaConfig, checked.

The model is laid out by these sizes before any weight is seen, so each is checked: an integer where one
belongs (not `true`), positive, and small enough that nothing absurd is allocated. What would load but compute
something else is refused by the name of its field: biases, another activation, other rotary frequencies,
another quantisation.
"""

from pathlib import Path
from reprlib import repr as short  # a value of any size or kind in a few words, on one line

from ..errors import UserError
from .text import read_json

MAX_SIZE = 2**20  # of anything in a tensor's shape; the product of any three still fits in 63 bits
MAX_LAYERS = 1000  # each is a few Python objects; LLaMA 3.1 405B has 126
MAX_POSITIONS = 2**30  # allocates nothing
NF4_ONLY = {  # field of quantization_config -> the value it must have, and its default
    "quant_method": ("bitsandbytes", "bitsandbytes"),
    "load_in_8bit": (False, False),
    "load_in_4bit": (True, False),
    "bnb_4bit_quant_type": ("nf4", "fp4"),
    "bnb_4bit_quant_storage": ("uint8", "uint8"),
    "bnb_4bit_blocksize": (64, 64),
}


def read_llama_config(path: Path) -> dict:
    """The fields of LlamaConfig as plain values; rope_scaling is the fields of RopeScaling, or None.

    Raises UserError, which names the field, for a model that is not a Llama and for values out of range.
    """
    c = read_json(path, 2**20, "give the folder of a Hugging Face Llama checkpoint")
    try:
        _check_kind(c)
        n_heads = _integer(c, "num_attention_heads")
        dim = _integer(c, "hidden_size")
        if c.get("head_dim") is None and dim % n_heads:
            raise ValueError(f"hidden_size {dim} is not a multiple of num_attention_heads {n_heads}")
        head_dim = _integer(c, "head_dim", default=dim // n_heads)
        if head_dim % 2:
            raise ValueError(f"head_dim is {head_dim}; rotary positions need an even one")
        n_kv_heads = _integer(c, "num_key_value_heads", default=n_heads)
        if n_heads % n_kv_heads:
            raise ValueError(f"num_key_value_heads {n_kv_heads} does not divide {n_heads} query heads")
        theta, scaling = _rope(c)
        return {
            "vocab_size": _integer(c, "vocab_size"),
            "dim": dim,
            "n_layers": _integer(c, "num_hidden_layers", largest=MAX_LAYERS),
            "n_heads": n_heads,
            "n_kv_heads": n_kv_heads,
            "head_dim": head_dim,
            "ffn_dim": _integer(c, "intermediate_size"),
            "norm_eps": _number(c, "rms_norm_eps"),
            "rope_theta": theta,
            "rope_scaling": scaling,
            "tie_embeddings": _flag(c, "tie_word_embeddings"),
        }
    except ValueError as error:
        raise UserError(f"{path}: {error}; give the folder of a published Llama checkpoint") from None


def _check_kind(c: dict) -> None:
    """ValueError unless this is a Llama, in full floats or in NF4."""
    if c.get("model_type") != "llama":
        raise ValueError(f"model_type is {short(c.get('model_type'))}, not 'llama'")
    if c.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {short(c['hidden_act'])}, not a Llama's 'silu'")
    for name in ("attention_bias", "mlp_bias"):
        if _flag(c, name):
            raise ValueError(f"{name} is true; a Llama's linears have no biases")
    quantisation = _object(c, "quantization_config")
    for name, (required, default) in NF4_ONLY.items() if quantisation else ():
        value = quantisation.get(name, default)
        if type(value) is not type(required) or value != required:
            raise ValueError(
                f"quantization_config has {name} {short(value)}; supported are bitsandbytes' NF4 "
                f"({name} {required!r}) and weights that are not quantised"
            )


def _rope(c: dict) -> tuple[float, dict | None]:
    """rope_theta, and the fields of RopeScaling if the frequencies are scaled as in LLaMA 3.1."""
    # transformers 5 writes rope_parameters with all of it; before, rope_theta was outside of rope_scaling.
    rope = _object(c, "rope_scaling") or _object(c, "rope_parameters")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "llama3"):
        raise ValueError(f"rope_type is {short(rope_type)}; supported are 'default' and 'llama3'")
    for fields in (c, rope):
        if _number(fields, "partial_rotary_factor", default=1) != 1:
            raise ValueError("partial_rotary_factor is not 1; a Llama rotates whole heads")
    theta = _number(rope if rope.get("rope_theta") is not None else c, "rope_theta", default=1e4)
    if rope_type == "default":
        return theta, None
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    if high <= low:
        raise ValueError(f"high_freq_factor {high} is not above low_freq_factor {low}")
    return theta, {
        "factor": _number(rope, "factor"),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_positions": _integer(rope, "original_max_position_embeddings", largest=MAX_POSITIONS),
    }


def _integer(c: dict, name: str, default: int | None = None, largest: int = MAX_SIZE) -> int:
    value = default if c.get(name) is None else c[name]
    if type(value) is not int or not 1 <= value <= largest:  # True is an int by isinstance
        raise ValueError(f"{name} is {short(value)}; it must be an integer from 1 to {largest}")
    return value


def _number(c: dict, name: str, default: float | None = None) -> float:
    value = default if c.get(name) is None else c[name]
    if type(value) not in (int, float) or not 0 < value < 1e30:  # which refuses NaN too
        raise ValueError(f"{name} is {short(value)}; it must be a positive number")
    return float(value)


def _flag(c: dict, name: str) -> bool:
    value = c.get(name)
    if not isinstance(value, bool | None):
        raise ValueError(f"{name} is {short(value)}; it must be true or false")
    return bool(value)


def _object(c: dict, name: str) -> dict:
    value = c.get(name)
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} is {short(value)}; it must be an object")
    return value or {}
