"""Recognise checkpoints of other models, to refuse them by their names. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import GLMError

# Values of `model_type` in a Hugging Face folder's config.json. All models of ChatGLM's line share "chatglm".
_TYPES = {
    "glm4": "GLM-4",
    "glm4_moe": "GLM-4.5",
    "glm4v": "GLM-4.1V",
    "glm4v_moe": "GLM-4.5V",
    "codegeex": "CodeGeeX",
    "cogvlm": "CogVLM",
    "cogvlm2": "CogVLM2",
    "cogagent": "CogAgent",
    "llama": "LLaMA",
    "qwen": "Qwen",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "baichuan": "Baichuan",
    "bloom": "BLOOM",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX",
    "opt": "OPT",
    "t5": "T5",
    "bert": "BERT",
}
# Words of `_name_or_path`, of the classes in `architectures` and `auto_map`, and of SwissArmyTransformer's `model_class`.
_WORDS = (
    ("codegeex4", "CodeGeeX4"),
    ("codegeex2", "CodeGeeX2"),
    ("codegeex", "CodeGeeX"),
    ("cogvlm2", "CogVLM2"),
    ("cogvlm", "CogVLM"),
    ("cogagent", "CogAgent"),
    ("cogview", "CogView"),
    ("cogvideo", "CogVideo"),
    ("visualglm", "VisualGLM-6B"),
    ("chatglm3", "ChatGLM3-6B"),
    ("chatglm2", "ChatGLM2-6B"),
    ("glm-4v", "GLM-4V (glm-4v-9b)"),
    ("glm4v", "GLM-4V (glm-4v-9b)"),
    ("glm-4", "GLM-4 (glm-4-9b)"),
    ("glm4", "GLM-4 (glm-4-9b)"),
    ("chatglm-6b", "ChatGLM-6B"),
    ("llama", "LLaMA"),
)
# Beginnings or ends of tensor names that GLM-130B has none of, the more special ones first.
_TENSORS = (
    ("mixins.eva", "CogVLM or VisualGLM"),
    ("mixins.lm.", "CogVLM"),
    ("mixins.chatglm-final", "ChatGLM-6B"),
    ("mixins.chatglm-attn", "ChatGLM-6B"),
    ("block_position_embeddings.weight", "GLM-10B"),
    ("position_embeddings.weight", "GLM-10B"),
    ("transformer.img_embeddings", "CogView"),
    ("transformer.vision.", "GLM-4V or CogVLM2"),
    ("transformer.encoder.layers.", "ChatGLM2-6B, ChatGLM3-6B or GLM-4"),
    ("language_model.", "CodeGeeX or another model of Megatron-LM"),
    ("model.vision.", "CogVLM"),
    ("model.embed_tokens.weight", "LLaMA or one of its kind"),
    ("lm_head.weight", "ChatGLM-6B or another model with an output matrix of its own"),
)
_OURS = {"layers", "hidden", "inner", "heads", "vocabulary", "positions"}


def refuse(what: str, where: str) -> GLMError:
    """The error for a checkpoint of another model."""
    message = f"{where} is {what}: this program converts checkpoints of GLM-130B's architecture only."
    return GLMError("unsupported", message, field="input")


def check_folder(folder: Path) -> None:
    """GLMError unsupported if a folder's config.json or model_config.json is of another model; bad_request if of ours."""
    config = _read(folder / "config.json")
    if config is not None:
        if set(config) >= _OURS:
            message = f"{folder} is a model folder of this program already: there is nothing to convert."
            raise GLMError("bad_request", message, field="input")
        if name := hugging_face_name(config, folder.resolve().name):
            raise refuse(name, str(folder))
    sat = _read(folder / "model_config.json")
    if sat is not None and (name := _sat_name(sat)):
        raise refuse(name, str(folder))


def check_names(files: Iterable[str], origin: str) -> None:
    """GLMError unsupported for an archive of a Hugging Face folder."""
    names = {name.rpartition("/")[2] for name in files}
    if "config.json" in names and any(name.endswith((".safetensors", ".bin")) for name in names):
        raise refuse("an archive of a Hugging Face model", origin)


