"""Which rules of a tokenizer.json are supported and which are refused by name; peers/ compares the ids."""

import json
import shutil
from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from llamaxr.errors import UserError
from llamaxr.files.byte_level import first_mismatch
from llamaxr.tokenizer import load_tokenizer


@pytest.fixture()
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_bytes_that_the_vocabulary_lacks_are_left_out(folder):
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    del spec["model"]["vocab"]["z"]
    spec["model"]["merges"] = [m for m in spec["model"]["merges"] if "z" not in "".join(m)]
    path.write_text(json.dumps(spec))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("a zoo")) == "a oo"


@pytest.mark.parametrize("values, named", [
    ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}, "ByteLevel"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]}}, "Whitespace"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Removed", "invert": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}}, "Removed"),
    ({"pre_tokenizer": None}, "none"), ({"normalizer": {"type": "NFC"}}, "normalizer NFC"),
    ({"model": {"type": "WordPiece"}}, "WordPiece"),
    ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
])  # fmt: skip
def test_rules_that_are_not_known_are_refused_by_name(folder, values, named):
    edit(folder / "tokenizer.json", **values)
    with pytest.raises(UserError, match=named) as caught:
        load_tokenizer(folder)
    assert "tokenizer.json" in str(caught.value)


def test_no_normalizer_may_be_written_as_an_empty_list(folder):
    edit(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": []})
    assert load_tokenizer(folder).encode("clear")


def edit_model(folder, **values):
    path = folder / "tokenizer.json"
    edit(path, model=json.loads(path.read_text())["model"] | values)


@pytest.mark.parametrize("merges, agrees", [
    ([["a", "b"], ["ab", "c"]], True),
    ([["b", "c"], ["a", "b"], ["ab", "c"]], False),  # the list makes a, bc; tiktoken abc
    ([["ab", "c"], ["a", "b"]], False),  # abc comes before its half
])  # fmt: skip
def test_merges_that_tiktoken_would_merge_otherwise_are_refused(folder, merges, agrees):
    letters = [text for text in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
               if len(text) == 1]  # fmt: skip
    vocab = {text: i + 3 for i, text in enumerate([*letters, *map("".join, merges)])}
    edit_model(folder, vocab=vocab, merges=merges)
    if agrees:
        assert load_tokenizer(folder).encode("abcab") == [vocab["abc"], vocab["ab"]]
    else:
        with pytest.raises(UserError, match="tokenizer.json: its merges do not make b'abc'"):
            load_tokenizer(folder)


def first_mismatch_by_merging(ranks, halves, ignore_merges):
    """The same, by merging each piece from its bytes."""
    for piece, rank in ranks.items():
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while merges_here := [r for a, b in pairwise(parts) if (r := ranks.get(a + b, rank)) < rank]:
            i = next(i for i, (a, b) in enumerate(pairwise(parts)) if ranks.get(a + b) == min(merges_here))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) > 2 and ignore_merges or len(parts) == 1:
            continue
        if len(parts) > 2 or tuple(parts) not in halves.get(piece, []):
            return piece
    return None


def test_the_first_mismatch_is_found_as_by_merging_from_bytes():
    random, cases = Random(0), Counter()
    for _ in range(1500):
        ranks, halves = {b"a": 0, b"b": 1}, {}
        for _ in range(random.randint(1, 9)):
            pair = tuple(random.choices(list(ranks), k=2))
            if (piece := b"".join(pair)) not in ranks:
                ranks[piece] = len(ranks)
                halves[piece] = [pair] if random.random() < 0.9 else []
                if random.random() < 0.3:  # as Llama 3 lists them
                    cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
                    halves[piece] = [cut for cut in cuts if set(cut) <= ranks.keys()]
        for ignore_merges in (False, True):
            expected = first_mismatch_by_merging(ranks, halves, ignore_merges)
            assert first_mismatch(ranks, halves, ignore_merges) == expected, (ranks, halves)
            cases[ignore_merges, expected is None] += 1
    assert min(cases.values()) > 150 and len(cases) == 4


def test_a_word_without_merges_is_one_token_only_where_merges_are_ignored(folder):
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    edit_model(folder, vocab=model["vocab"] | {"qqzz": 440}, ignore_merges=True)
    assert load_tokenizer(folder).encode("qqzz") == [440]
    edit_model(folder, ignore_merges=False)
    tokenizer = load_tokenizer(folder)
    assert 440 not in tokenizer.encode("qqzz") and tokenizer.decode([440]) == "qqzz"


@pytest.mark.parametrize("merges", [[["<", "|"], ["<|", "x"]], [["a", "nowhere"]], [["a", "b", "c"]], [5], 5])
def test_merges_that_make_no_sense_are_refused(folder, merges):
    edit_model(folder, merges=merges)
    with pytest.raises(UserError, match="tokenizer.json is damaged"):
        load_tokenizer(folder)


@pytest.mark.parametrize("more", [
    {"qz": -1}, {"qz": 1.5}, {"qz": True}, {"qz": 2**40}, {"qz": 1e400}, {"qz": []}, {"qz": 441, "zq": 441},
    [], None, "abc",
])  # fmt: skip
def test_a_vocabulary_that_makes_no_sense_is_refused(folder, more):
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    edit_model(folder, vocab=vocab | more if isinstance(more, dict) else more)
    with pytest.raises(UserError, match="tokenizer.json is damaged"):
        load_tokenizer(folder)


def test_a_vocabulary_without_bytes_is_refused(folder):
    edit_model(folder, vocab={"the": 3, "heart": 4}, merges=[])
    with pytest.raises(UserError, match="most bytes"):
        load_tokenizer(folder)


def test_no_merge_makes_a_control_token(folder):
    spec = json.loads((folder / "tokenizer.json").read_text())
    made = spec["model"]["vocab"]["".join(spec["model"]["merges"][0])]
    edit(folder / "tokenizer.json", added_tokens=[{"id": made, "content": "<|x|>", "special": True}])
    with pytest.raises(UserError, match="control token"):
        load_tokenizer(folder)


@pytest.mark.parametrize("words", ["(a", r"(\w*)*!", r"\p{L}+"])  # the second takes for ever on "aaaa..."
def test_a_word_rule_that_is_not_known_is_refused(folder, words):
    rule = json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]
    rule["pretokenizers"][0]["pattern"]["Regex"] = words
    edit(folder / "tokenizer.json", pre_tokenizer=rule)
    with pytest.raises(UserError, match="pre-tokenizer .* is not supported"):
        load_tokenizer(folder)
