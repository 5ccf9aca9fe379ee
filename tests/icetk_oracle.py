"""What the unmodified icetk package (0.0.7) answers, in an interpreter of its own.

icetk pins protobuf below 3.19, imports torchvision and downloads its vocabulary, so it can't live in the project's
environment. Here its own files run under another interpreter, with stand-ins only for what text never touches (torch, PIL,
torchvision, the image tokenizer), on a vocabulary that is given to it under the name it looks for.

    python tests/icetk_oracle.py record FOLDER    makes an environment in FOLDER and rewrites tests/data/tokenizer:
                                                  icetk.model, ours.model (trained on corpus.txt) and icetk_ids.json

The same file is the program that runs under icetk's interpreter (`answer`: JSON on standard input, JSON out).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data" / "tokenizer"
SPECIAL_TOKENS = ["[MASK]", "[gMASK]", "[sMASK]", "eod", "sop", "eop", "ENC", "dBLOCK"]
REQUIREMENTS = ["protobuf==3.18.3", "sentencepiece==0.2.3", "requests", "tqdm", "filelock"]
RUNS = [("icetk.model", 20000), ("icetk.model", 0), ("ours.model", 0)]

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n",
    " \n ",
    "a",
    "The capital of France is Paris.",
    " The capital of France",
    "The capital of France ",
    "  two  spaces   everywhere  ",
    "tab\tand\ttabs\t\t",
    "line one\nline two\n\nline four\n",
    "line one\r\nline two\r\n",
    "carriage\rreturn",
    "form\ffeed, vertical\vtab, bell\a, null\0, escape\x1b[0m, delete\x7f, next line\x85",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "你好！Hello！今天是2022年10月5日，星期三。",
    "起初，神创造天地。\n地是空虚混沌，渊面黑暗；",
    "ＡＢＣ１２３　ｆｕｌｌ　ｗｉｄｔｈ！？，。",
    "中文 和 English 混排，with spaces，没有空格abc也行。",
    "emoji 😀 family 👨‍👩‍👧‍👦 flag 🇫🇷 thumb 👍🏽 heart ❤️",
    "rare Han 𠮷野家 龘 䶮 𰻝",
    "Ünïcödé naïve café, cafe\u0301, ﬁne oﬃce, ½ ² ™ Å",
    "Привет мир. Γειά σου. 안녕하세요. こんにちは。שלום مرحبا हिन्दी ไทย",
    "non\u00a0breaking, thin\u2009space, zero\u200bwidth, ideographic\u3000space, bom\ufeff",
    "u2581 \u2581 alone\u2581and inside",
    "noncharacters \uffff \U0010ffff, private \ue000, replacement \ufffd",
    "for i in range(10):\n    print(i, i * i)\n",
    "https://example.com/a?b=1&c=2 name@example.com C:\\path\\to 3.14159 1e-5 100%",
    '{"key": [1, 2, {"nested": null}], "text": "a\\nb"}',
    "literal <n> mark and <n><n> two, < n >, <N>",
    "literal <s> </s> <unk> <0x41> <0xE4> <pad> <image_17>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "eod sop eop ENC dBLOCK",
    "The capital of [MASK] is Tokyo.",
    "床前明月光，[MASK]。举头望明月，[sMASK]。",
    "[MASK][gMASK][sMASK]",
    "Once upon a time [gMASK]",
    "[mask] [XMASK] [ MASK ] [MASK",
    "a sop b eop",
    "sopeopeodENCdBLOCK",
    "people",
    "People, peoples, peopled, the people of Ethiopia",
    "sophisticated philosophers in philosophical geopolitics reopened a video; geodesy, aesop, gasoline",
    "ENCYCLOPEDIA, FREQUENCY, ENCODE, SCIENCE, dBLOCKs",
    "X" * 300,
    "哈" * 100,
    "no" + " " * 40 + "end",
]


def train(path: Path, *, like_icetk: bool, rule: str | None = None, pieces: int = 1900) -> None:
    """A unigram vocabulary on corpus.txt: icetk's kind (dummy prefix, normalised, spaces merged) or the project's own.

    `rule` replaces the small normalisation table below, whose only merit is size (the file of nmt_nfkc is 240 KB).
    """
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, object] = {"normalization_rule_name": rule or "identity"}
        if like_icetk and rule is None:
            table = Path(folder) / "rules.tsv"
            lines = [f"{code:X}\t{code - 0xFEE0:X}" for code in range(0xFF01, 0xFF5F)]  # full width -> ASCII
            lines += [f"{code:X}\t20" for code in (0x9, 0xA, 0xD, 0xA0, 0x2009, 0x3000)]  # other spaces -> space
            lines += [f"{code:X}\t" for code in (*range(0x1, 0x9), 0x7F, 0x200B, 0xFEFF)]  # dropped
            lines += ["FB01\t66 69", "FB03\t66 66 69", "65 301\tE9"]  # ligatures, one composition
            table.write_text("\n".join(lines) + "\n")
            del options["normalization_rule_name"]
            options["normalization_rule_tsv"] = str(table)
        sentencepiece.SentencePieceTrainer.train(
            input=str(DATA / "corpus.txt"),
            model_prefix=str(Path(folder) / "trained"),
            model_type="unigram",
            vocab_size=pieces,
            character_coverage=0.985,
            byte_fallback=True,
            split_digits=True,
            user_defined_symbols=["<n>"],
            add_dummy_prefix=like_icetk,
            remove_extra_whitespaces=like_icetk,
            max_sentencepiece_length=16,
            num_threads=1,
            minloglevel=1,
            **options,
        )
        shutil.move(Path(folder) / "trained.model", path)


def make_environment(folder: Path) -> Path:
    """A virtual environment with icetk 0.0.7 in `folder`, made once; its interpreter. Needs a package index."""
    interpreter = folder / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if subprocess.run([str(interpreter), "-c", "import icetk.utils"], capture_output=True).stderr.find(b"torch") < 0:
        install = [str(interpreter), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *REQUIREMENTS], check=True)
        subprocess.run([*install, "--no-deps", "icetk==0.0.7"], check=True)
    return interpreter


def ask(interpreter: Path | str, model: Path, num_image_tokens: int, texts: list[str], decode: list[list[int]]) -> dict:
    """icetk's answers: `cases` of {text, ids, plain} (with and without its special tokens added), `decoded` texts."""
    question = {"model": str(model), "num_image_tokens": num_image_tokens, "texts": texts, "decode": decode}
    done = subprocess.run(
        [str(interpreter), __file__, "answer"], input=json.dumps(question), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"icetk failed: {done.stderr}")
    return json.loads(done.stdout)


