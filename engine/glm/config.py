"""The shape of a GLM and the few conventions that differ between models, as stored in a model folder's config.json.

A model folder holds `config.json`, `model*.safetensors` and `tokenizer.model`; in an adapter folder the weights are those of a
base and of an adapter (adapter.py). Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from engine.errors import GLMError
from engine.glm.adapter import DESCRIPTION, read_adapter, weights_file

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).resolve().parent.parent / "pretrained"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a conversation is written as one text: each part is a template with `{content}`, or a literal."""

    name: str
    user: str = "问：{content}\n"
    assistant: str = "答：{content}\n"
    answer: str = "答："  # stands before the [gMASK] that the answer fills


QUANTIZATIONS = ("int8", "int4", "int8-g32", "int8-g64", "int8-g128", "int4-g32", "int4-g64", "int4-g128")
W8A8 = "w8a8"  # weights as int8, and activations rounded to 8 bits, too, when they are multiplied (eight_bit.py)
SERVED_QUANTIZATIONS = (*QUANTIZATIONS, W8A8)


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the four matrices of every layer are stored: whole numbers of `bits` bits, times fp16 scales.

    A scale belongs to `group` columns of a row; with group 0 to a whole row, as in GLM-130B's own code. There each of
    `shards` tensor parallel ranks quantised its own part, so the matrices that are split along their columns
    (attention.dense, mlp.dense_4h_to_h) have `shards` scales a row.
    """

    bits: int
    group: int = 0
    shards: int = 1

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise GLMError(
                "bad_model", f"config.json: quantization bits must be 4 or 8, not {self.bits!r}.", field="bits"
            )
        for name, low in (("group", 0), ("shards", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise GLMError("bad_model", f"config.json: quantization {name} can't be {value!r}.", field=name)

    @staticmethod
    def parse(name: str, shards: int = 1) -> Quantization:
        """From a name of QUANTIZATIONS, as `int4-g128`. GLMError bad_request for any other."""
        if name not in QUANTIZATIONS:
            known = ", ".join(QUANTIZATIONS)
            raise GLMError("bad_request", f"quantize must be one of {known}, not {name!r}.", field="quantize")
        kind, _, group = name.partition("-g")
        return Quantization(int(kind[3:]), int(group or 0), 1 if group else shards)

    @property
    def name(self) -> str:
        """As `parse` takes it."""
        return f"int{self.bits}" + (f"-g{self.group}" if self.group else "")

    def groups(self, columns: int, split_columns: bool) -> int:
        """Scales a row for a whole matrix of so many columns. GLMError bad_model, unsupported where they don't come out even."""
        count = self.shards if split_columns else 1
        if self.group:
            count = columns // self.group
            if count * self.group != columns:
                message = f"{columns} columns can't be quantised in groups of {self.group}."
                raise GLMError("bad_model", message, field="group")
        elif columns % count:
            raise GLMError("bad_model", f"{columns} columns can't be quantised in {count} parts.", field="shards")
        if self.bits == 4 and columns // count % 2:
            message = (
                f"int4 stores two columns in a byte: {columns} in {count} parts are an odd number of columns in each."
            )
            raise GLMError("unsupported", message, field="quantize")
        return count


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes and conventions of one model. Lengths are in tokens."""

    name: str
    layers: int
    hidden: int
    inner: int  # width of one half of the gated feed-forward layer
    heads: int
    vocabulary: int  # rows of the embedding, padding included
    positions: int  # longest sequence, prompt and answer together
    layernorm_epsilon: float = 1e-5
    rotary_precision: str = "fp32"  # "fp16" for GLM-130B, whose own code computes the table so
    num_image_tokens: int = 0  # 20000 in icetk's vocabulary
    chat: ChatFormat | None = None
    quantization: Quantization | None = None  # of the stored weights; None: they are plain numbers

    def __post_init__(self) -> None:
        for field in ("layers", "hidden", "inner", "heads", "vocabulary", "positions"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise GLMError(
                    "bad_model", f"config.json: {field} must be a positive whole number, not {value!r}.", field=field
                )
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise GLMError("bad_model", "config.json: hidden / heads must be an even whole number.", field="heads")
        if self.rotary_precision not in ("fp16", "fp32"):
            raise GLMError(
                "bad_model", 'config.json: rotary_precision must be "fp16" or "fp32".', field="rotary_precision"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def parameters(self) -> int:
        """The number of parameters: the tied embedding, the layers, the last LayerNorm."""
        attention = 4 * self.hidden * self.hidden + 4 * self.hidden
        feed_forward = 3 * self.hidden * self.inner + 2 * self.inner + self.hidden
        norms = 4 * self.hidden
        return self.vocabulary * self.hidden + self.layers * (attention + feed_forward + norms) + 2 * self.hidden

    @staticmethod
    def load(folder: Path) -> Config:
        """Read config.json of a model folder. Errors: model_not_found, bad_model (names the field)."""
        path = Path(folder) / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise GLMError(
                "model_not_found", f"{folder} is not a model folder: it has no config.json.", field="model"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise GLMError("bad_model", f"{path} is not readable JSON.", field="model") from error
        if not isinstance(values, dict):
            raise GLMError("bad_model", f"{path} must hold one JSON object.", field="model")
        known = {field.name for field in fields(Config)}
        unknown, missing = (
            set(values) - known,
            {"name", "layers", "hidden", "inner", "heads", "vocabulary", "positions"} - set(values),
        )
        if missing or unknown:
            what = (
                f"lacks {', '.join(sorted(missing))}" if missing else f"has unknown fields {', '.join(sorted(unknown))}"
            )
            raise GLMError("bad_model", f"{path} {what}: not a config of this program.", field="model")
        if values.get("chat") is not None:
            try:
                values["chat"] = ChatFormat(**values["chat"])
            except TypeError as error:
                raise GLMError("bad_model", f"{path}: chat is not a chat format ({error}).", field="chat") from error
        if values.get("quantization") is not None:
            try:
                values["quantization"] = Quantization(**values["quantization"])
            except TypeError as error:
                raise GLMError(
                    "bad_model", f"{path}: quantization is not one ({error}).", field="quantization"
                ) from error
        return Config(**values)

    def quantized(self, quantize: str | None, size: int = 1) -> Config:
        """Of a model that is served over `size` ranks with its plain weights made `quantize`, of SERVED_QUANTIZATIONS.

        GLMError bad_request; unsupported, if the weights are stored as another kind already.
        """
        if quantize is None:
            return self
        # Each rank quantises its own part, as GLM-130B's code does.
        wanted = Quantization.parse("int8" if quantize == W8A8 else quantize, shards=size)
        if self.quantization is None:
            return replace(self, quantization=wanted)
        if self.quantization.name != wanted.name:
            message = f"The weights are stored as {self.quantization.name}: they can't be made {quantize}."
            raise GLMError("unsupported", message, field="quantize")
        return self

    def save(self, folder: Path) -> None:
        """Write config.json."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        (Path(folder) / "config.json").write_text(text + "\n", encoding="utf-8")


