"""What the tokenizer promises by itself; that its ids are those of other libraries is in peers/."""

import base64
import itertools
import json
import random
import shutil
from types import SimpleNamespace

import pytest

import generate
from llamaxr.errors import UserError
from llamaxr.prompt import study_prompt, with_outline, with_report
from llamaxr.tokenizer import load_tokenizer
from tests.conftest import REPORTS, sentencepiece_model


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


def test_an_added_token_that_is_no_control_token_is_a_word_when_read_back(folder):
    """As <think> in DeepSeek's Llamas. In a text it is spelled out all the same."""
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    edit(
        folder / "tokenizer.json", added_tokens=[*added, {"id": 440, "content": "<think>", "special": False}]
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode([440]) == "<think>" and 440 not in tokenizer.encode("<think>")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model":' * 100_000, '{"model": NaN', "\ud800"])
def test_json_made_to_break_its_reader_is_refused(folder, text):
    (folder / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="tokenizer.json is damaged"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "config.json"])
def test_a_file_of_gigabytes_is_not_read(folder, name):
    if name == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
    with open(folder / name, "wb") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    with pytest.raises(UserError, match=f"{name} has over 256 MiB"):
        load_tokenizer(folder)


def test_a_million_spaces_are_read(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(" " * 10**6)) == " " * 10**6


def test_half_a_surrogate_pair_becomes_the_replacement_character(folder, llama2):
    for tokenizer in (load_tokenizer(folder), load_tokenizer(llama2)):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


# --- Llama 3's tokenizer.model ---


@pytest.fixture(scope="module")
def llama3_lines() -> list[bytes]:
    """A file of its size with other pieces: all bytes, all pairs of bytes, some triples."""
    pieces = (bytes(letters) for n in (1, 2, 3) for letters in itertools.product(range(256), repeat=n))
    return [
        base64.b64encode(piece) + b" %d\n" % i for i, piece in enumerate(itertools.islice(pieces, 128_000))
    ]


@pytest.fixture()
def llama3(tmp_path, llama3_lines):
    (tmp_path / "tokenizer.model").write_bytes(b"".join(llama3_lines))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_llama_3s_own_file_gives_its_control_ids(llama3):
    tokenizer = load_tokenizer(llama3)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (128000, (128001,), 128256)
    assert tokenizer.decode([128000, *tokenizer.encode("Clear. <|eot_id|>"), 128009]) == "Clear. <|eot_id|>"
    (llama3 / "generation_config.json").write_text('{"eos_token_id": [128001, 128008, 128009]}')
    assert load_tokenizer(llama3).eos_ids == (128001, 128008, 128009)


@pytest.mark.parametrize("how", [
    "cut in a line", "cut between lines", "wrong base64", "no rank", "a piece twice", "a rank twice", "a gap",
    "no UTF-8", "an empty line", "a byte is missing", "too long", "too long by a piece that was there",
    "a negative rank",
])  # fmt: skip
def test_a_damaged_file_of_llama_3_is_refused(llama3, llama3_lines, how):
    lines = list(llama3_lines)
    match how:
        case "cut in a line":
            lines = [b"".join(lines)[:1_000_001]]
        case "cut between lines":
            lines = lines[:100_000]
        case "wrong base64":
            lines[5] = b"B=== 5\n"
        case "no rank":
            lines[5] = b"BQ==\n"
        case "a piece twice":
            lines[5] = lines[4].replace(b" 4", b" 5")
        case "a rank twice":
            lines[5] = b"BQ== 4\n"
        case "a gap":
            del lines[5]
        case "no UTF-8":
            lines[5] = b"\xff\xfe 5\n"
        case "an empty line":
            lines[5] = b"\n"
        case "a byte is missing":
            lines[5] = base64.b64encode(b"llama") + b" 5\n"
        case "too long":
            lines.append(base64.b64encode(b"llama") + b" 128000\n")
        case "too long by a piece that was there":
            lines.append(base64.b64encode(b"\0") + b" 128000\n")
        case "a negative rank":
            lines[5] = b"BQ== -5\n"
    (llama3 / "tokenizer.model").write_bytes(b"".join(lines))
    with pytest.raises(UserError, match="tokenizer.model.*download it again") as caught:
        load_tokenizer(llama3)
    assert "\n" not in str(caught.value)


