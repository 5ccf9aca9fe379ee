"""Tokenizer and StreamDecoder against the icetk package's recorded answers and against sentencepiece itself.

`icetk_ids.json` was recorded from the unmodified package (tests/icetk_oracle.py says how). Where GLM_ICETK_PYTHON names an
interpreter that has icetk, or among the heavy tests, the package is asked again, on many more texts.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from engine.errors import GLMError
from engine.glm import sentencepiece_file
from engine.glm.stream_decoder import StreamDecoder
from engine.glm.tokenizer import SPECIAL_TOKENS, Tokenizer
from tests import icetk_oracle
from tests.icetk_oracle import DATA

RECORDED = json.loads((DATA / "icetk_ids.json").read_text())["runs"]
NAMES = [f"{run['model']}-{run['num_image_tokens']}" for run in RECORDED]
ALPHABETS = [
    "abcdefghij ABC.,!?  \n",
    "床前明月光疑是地上霜，。！？神创造天地",
    "\t\r\n\0\x07\x1b\x7f\x85\u00a0\u2009\u3000\u200b\ufeff  ",
    "😀👨\u200d👩👧👍🏽🇫🇷❤️𠮷龘䶮\U0010ffff\uffff\ue000\ufffd",
    "éüñøßﬁ½²™ÅПривет안녕שלוםनमस्ते\u0301",
    "<n>[]MASKgseodpENCdBLOCK/x041",
]


def random_text(rng: random.Random) -> str:
    """Text of words, names of special tokens, odd characters and any code point but surrogates."""
    parts = []
    for _ in range(rng.randrange(12)):
        kind = rng.randrange(len(ALPHABETS) + 3)
        if kind < len(ALPHABETS):
            parts.append("".join(rng.choices(ALPHABETS[kind], k=rng.randrange(1, 8))))
        elif kind == len(ALPHABETS):
            parts.append(
                rng.choice([*SPECIAL_TOKENS, "people", "philosopher", " sophisticated", "SCIENCE", "</s>", "<0x41>"])
            )
        elif kind == len(ALPHABETS) + 1:
            parts.append(rng.choice(["The king", " said to the", "起初，神", "人工智能", "  ", " 1949"]))
        else:
            code = rng.randrange(1, 0x110000)
            parts.append("" if 0xD800 <= code < 0xE000 else chr(code))
    return "".join(parts)


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [random_text(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.load(DATA / "ours.model")


@pytest.fixture(scope="module")
def icetk_like() -> Tokenizer:
    return Tokenizer.load(DATA / "icetk.model", 20000)


@pytest.mark.parametrize("run", RECORDED, ids=NAMES)
def test_ids_and_texts_equal_icetk(run: dict) -> None:
    tokenizer = Tokenizer.load(DATA / run["model"], run["num_image_tokens"])
    assert tokenizer.vocabulary_size == run["tokens"]
    assert tokenizer.special == run["special"]
    assert [tokenizer.piece(i) for i in range(run["tokens"] - 40, run["tokens"])] == run["pieces"]
    assert len(run["cases"]) > 40
    for case, text in zip(run["cases"], run["case_texts"], strict=True):
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.encode_plain(case["text"]) == case["plain"], case["text"]
        assert tokenizer.decode(case["ids"]) == text, case["text"]


def test_numbers_of_glm_130b() -> None:
    """130,000 pieces behind 20,000 image tokens: special tokens at 150000 .. 150007, eos 20002."""
    small = (DATA / "icetk.model").read_bytes()
    missing = 130_000 - SentencePieceProcessor(model_proto=small).piece_size()
    more = [sentencepiece_file.piece(f"piece number {i}", -20.0, sentencepiece_file.NORMAL) for i in range(missing)]
    tokenizer = Tokenizer(small + b"".join(more), 20000)
    assert list(tokenizer.special.items()) == list(zip(SPECIAL_TOKENS, range(150000, 150008), strict=True))
    assert (tokenizer.eos, tokenizer.end_ids, tokenizer.vocabulary_size) == (20002, (150005, 20002), 150008)
    assert (tokenizer.mask, tokenizer.gmask, tokenizer.smask, tokenizer.eod) == (150000, 150001, 150002, 150003)
    assert (tokenizer.sop, tokenizer.eop) == (150004, 150005)
    assert tokenizer.mask_ids == {150000: "[MASK]", 150002: "[sMASK]", 150001: "[gMASK]"}


def test_special_tokens_inside_words_stay_out_of_plain_ids(ours: Tokenizer, icetk_like: Tokenizer) -> None:
    for tokenizer in (ours, icetk_like):
        assert tokenizer.sop in tokenizer.encode("philosophers"), "icetk itself cuts words at special tokens"
        assert tokenizer.eop in tokenizer.encode("people")
        special = {*tokenizer.special.values(), tokenizer.eos}
        for text in ["philosophers", "people", " ".join(SPECIAL_TOKENS), "".join(SPECIAL_TOKENS), *random_texts(500)]:
            assert special.isdisjoint(tokenizer.encode_plain(text)), text


def test_own_vocabulary_loses_nothing(ours: Tokenizer) -> None:
    texts = [*icetk_oracle.TEXTS, *random_texts(3000, seed=1), (DATA / "corpus.txt").read_text("utf-8")]
    kept = [text for text in texts if "<n>" not in text and "\u2581" not in text]
    assert len(kept) > 2500
    for text in kept:
        assert ours.decode(ours.encode_plain(text)) == text
        assert ours.decode(ours.encode(text)) == text


def test_what_the_own_vocabulary_does_not_keep(ours: Tokenizer) -> None:
    assert ours.decode(ours.encode_plain("a<n>b")) == "a\nb"
    assert ours.decode(ours.encode_plain("a\u2581b")) == "a b"
    assert ours.encode_plain("a\nb") == ours.encode_plain("a<n>b")
    assert ours.encode_plain("a\n\nb").count(ours.encode_plain("\n")[0]) == 2


def test_end_and_special_names_in_text_are_text(ours: Tokenizer) -> None:
    for text in ("</s>", "<s>", "<unk>", "<0x41>", "<image_3>", *SPECIAL_TOKENS):
        assert ours.decode(ours.encode_plain(text)) == text
        assert len(ours.encode_plain(text)) > 1, text


@pytest.mark.parametrize("text", ["\ud83d", "before \udc00 after"])
def test_half_a_character_is_a_bad_request(ours: Tokenizer, text: str) -> None:
    for encode in (ours.encode, ours.encode_plain):
        with pytest.raises(GLMError) as caught:
            encode(text)
        assert (caught.value.kind, caught.value.field) == ("bad_request", "text")
        assert f"position {len(text.split(chr(0xD83D))[0].split(chr(0xDC00))[0])}" in str(caught.value)


def test_ids_outside_the_vocabulary_are_refused(icetk_like: Tokenizer) -> None:
    size = icetk_like.vocabulary_size
    for token in (-1, size, size + 500):
        for use in (icetk_like.piece, lambda t: icetk_like.decode([t]), StreamDecoder(icetk_like).push):
            with pytest.raises(GLMError) as caught:
                use(token)
            assert (caught.value.kind, caught.value.field, caught.value.limit) == ("bad_request", "ids", size)


def test_image_and_control_tokens(icetk_like: Tokenizer) -> None:
    assert icetk_like.decode([0, 19999, *icetk_like.encode_plain("the")]) == "<image_0><image_19999> the"
    assert icetk_like.decode([20001, *icetk_like.encode_plain("the"), 20002]) == "the"
    assert icetk_like.decode([icetk_like.gmask, icetk_like.sop, icetk_like.eop]) == "[gMASK]sopeop"


@pytest.mark.parametrize("dummy", [True, False])
@pytest.mark.parametrize("trimmed", [True, False])
def test_decode_equals_sentencepiece_on_any_ids(tmp_path: Path, dummy: bool, trimmed: bool) -> None:
    """Wrong UTF-8, leading spaces, control and unknown pieces: same text as sentencepiece, <n> apart."""
    normaliser = b"\x18%c\x20%c" % (
        dummy,
        trimmed,
    )  # add_dummy_prefix, remove_extra_whitespaces: the later value counts
    double = sentencepiece_file.piece("\u2581\u2581double", -9.0, sentencepiece_file.NORMAL)
    model = (DATA / "ours.model").read_bytes() + double + b"\x1a" + bytes((len(normaliser),)) + normaliser
    tokenizer, reference = Tokenizer(model), SentencePieceProcessor(model_proto=model)
    rng = random.Random(2)
    space = reference.piece_to_id("\u2581")
    spaced = [i for i in range(reference.piece_size()) if reference.id_to_piece(i).startswith("\u2581")]
    unusual = [0, 1, 2, space, space, *spaced[:40], *range(3, 262)]
    for _ in range(3000):
        pool = rng.choice([unusual, range(reference.piece_size()), [0, 1, 2, space, spaced[0], spaced[-1]]])
        ids = rng.choices(pool, k=rng.randrange(8))
        assert tokenizer.decode(ids).replace("<n>", "\n") == reference.decode(ids).replace("<n>", "\n"), ids


def test_stream_equals_decode(ours: Tokenizer, icetk_like: Tokenizer) -> None:
    rng = random.Random(3)
    for tokenizer in (ours, icetk_like):
        bytes_ = [
            i for i in range(tokenizer.num_image_tokens, tokenizer.vocabulary_size) if tokenizer.byte(i) is not None
        ]
        assert len(bytes_) == 256
        for _ in range(2000):
            pool = rng.choice([bytes_, bytes_[0xC0:], range(tokenizer.vocabulary_size)])
            ids = rng.choices(pool, k=rng.randrange(20)) + rng.choices([*tokenizer.end_ids, tokenizer.sop], k=2)
            rng.shuffle(ids)
            for first in (True, False):
                decoder = StreamDecoder(tokenizer, first)
                pushed = [decoder.push(token) for token in ids]
                shown = [token for token in ids if token not in tokenizer.end_ids]
                assert "".join(pushed) + decoder.finish() == tokenizer.decode(shown, first)
                for text in pushed:
                    text.encode("utf-8")


def test_stream_of_text_never_shows_half_a_character(ours: Tokenizer) -> None:
    for text in [*icetk_oracle.TEXTS, *random_texts(500, seed=4)]:
        if "\ufffd" in text or "\u2581" in text:
            continue
        decoder, whole = StreamDecoder(ours), ""
        for token in ours.encode_plain(text):
            whole += decoder.push(token)
            assert text.replace("<n>", "\n").startswith(whole)
        assert decoder.finish() == ""
        assert whole == text.replace("<n>", "\n")


def test_stream_holds_an_emoji_back(ours: Tokenizer) -> None:
    decoder = StreamDecoder(ours)
    ids = ours.encode_plain("😀!")
    assert [decoder.push(token) for token in ids] == ["", "", "", "😀", "!"]
    assert [decoder.push(token) for token in ids[:2]] == ["", ""]
    assert decoder.push(ours.eop) == "", "an end token neither shows nor flushes"
    assert decoder.finish() == "\ufffd\ufffd"
    assert decoder.finish() == ""
    assert [decoder.push(token) for token in (ids[0], ids[4], ids[1], ids[4])] == ["", "\ufffd!", "\ufffd", "!"]


def test_first_space_of_a_fill_is_kept(icetk_like: Tokenizer, ours: Tokenizer) -> None:
    ids = icetk_like.encode_plain("the king")
    assert icetk_like.decode(ids) == "the king"
    assert icetk_like.decode(ids, first_of_text=False) == " the king"
    decoder = StreamDecoder(icetk_like, first_of_text=False)
    assert "".join(decoder.push(token) for token in ids) == " the king"
    for first in (True, False):
        assert ours.decode(ours.encode_plain("  the king "), first) == "  the king "


def test_special_tokens_already_in_the_file() -> None:
    plain = (DATA / "ours.model").read_bytes()
    stored = plain + b"".join(sentencepiece_file.piece(name, 0.0, sentencepiece_file.NORMAL) for name in SPECIAL_TOKENS)
    appended, kept = Tokenizer(plain), Tokenizer(stored)
    assert kept.special == appended.special
    assert kept.hash() == appended.hash()
    for text in random_texts(200, seed=5):
        assert kept.encode(text) == appended.encode(text)
        assert kept.encode_plain(text) == appended.encode_plain(text)


def test_a_piece_of_text_with_a_special_token_s_name() -> None:
    piece = sentencepiece_file.piece("eop", -3.0, sentencepiece_file.NORMAL)
    tokenizer = Tokenizer((DATA / "ours.model").read_bytes() + piece)
    ids = tokenizer.encode("people [MASK]")
    assert tokenizer.special["eop"] == tokenizer.eop == tokenizer.vocabulary_size - 3
    assert tokenizer.mask in ids
    assert tokenizer.eop not in ids
    assert tokenizer.decode(ids) == "people [MASK]"
    assert tokenizer.piece(tokenizer.eop) == "eop"


def test_pickle_hash_and_threads(icetk_like: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(icetk_like))
    texts = random_texts(200, seed=6)
    expected = [icetk_like.encode_plain(text) for text in texts]
    assert [copy.encode_plain(text) for text in texts] == expected
    assert copy.special == icetk_like.special
    assert copy.hash() == icetk_like.hash() != Tokenizer.load(DATA / "icetk.model", 0).hash()
    assert len(copy.hash()) == 64
    with ThreadPoolExecutor(4) as threads:
        for answer in threads.map(lambda _: [icetk_like.encode_plain(text) for text in texts], range(8)):
            assert answer == expected


def test_load_finds_the_number_of_image_tokens(tmp_path: Path) -> None:
    model = (DATA / "icetk.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model)
    assert Tokenizer.load(tmp_path).num_image_tokens == 0
    (tmp_path / "config.json").write_text('{"num_image_tokens": 7}')
    assert Tokenizer.load(tmp_path).num_image_tokens == 7
    assert Tokenizer.load(str(tmp_path), 9).num_image_tokens == 9
    assert Tokenizer.load(tmp_path / "tokenizer.model").num_image_tokens == 0
    (tmp_path / "ice_text.model").write_bytes(model)
    assert Tokenizer.load(tmp_path / "ice_text.model").num_image_tokens == 20000


def test_files_that_are_no_vocabulary(tmp_path: Path) -> None:
    whole = (DATA / "ours.model").read_bytes()
    start = whole.index(b"<n>") - 2
    other = whole.replace(b"<n>", b"<m>")
    broken = {
        "empty": b"",
        "text": b"not a model at all",
        "cut": whole[:-7],
        "cut early": whole[: start + 3],
        "no <n>": other,
    }
    for name, content in broken.items():
        file = tmp_path / "tokenizer.model"
        file.write_bytes(content)
        with pytest.raises(GLMError) as caught:
            Tokenizer.load(tmp_path)
        assert caught.value.kind == "bad_model", name
        assert str(file) in str(caught.value), name
    for path in (tmp_path / "absent", tmp_path / "absent" / "tokenizer.model"):
        with pytest.raises(GLMError) as caught:
            Tokenizer.load(path)
        assert caught.value.kind == "model_not_found"
    file.write_bytes(whole)
    for config in ("{", "[]", '{"num_image_tokens": "many"}', '{"num_image_tokens": -1}'):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(GLMError) as caught:
            Tokenizer.load(tmp_path)
        assert caught.value.kind == "bad_model", config


def test_needs_neither_torch_nor_protobuf() -> None:
    program = (
        "import sys; from engine.glm.tokenizer import Tokenizer; t = Tokenizer.load(sys.argv[1]); t.decode(t.encode('a'));"
        "print([m for m in ('torch', 'google.protobuf') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(DATA / "ours.model")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture(scope="module")
def icetk_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("GLM_ICETK_PYTHON")
    if named:
        return Path(named)
    try:
        return icetk_oracle.make_environment(tmp_path_factory.mktemp("icetk"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"icetk can't be installed here: {error}")


@pytest.mark.parametrize("kind", ["icetk.model", "ours.model", "nmt_nfkc"])
@pytest.mark.parametrize("num_image_tokens", [0, 20000], ids=["no-image-tokens", "image-tokens"])
@pytest.mark.heavy
def test_ids_equal_the_icetk_package_itself(
    icetk_interpreter: Path, tmp_path: Path, kind: str, num_image_tokens: int
) -> None:
    if kind == "nmt_nfkc":
        model = tmp_path / "nmt_nfkc.model"
        icetk_oracle.train(model, like_icetk=True, rule=kind)
    else:
        model = DATA / kind
    tokenizer = Tokenizer.load(model, num_image_tokens)
    corpus = (DATA / "corpus.txt").read_text("utf-8")
    texts = [*icetk_oracle.TEXTS, *random_texts(3000, seed=7), *corpus.split("\n"), corpus]
    rng = random.Random(8)
    ids = [rng.choices(range(num_image_tokens, tokenizer.vocabulary_size), k=rng.randrange(30)) for _ in range(2000)]
    got = icetk_oracle.ask(icetk_interpreter, model, num_image_tokens, texts, ids)
    for case, text in zip(got["cases"], got["case_texts"], strict=True):
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.encode_plain(case["text"]) == case["plain"], case["text"]
        assert tokenizer.decode(case["ids"]).replace("<n>", "\n") == text
    for one, text in zip(ids, got["decoded"], strict=True):
        # icetk reads even the three pieces "<", "n", ">" in a row as a line break.
        assert tokenizer.decode(one).replace("<n>", "\n") == text