def check_tensors(shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """GLMError unsupported if tensors are named or shaped as those of another model."""
    for part, name in _TENSORS:
        if any(key.startswith(part) or key.endswith(part) for key in shapes):
            if name == "GLM-10B":
                name = _glm(shapes.get("transformer.word_embeddings.weight", shapes.get("word_embeddings.weight", ())))
            raise refuse(f"a checkpoint of {name}", where)
    mixins = sorted(key.split(".")[1] for key in shapes if key.startswith("mixins."))
    if mixins:
        raise refuse(f"another model of SwissArmyTransformer, with a mixin {mixins[0]!r}", where)
    up, down = (
        shapes.get(f"transformer.layers.0.mlp.{name}.weight", ()) for name in ("dense_h_to_4h", "dense_4h_to_h")
    )
    plain = len(up) == len(down) == 2 and up[0] == down[1] and up[1] == down[0]
    if plain and not any(key.endswith("weight_scale") for key in shapes):
        raise refuse("a model of GLM-10B's or BERT's kind, with a feed-forward layer that has no gate", where)


def hugging_face_name(config: Mapping[str, Any], folder: str = "") -> str | None:
    """What model a Hugging Face config.json describes; None if it describes none. The folder's name tells near twins apart."""
    type_, classes = config.get("model_type"), config.get("architectures") or []
    if not isinstance(type_, str) and not classes:
        return None
    if type_ in _TYPES:
        return _TYPES[type_]
    automatic = config.get("auto_map")
    texts = [str(config.get("_name_or_path", "")), *map(str, classes if isinstance(classes, list) else [classes])]
    texts += [str(value) for value in automatic.values()] if isinstance(automatic, dict) else []
    if name := _by_word(" ".join(texts)):
        return name
    if type_ == "chatglm" or "ChatGLM" in str(classes):
        return _chatglm(config, folder)
    if type_ == "glm":  # the name was given twice
        old = "block_position_encoding" in config or "GLMModel" in classes
        return _glm((0, _number(config, "hidden_size"))) if old else "GLM-4 (glm-4-9b-hf)"
    return f"a Hugging Face model of the type {type_ or classes[0]!r}"


def _by_word(text: str) -> str | None:
    return next((name for word, name in _WORDS if word in text.lower()), None)


def _chatglm(config: Mapping[str, Any], folder: str) -> str:
    """ChatGLM's line tells its versions apart by a few fields only."""
    if "vision_config" in config:
        return "GLM-4V (glm-4v-9b)"
    if "ffn_hidden_size" not in config:  # the first has inner_hidden_size, and two position ids a token
        return "ChatGLM-6B"
    if _number(config, "padded_vocab_size") > 100_000:
        return "GLM-4 (glm-4-9b)"
    return _by_word(folder) or "ChatGLM2-6B or ChatGLM3-6B"


def _glm(embedding: tuple[int, ...]) -> str:
    """GLM's models before GLM-130B, by the width of their embedding."""
    width = embedding[1] if len(embedding) == 2 else 0
    return {4096: "GLM-10B", 2048: "GLM-2B", 1024: "GLM-large (335M)", 768: "GLM-base (110M)"}.get(
        width, "a GLM with position embeddings, as GLM-10B"
    )


def _sat_name(config: Mapping[str, Any]) -> str | None:
    """The model of a SwissArmyTransformer model_config.json; None for GLM-130B's."""
    kind = config.get("model_class")
    if not isinstance(kind, str) or kind.lower().replace("-", "").replace("_", "") in ("glm130b", "glm130bmodel"):
        return None
    if name := _by_word(kind):
        return name
    if kind == "ChatGLMModel":
        return "ChatGLM-6B"
    if kind == "GLMModel":
        return _glm((0, _number(config, "hidden_size")))
    return f"SwissArmyTransformer's {kind}"


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 0


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or none that says what model it is
        return None
    return value if isinstance(value, dict) else None
