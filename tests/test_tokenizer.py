"""The tokenizer's interface. peers/test_tokenizers.py compares its ids with those of other libraries."""

import json
import shutil

import pytest

from llamaxr.data.outline import with_outline
from llamaxr.prompt import study_prompt, with_report
from llamaxr.runs.reports import print_stream
from llamaxr.tokenizer import load_tokenizer
from tests.conftest import REPORTS
from tests.files.test_tokenizer_files import write_llama2, write_llama3


@pytest.fixture()
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


@pytest.fixture()
def llama2(tmp_path):
    return write_llama2(tmp_path)


@pytest.fixture()
def llama3(tmp_path):
    return write_llama3(tmp_path)


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_no_text_gives_a_control_token(folder):
    tokenizer = load_tokenizer(folder)
    for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]:
        ids = tokenizer.encode(token["content"])
        assert token["id"] in tokenizer.control and tokenizer.control.isdisjoint(ids)
        assert tokenizer.decode(ids) == token["content"]


def test_control_tokens_give_no_text_and_a_cut_letter_gives_the_replacement_character(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode([0, *tokenizer.encode("clear"), 1, 2]) == "clear"
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"
    assert tokenizer.decode([-1, 10**6]) == ""


def test_all_ends_in_generation_config_count(folder):
    edit(folder / "generation_config.json", eos_token_id=[1, 2])
    assert load_tokenizer(folder).eos_ids == (1, 2)


def test_a_text_begins_with_bos_only_where_the_post_processor_says_so(folder):
    assert load_tokenizer(folder).bos_id is None
    edit(folder / "tokenizer.json", post_processor={"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}]})  # fmt: skip
    assert load_tokenizer(folder).bos_id == 0


def test_an_added_token_that_is_no_control_token_is_a_word_when_read_back(folder):
    """As <think> in DeepSeek's Llamas. In a text it is spelled out as other words are."""
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    edit(
        folder / "tokenizer.json", added_tokens=[*added, {"id": 440, "content": "<think>", "special": False}]
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode([440]) == "<think>" and 440 not in tokenizer.encode("<think>")


def test_a_million_spaces_are_read(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(" " * 10**6)) == " " * 10**6


def test_half_a_surrogate_pair_becomes_the_replacement_character(folder, llama2):
    for tokenizer in (load_tokenizer(folder), load_tokenizer(llama2)):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_llama_3s_own_file_gives_its_control_ids(llama3):
    tokenizer = load_tokenizer(llama3)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (128000, (128001,), 128256)
    assert tokenizer.decode([128000, *tokenizer.encode("Clear. <|eot_id|>"), 128009]) == "Clear. <|eot_id|>"
    (llama3 / "generation_config.json").write_text('{"eos_token_id": [128001, 128008, 128009]}')
    assert load_tokenizer(llama3).eos_ids == (128001, 128008, 128009)


def test_a_sentencepiece_file_gives_texts_back_and_its_control_ids(llama2):
    tokenizer = load_tokenizer(llama2)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.control) == (1, (2,), {0, 1, 2})
    for text in (
        *REPORTS,
        "",
        " two  spaces ",
        "a\n\nb\t",
        "1234567",
        "é 😀 你",
        "says </s> and <s>, <unk> <0x0A>",
    ):
        ids = tokenizer.encode(text)
        assert tokenizer.decode([1, *ids, 2]) == text and tokenizer.control.isdisjoint(ids)


def test_bos_is_left_out_where_tokenizer_config_says_so(llama2):
    for stated, bos in ((True, 1), (False, None)):
        (llama2 / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": stated}))
        assert load_tokenizer(llama2).bos_id == bos


def test_config_may_name_an_end_that_was_added_to_a_sentencepiece_vocabulary(llama2):
    (llama2 / "config.json").write_text('{"eos_token_id": 421, "vocab_size": 424}')
    assert load_tokenizer(llama2).eos_ids == (421,)


def test_prompt_and_report_are_encoded_by_a_sentencepiece_vocabulary(llama2):
    tokenizer = load_tokenizer(llama2)
    prompt = study_prompt(tokenizer, [0, 1], n_tokens=3)
    example = with_report(tokenizer, prompt, REPORTS[0])
    assert prompt[0] == 1 and example.ids[-1] == 2 and prompt.count(-1) == 6
    assert tokenizer.decode(example.ids[len(prompt) :]) == REPORTS[0]


def stream(tokenizer, text, has_outline):
    steps = ([token] for token in tokenizer.encode(text))
    print_stream(tokenizer, steps, has_outline)


def test_a_report_streams_as_it_is_decoded(llama2, base, capsys):
    for folder in (llama2, base):
        tokenizer = load_tokenizer(folder)
        for text in (REPORTS[0], "é 😀"):
            stream(tokenizer, text, has_outline=False)
            assert capsys.readouterr().out == text + "\n"


def test_an_outline_streams_to_stderr_and_the_report_to_stdout(base, capsys):
    tokenizer, report = load_tokenizer(base), "The heart is enlarged. Small left pleural effusion."
    for text in (with_outline(report), report):  # the second from a model that left it out
        stream(tokenizer, text, has_outline=True)
        out, err = capsys.readouterr()
        assert out == report + "\n"
        assert err == ("" if text == report else "Findings: cardiomegaly, effusion left.\n")
