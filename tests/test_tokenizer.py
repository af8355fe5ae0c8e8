"""What the tokenizer promises by itself; that its ids are those of `tokenizers` is in peers/."""

import json
import shutil

import pytest

from llamaxr.errors import UserError
from llamaxr.tokenizer import load_tokenizer


@pytest.fixture()
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_no_text_gives_a_control_token(folder):
    tokenizer = load_tokenizer(folder)
    for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]:
        ids = tokenizer.encode(token["content"])
        assert token["id"] in tokenizer.control and tokenizer.control.isdisjoint(ids)
        assert tokenizer.decode(ids) == token["content"]


def test_control_tokens_are_silent_and_a_cut_letter_gives_the_replacement_character(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode([0, *tokenizer.encode("clear"), 1, 2]) == "clear"
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"
    assert tokenizer.decode([-1, 10**6]) == ""


def test_bytes_that_the_vocabulary_lacks_are_left_out(folder):
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    del spec["model"]["vocab"]["z"]
    spec["model"]["merges"] = [m for m in spec["model"]["merges"] if "z" not in "".join(m)]
    path.write_text(json.dumps(spec))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("a zoo")) == "a oo"


def test_all_ends_that_generation_config_lists_count(folder):
    edit(folder / "generation_config.json", eos_token_id=[1, 2])
    assert load_tokenizer(folder).eos_ids == (1, 2)


def test_a_text_begins_with_bos_only_where_the_post_processor_says_so(folder):
    assert load_tokenizer(folder).bos_id is None
    edit(folder / "tokenizer.json", post_processor={"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}]})  # fmt: skip
    assert load_tokenizer(folder).bos_id == 0


@pytest.mark.parametrize("n_special", [1, 3])
def test_filler_is_never_an_end_even_where_the_checkpoint_pads_with_it(folder, n_special):
    for name in ("config.json", "generation_config.json"):
        edit(folder / name, eos_token_id=0, pad_token_id=0)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    edit(folder / "tokenizer.json", added_tokens=added[:n_special])
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_ids == (0,) and tokenizer.pad_id != 0


@pytest.mark.parametrize("name, text", [
    ("tokenizer.json", None), ("tokenizer.json", "{"), ("tokenizer.json", "[]"), ("tokenizer.json", "{}"),
    ("config.json", "{"), ("generation_config.json", "{"), ("generation_config.json", "[1]"),
    ("config.json", '{"eos_token_id": null}'), ("config.json", '{"eos_token_id": 99999}'),
])  # fmt: skip
def test_a_missing_or_damaged_file_is_named(folder, name, text):
    if name == "config.json":
        (folder / "generation_config.json").unlink()
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(UserError, match=name):
        load_tokenizer(folder)


def test_a_truncated_tokenizer_is_named(folder):
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match="tokenizer.json"):
        load_tokenizer(folder)


@pytest.mark.parametrize("values, named", [
    ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}, "ByteLevel"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]}}, "Whitespace"),
    ({"normalizer": {"type": "NFC"}}, "normalizer"),
])  # fmt: skip
def test_rules_that_are_not_known_are_refused_by_name(folder, values, named):
    edit(folder / "tokenizer.json", **values)
    with pytest.raises(UserError, match=named) as caught:
        load_tokenizer(folder)
    assert "tokenizer.json" in str(caught.value)