def answer(question: dict) -> dict:
    """Runs under icetk's interpreter."""
    package = types.ModuleType("icetk")  # without its __init__, which wants torchvision
    package.__path__ = list(importlib.util.find_spec("icetk").submodule_search_locations)
    absent = types.ModuleType("absent")
    absent.Image = absent.transforms = absent.pil_to_tensor = absent.ImageTokenizer = None
    absent.LongTensor = type("LongTensor", (), {})
    for name in ("torch", "PIL", "torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = absent
    sys.modules["icetk"], sys.modules["icetk.image_tokenizer"] = package, absent

    from icetk.ice_tokenizer import IceTokenizer

    class Icetk(IceTokenizer):
        num_image_tokens = question["num_image_tokens"]

    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(question["model"], Path(folder) / "ice_text.model")
        plain, full = Icetk(folder, device="cpu"), Icetk(folder, device="cpu")
        full.add_special_tokens(SPECIAL_TOKENS)
        cases = [
            {
                "text": text,
                "ids": full.encode(text, ignore_linebreak=False),
                "plain": plain.encode(text, ignore_linebreak=False),
            }
            for text in question["texts"]
        ]
        return {
            "tokens": full.num_tokens,
            "special": {name: full[name] for name in SPECIAL_TOKENS},
            "pieces": [full[number] for number in range(full.num_tokens - 40, full.num_tokens)],
            "cases": cases,
            "decoded": [full.decode(ids) for ids in question["decode"]],
            "case_texts": [full.decode(case["ids"]) for case in cases],
        }


def record(folder: Path) -> None:
    """Train both vocabularies and write icetk's answers on TEXTS to icetk_ids.json."""
    interpreter = make_environment(folder)
    train(DATA / "icetk.model", like_icetk=True)
    train(DATA / "ours.model", like_icetk=False)
    runs = []
    for name, offset in RUNS:
        got = ask(interpreter, DATA / name, offset, TEXTS, [])
        del got["decoded"]
        runs.append({"model": name, "num_image_tokens": offset, **got})
    content = {"package": "icetk 0.0.7, unmodified; see tests/icetk_oracle.py", "runs": runs}
    (DATA / "icetk_ids.json").write_text(json.dumps(content, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "answer":
        print(json.dumps(answer(json.load(sys.stdin))))
    else:
        record(Path(sys.argv[2]).absolute())