CHAT = ChatFormat("question-answer")

PRESETS = {
    config.name: config
    for config in (
        Config(
            "glm-130b", 70, 12288, 32768, 96, 150528, 2048, rotary_precision="fp16", num_image_tokens=20000, chat=CHAT
        ),
        Config("glm-330m", 24, 1024, 2816, 16, 20000, 2048, chat=CHAT),
        Config("glm-base", 12, 768, 2048, 12, 32768, 1024, chat=CHAT),
        Config("glm-embedded", 6, 320, 896, 8, 10048, 512, chat=CHAT),
        Config("glm-tiny", 2, 64, 128, 4, 2048, 256, chat=CHAT),
    )
}


def resolve_model(model: str | Path) -> Path:
    """The folder of a model: `embedded`, or the path of a model folder. Error: model_not_found."""
    folder = EMBEDDED_FOLDER if str(model) == EMBEDDED else Path(model).expanduser()
    if not (folder / "config.json").is_file():
        raise GLMError(
            "model_not_found",
            f"There is no model in {folder}: it needs config.json, model.safetensors and tokenizer.model.",
            field="model",
        )
    return folder


def base_folder(folder: Path) -> Path:
    """The folder with the base weights of a model: for an adapter its base's, else the folder itself.

    GLMError model_not_found if an adapter's base isn't there; unsupported if it is an adapter itself; bad_model.
    """
    adapter = read_adapter(folder)
    if adapter is None:
        return Path(folder)
    base = EMBEDDED_FOLDER if adapter.base == EMBEDDED else Path(folder).resolve() / Path(adapter.base).expanduser()
    base = Path(os.path.normpath(base))
    if not (base / "config.json").is_file():
        message = f"The adapter in {folder} needs its base, and there is no model in {base}."
        raise GLMError("model_not_found", message, field="model")
    if (base / DESCRIPTION).exists():
        message = f"The adapter in {folder} has another adapter as its base, {base}: merge that one first."
        raise GLMError("unsupported", message, field="model")
    return base