# --- Llama 2's tokenizer.model ---


@pytest.fixture()
def llama2(tmp_path):
    folder = tmp_path / "llama2"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    (folder / "config.json").write_text("{}")
    return folder


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


def test_prompt_and_report_are_written_in_a_sentencepiece_vocabulary(llama2):
    tokenizer = load_tokenizer(llama2)
    prompt = study_prompt(tokenizer, [0, 1], n_tokens=3)
    example = with_report(tokenizer, prompt, REPORTS[0])
    assert prompt[0] == 1 and example.ids[-1] == 2 and prompt.count(-1) == 6
    assert tokenizer.decode(example.ids[len(prompt) :]) == REPORTS[0]


def test_a_report_streams_as_it_is_decoded(llama2, base, capsys):
    for folder in (llama2, base):
        tokenizer = load_tokenizer(folder)
        for text in (REPORTS[0], "é 😀"):
            steps = ((token,) for token in tokenizer.encode(text))
            generate.write_as_it_comes(SimpleNamespace(tokenizer=tokenizer, outline=False), steps)
            assert capsys.readouterr().out == text + "\n"


def test_an_outline_streams_to_stderr_and_the_report_to_stdout(llama3, capsys):
    tokenizer, report = load_tokenizer(llama3), "The heart is enlarged. Small left pleural effusion."
    model = SimpleNamespace(tokenizer=tokenizer, outline=True)
    for text in (with_outline(report), report):  # the second from a model that forgot it
        generate.write_as_it_comes(model, ((token,) for token in tokenizer.encode(text)))
        out, err = capsys.readouterr()
        assert out == report + "\n"
        assert err == ("" if text == report else "Findings: cardiomegaly, effusion left.\n")


def test_a_tokenizer_json_of_sentencepieces_kind_gives_way_to_the_file_beside_it(llama2):
    alone = {"model": {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": []}, "added_tokens": [],
             "normalizer": {"type": "Prepend", "prepend": "\u2581"}, "pre_tokenizer": None}  # fmt: skip
    (llama2 / "tokenizer.json").write_text(json.dumps(alone))
    assert load_tokenizer(llama2).eos_ids == (2,)
    (llama2 / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="tokenizer.json is of sentencepiece's kind.*tokenizer.model: put"):
        load_tokenizer(llama2)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{}", b"\x00" * 99, b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_tokenizer_model_of_no_known_kind_is_refused(llama2, content):
    (llama2 / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match="tokenizer.model"):
        load_tokenizer(llama2)


def test_a_sentencepiece_vocabulary_that_cannot_spell_every_letter_is_refused(llama2):
    (llama2 / "tokenizer.model").write_bytes(sentencepiece_model(vocab_size=120, byte_fallback=False))
    with pytest.raises(UserError, match="tokenizer.model is damaged or not Llama 2's kind.*byte_fallback"):
        load_tokenizer(llama2)


def test_a_sentencepiece_file_that_is_cut_anywhere_is_refused(llama2):
    whole = (llama2 / "tokenizer.model").read_bytes()
    for cut in range(1, len(whole) - 50, 3):
        (llama2 / "tokenizer.model").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="tokenizer.model"):
            load_tokenizer(llama2)


def test_flipped_bytes_in_a_sentencepiece_file_never_end_in_anything_but_one_line(llama2):
    whole, draw = (llama2 / "tokenizer.model").read_bytes(), random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] = draw.randrange(256)
        (llama2 / "tokenizer.model").write_bytes(damaged)
        try:
            load_tokenizer(llama2).encode(REPORTS[0])
        except UserError as error:
            assert "tokenizer.model" in str(error) and "\n" not in str(error)
