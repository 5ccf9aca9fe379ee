"""Train a vocabulary in icetk's file format: a sentencepiece unigram model that loses nothing.

Text round-trips exactly: no normalisation, no dummy prefix, no trimmed spaces; bytes where no piece fits; a line break
is the piece `<n>`. Ids 0, 1, 2 are unk, bos, eos; the eight special tokens of a GLM follow behind the trained pieces
when the file is read (see engine/glm/tokenizer.py), so `size` counts them too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine.errors import GLMError

SPECIAL_TOKENS = 8  # [MASK] [gMASK] [sMASK] eod sop eop ENC dBLOCK


def train_vocabulary(
    texts: Iterable[str], path: Path, size: int, *, threads: int = 2, sentences: int = 1_000_000
) -> None:
    """Train on `texts` and write the model file to `path`. `size` is the whole vocabulary, special tokens included.

    GLMError bad_data if the texts are too few for it.
    """
    import sentencepiece

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".training")

    def lines() -> Iterable[str]:
        for text in texts:
            yield from (line for line in text.split("\n") if line.strip())

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines()),
            model_prefix=str(temporary),
            model_type="unigram",
            vocab_size=size - SPECIAL_TOKENS,
            character_coverage=0.9995,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            user_defined_symbols=["<n>"],
            max_sentencepiece_length=16,
            max_sentence_length=4096,
            input_sentence_size=sentences,
            shuffle_input_sentence=True,
            num_threads=threads,
            minloglevel=1,
        )
    except RuntimeError as error:  # "Vocabulary size too high (10040). Please set it to a value <= 312."
        reason = str(error).rsplit("]", 1)[-1].strip() or "there is no text"
        raise GLMError(
            "bad_data", f"No vocabulary of {size} can be made of this text: {reason}", field="vocabulary"
        ) from error
    temporary.with_suffix(".training.model").replace(path)
    temporary.with_suffix(".training.vocab").unlink()
