"""llama.cpp at a shape with random weights, for peers.py: in a Python that has llama-cpp-python (whose functions are llama.cpp's
own, called through ctypes) and gguf, beside torch.

LLAMA_CPP_LIB_PATH may name a folder with libllama.so of the same version, so that nothing need be built. Where its CPU kernels
are libraries of their own, the best one for this CPU is taken, as llama.cpp's programs do.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy

_CONTEXT = 8192  # tokens of the model: no limit of what is measured


def write_model(path: Path, shape: dict[str, int], kind: str) -> None:
    """A GGUF file of the "llama" architecture, which has the same matrices as a GLM: random numbers. Norms are
    fp32, as in every such file; there is no vocabulary in it, and the output is the embedding, as in GLM-130B. kind: F32, F16,
    Q8_0 or Q4_0."""
    import gguf

    hidden, inner = shape["hidden"], shape["inner"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape["layers"])
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // shape["heads"])
    writer.add_vocab_size(shape["vocabulary"])
    writer.add_tokenizer_model("no_vocab")
    generator = numpy.random.default_rng(1)
    form = gguf.GGMLQuantizationType[kind]

    def matrix(name: str, rows: int, columns: int) -> None:
        numbers = generator.standard_normal((rows, columns), dtype=numpy.float32) * 0.02
        writer.add_tensor(name, gguf.quants.quantize(numbers, form), raw_dtype=form)

    def norm(name: str) -> None:
        writer.add_tensor(name, numpy.ones(hidden, dtype=numpy.float32))

    matrix("token_embd.weight", shape["vocabulary"], hidden)
    norm("output_norm.weight")
    for layer in range(shape["layers"]):
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{part}.weight", hidden, hidden)
        for part in ("ffn_gate", "ffn_up"):
            matrix(f"blk.{layer}.{part}.weight", inner, hidden)
        matrix(f"blk.{layer}.ffn_down.weight", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaContender:
    """A greedy loop over llama_decode. kind: F32, F16, Q8_0 or Q4_0; its file is written into `folder` if it isn't there."""

    def __init__(self, kind: str, shape: dict[str, int], folder: Path, threads: int) -> None:
        from llama_cpp import llama_cpp

        self._llama, self._vocabulary, self._threads = llama_cpp, shape["vocabulary"], threads
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        given = os.environ.get("LLAMA_CPP_LIB_PATH")
        if given:
            # Kernels in libraries of their own are looked for beside the running program otherwise.
            ctypes.CDLL(str(Path(given) / "libggml.so")).ggml_backend_load_all_from_path(given.encode())
        llama_cpp.llama_backend_init()
        path = folder / f"{kind}.gguf"
        if not path.exists():
            write_model(path.with_suffix(".new"), shape, kind)
            path.with_suffix(".new").rename(path)
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise SystemExit(f"llama.cpp doesn't load {path.name}.")

    def _context(self, rows: int, columns: int) -> Any:
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = rows * columns, rows
        parameters.n_threads = parameters.n_threads_batch = self._threads
        context = self._llama.llama_init_from_model(self._model, parameters)
        assert context
        return context

    def _decode(self, context: Any, tokens: list[int], places: list[int], rows: list[int], wanted: list[bool]) -> Any:
        """The most likely token behind each one that is `wanted`."""
        llama = self._llama
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for number, (token, place, row, ask) in enumerate(zip(tokens, places, rows, wanted, strict=True)):
            batch.token[number], batch.pos[number], batch.logits[number] = token, place, ask
            batch.n_seq_id[number], batch.seq_id[number][0] = 1, row
        assert llama.llama_decode(context, batch) == 0
        count = sum(wanted)
        logits = numpy.ctypeslib.as_array(llama.llama_get_logits(context), shape=(count, self._vocabulary))
        chosen = logits.argmax(axis=1).tolist()
        llama.llama_batch_free(batch)
        return chosen

    def _read(self, context: Any, prompt: int) -> list[int]:
        ids = numpy.random.default_rng(prompt).integers(300, self._vocabulary, prompt).tolist()
        wanted = [False] * (prompt - 1) + [True]
        return self._decode(context, ids, list(range(prompt)), [0] * prompt, wanted)

    def prefill(self, prompt: int) -> float:
        context = self._context(1, prompt + 2)
        seconds = []
        for _ in range(4):
            self._llama.llama_memory_clear(self._llama.llama_get_memory(context), True)
            began = time.perf_counter()
            self._read(context, prompt)
            seconds.append(time.perf_counter() - began)
        self._llama.llama_free(context)
        return statistics.median(seconds[1:])

    def step(self, batch: int, prompt: int, new: int) -> float:
        context = self._context(batch, prompt + new + 2)
        tokens = self._read(context, prompt) * batch
        memory = self._llama.llama_get_memory(context)
        for row in range(1, batch):
            self._llama.llama_memory_seq_cp(memory, 0, row, -1, -1)
        seconds = []
        for place in range(prompt, prompt + new):
            began = time.perf_counter()
            tokens = self._decode(context, tokens, [place] * batch, list(range(batch)), [True] * batch)
            seconds.append(time.perf_counter() - began)
        self._llama.llama_free(context)
        return statistics.median(seconds)
