"""Shared by the tests: a tiny checkpoint folder, made by transformers and tokenizers, and short runs."""

import io
import json

import pytest
import torch
from PIL import Image

from llamaxr.data.phantom import phantom

REPORTS = [
    "The heart is normal in size. The lungs are clear. No pneumothorax or pleural effusion.",
    "There is a calcified granuloma in the left upper lobe, 12 mm. Heart size is normal.",
    "Cardiomegaly. Small right pleural effusion. Don't exclude 3's and it's XXXX.",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def write_base(
    folder, words="llama3", n_heads=4, n_kv_heads=2, head_dim=16, tied=True, rope_scaling=None, seed=0
):
    """Make a random Llama checkpoint with a BPE tokenizer; returns transformers' model and tokenizers'
    tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = {
        "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "digits": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "llama3": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(llama3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    }[words]
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        REPORTS * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=448, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads, head_dim=head_dim, max_position_embeddings=4096,
        tie_word_embeddings=tied,
        rope_scaling=rope_scaling, bos_token_id=0, eos_token_id=1, pad_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return model, tokenizer


def sentencepiece_model(texts=REPORTS, vocab_size=420, **changes) -> bytes:
    """A tokenizer.model trained with the settings of Llama 2's."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    settings = dict(
        model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
    )  # fmt: skip
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=vocab_size, num_threads=1,
        minloglevel=2, **settings | changes,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with a tiny random Llama (2 layers, dim 64, vocabulary 448)."""
    folder = tmp_path_factory.mktemp("base")
    write_base(folder)
    return folder


def short_run(root) -> list:
    """train.py's options for six short steps on the IU X-ray layout in root, with the tiny networks."""
    return ["--data", "iu_xray", "--base", "tiny", "--vision", "tiny", "--root", root,
            "--cache", root / "cache", "--device", "cpu", "--steps", 6, "--val-every", 3,
            "--max-report-tokens", 30, "--n-samples", 1, "--warmup-share", 0.34]  # fmt: skip


def untimed(path) -> list[dict]:
    """The rows of a JSONL file, without the speed."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "report_tokens_per_s"} for row in rows]


def lay_out_phantoms(root, n_train: int, n_val: int, n_test: int) -> dict[str, list[dict]]:
    """Draw phantoms in R2Gen's layout under root; returns the content of annotation.json."""
    annotation = {"train": [], "val": [], "test": []}
    for i in range(n_train + n_val + n_test):
        split = "train" if i < n_train else "val" if i < n_train + n_val else "test"
        _, films, report = phantom(0, i)
        names = [f"{i}/{view}.png" for view in range(len(films))]
        (root / "images" / str(i)).mkdir(parents=True)
        for name, film in zip(names, films, strict=True):
            Image.fromarray(film).save(root / "images" / name)
        annotation[split].append({"id": str(i), "split": split, "report": report, "image_path": names})
    (root / "annotation.json").write_text(json.dumps(annotation))
    return annotation
