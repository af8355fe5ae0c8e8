"""config.json of a Hugging Face Llama folder -> LlamaConfig, or one line that names the field that is wrong.

The file comes from anywhere, and what it says is believed before any weight is seen: the model is laid out by
its sizes, the tensors are checked against them. So each field has its type and its range: no 10^9 layers, no
head of odd width, no `true` where a number stands. The ranges end well above the largest Llama (3.1 405B).
What would load but compute something else (biases, another activation, other rotary frequencies, weights
quantised otherwise) is refused by name.
"""

import json
from pathlib import Path
from reprlib import repr as short  # of values of any size and kind: a few words, on one line

from ..errors import UserError
from ..llama import LlamaConfig, RopeScaling

LARGEST = {  # 405B has 126 layers 16,384 wide with 128 heads, 53,248 in the feed-forward, 128,256 tokens
    "vocab_size": 2**20,
    "hidden_size": 2**16,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 1024,
    "intermediate_size": 2**18,
    "max_position_embeddings": 2**27,
    "original_max_position_embeddings": 2**27,
}
NF4_ONLY = {  # of a quantization_config: field -> what it must be, and what it is where it does not stand
    "quant_method": ("bitsandbytes", "bitsandbytes"),
    "load_in_8bit": (False, False),
    "load_in_4bit": (True, False),
    "bnb_4bit_quant_type": ("nf4", "fp4"),
    "bnb_4bit_quant_storage": ("uint8", "uint8"),
    "bnb_4bit_blocksize": (64, 64),
}


def read_config(path: Path) -> LlamaConfig:
    """The sizes and constants of a Llama; UserError for any other model, and for what is out of range."""
    c = read_json(path, max_bytes=2**20)
    try:
        _check_kind(c)
        n_heads = _size(c, "num_attention_heads")
        dim = _size(c, "hidden_size")
        if c.get("head_dim") is None and dim % n_heads:
            raise ValueError(f"hidden_size {dim} does not divide into num_attention_heads {n_heads}")
        theta, scaling = _rope(c)
        config = LlamaConfig(
            vocab_size=_size(c, "vocab_size"),
            dim=dim,
            n_layers=_size(c, "num_hidden_layers"),
            n_heads=n_heads,
            n_kv_heads=_size(c, "num_key_value_heads", n_heads),
            head_dim=_size(c, "head_dim", dim // n_heads),
            ffn_dim=_size(c, "intermediate_size"),
            norm_eps=_number(c, "rms_norm_eps", 1e-12, 1e-1),
            rope_theta=theta,
            rope_scaling=scaling,
            max_positions=_size(c, "max_position_embeddings"),
            tie_embeddings=_flag(c, "tie_word_embeddings"),
        )
        if config.head_dim % 2:
            raise ValueError(f"head_dim is {config.head_dim}; rotary positions need an even one")
        if n_heads % config.n_kv_heads:
            raise ValueError(f"num_key_value_heads {config.n_kv_heads} does not divide {n_heads} query heads")
        return config
    except ValueError as error:
        raise UserError(f"{path}: {error}; give the folder of a Llama checkpoint, as published") from None


def read_json(path: Path, max_bytes: int) -> dict:
    """The object in a JSON file. UserError where that is not what the file holds, or where it is larger."""
    try:
        if not path.is_file():  # nor a pipe, which would be waited for
            raise UserError(f"{path} is missing: give the folder of a Hugging Face Llama checkpoint")
        if path.stat().st_size > max_bytes:
            raise UserError(f"{path} has more than {max_bytes} bytes, no Llama's has; download it again")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object but {short(value)}; download it again")
    return value


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
    for name, (wanted, default) in NF4_ONLY.items() if quantisation else ():
        value = quantisation.get(name, default)
        if type(value) is not type(wanted) or value != wanted:
            raise ValueError(
                f"quantization_config has {name} {short(value)}; read are bitsandbytes' NF4 "
                f"({name} {wanted!r}) and weights that are not quantised"
            )


def _rope(c: dict) -> tuple[float, RopeScaling | None]:
    """rope_theta, and LLaMA 3.1's stretch if there is one."""
    # transformers 5 writes rope_parameters with all of it, earlier ones rope_scaling and, outside, rope_theta
    rope = _object(c, "rope_scaling") or _object(c, "rope_parameters")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"rope_type is {short(kind)}; known are 'default' and 'llama3'")
    for place in (c, rope):
        if _number(place, "partial_rotary_factor", 0, 1, 1) != 1:
            raise ValueError("partial_rotary_factor is not 1; a Llama rotates whole heads")
    theta = _number(rope if rope.get("rope_theta") is not None else c, "rope_theta", 1, 1e12, 1e4)
    if kind == "default":
        return theta, None
    low = _number(rope, "low_freq_factor", 1e-3, 1e6)
    high = _number(rope, "high_freq_factor", 1e-3, 1e6)
    if high <= low:
        raise ValueError(f"high_freq_factor {high} is not above low_freq_factor {low}")
    original = _size(rope, "original_max_position_embeddings")
    return theta, RopeScaling(_number(rope, "factor", 1, 1e6), low, high, original)


def _size(c: dict, name: str, default: int | None = None) -> int:
    value = c.get(name)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= LARGEST[name]:  # bool is an int, and no size
        raise ValueError(f"{name} is {short(value)}; it must be a whole number from 1 to {LARGEST[name]}")
    return value


def _number(c: dict, name: str, low: float, high: float, default: float | None = None) -> float:
    value = c.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not low <= value <= high:  # not NaN either
        raise ValueError(f"{name} is {short(value)}; it must be a number from {low:g} to {high:g}")
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