def check_base(folder: Path) -> None:
    """GLMError bad_model if the base of a folder's adapter has other weights than it was trained over; reads them all."""
    adapter = read_adapter(folder)
    if adapter is None:
        return
    base = base_folder(folder)
    found = weights_hash(base)
    if found != adapter.base_sha256:
        message = (
            f"The adapter in {folder} was trained over weights with the hash {adapter.base_sha256[:12]}, and those in "
            f"{base} have {found[:12]}."
        )
        raise GLMError("bad_model", message, field="model")


def weights_size(folder: Path) -> int:
    """Bytes of the files that a folder's model is loaded from, an adapter's base included."""
    files = list(base_folder(folder).glob("model*.safetensors"))
    return sum(path.stat().st_size for path in files) + adapter_size(folder)


def adapter_size(folder: Path) -> int:
    """Bytes of a folder's adapter in its file; 0 without one."""
    return 0 if read_adapter(folder) is None else weights_file(folder).stat().st_size


def check_split(config: Config, size: int) -> None:
    """GLMError unsupported if a model of this shape and quantisation can't be split over so many ranks."""
    for name in ("heads", "inner", "vocabulary"):
        if getattr(config, name) % size:
            message = f"{name} = {getattr(config, name)} of {config.name} can't be split over {size} ranks."
            raise GLMError("unsupported", message, field="tensor_parallel")
    if config.quantization is not None:
        for columns in (config.hidden, config.inner):
            config.quantization.groups(columns, split_columns=False)
            check_groups(config.quantization.groups(columns, split_columns=True), size)


def check_groups(groups: int, size: int) -> None:
    """GLMError unsupported where of a matrix with so many scales a row, split by columns, a rank's part ends inside a group."""
    if groups % size and size % groups:
        message = f"The weights were quantised in {groups} column groups, which can't be split over {size} ranks."
        raise GLMError("unsupported", message, field="tensor_parallel")


HASHES = "weights.sha256.json"


def weights_hash(folder: Path, remember_from: int = 1 << 30) -> str:
    """SHA-256 (hex) over the names and bytes of a folder's safetensors files: the identity of a model version.

    Of an adapter's folder: over its own file, its settings and what its description says of the base, which `check_base` checks.
    From `remember_from` bytes on, reading everything takes long: the hash is kept beside the files, with their names,
    sizes and times of change, and taken from there as long as these are the same.
    """
    adapter = read_adapter(folder)
    if adapter is not None:
        return adapter.sha256(folder)
    paths = sorted(Path(folder).glob("model*.safetensors"))
    if not paths:
        raise GLMError("bad_model", f"{folder} has no model*.safetensors.", field="model")
    files = _sizes_and_times(paths)
    large = sum(size for size, _ in files.values()) >= remember_from
    if large and (known := _known_hash(folder, files)):
        return known
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    if large:
        _remember_hash(folder, files, digest.hexdigest())
    return digest.hexdigest()


def remember_hash(folder: Path, digest: str, remember_from: int = 1 << 30) -> None:
    """Keep a hash that was found while the files were written, as `weights_hash` would."""
    files = _sizes_and_times(sorted(Path(folder).glob("model*.safetensors")))
    if sum(size for size, _ in files.values()) >= remember_from:
        _remember_hash(folder, files, digest)


def _sizes_and_times(paths: list[Path]) -> dict[str, list[int]]:
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}


def _known_hash(folder: Path, files: dict[str, list[int]]) -> str | None:
    try:
        known = json.loads((Path(folder) / HASHES).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or not ours: it is computed again
        return None
    return known["sha256"] if isinstance(known, dict) and known.get("files") == files else None


def _remember_hash(folder: Path, files: dict[str, list[int]], digest: str) -> None:
    new = Path(folder) / f".{HASHES}.{os.getpid()}"
    try:
        new.write_text(json.dumps({"files": files, "sha256": digest}) + "\n", encoding="utf-8")
        new.replace(Path(folder) / HASHES)
    except OSError:  # a folder that is not ours to write: the next start reads everything again
        new.unlink(missing_ok=True)
