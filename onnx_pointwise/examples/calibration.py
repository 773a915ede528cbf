"""Example inputs: from arrays, files, folders, readers, or drawn; checked against what the network takes."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.errors import InputError, OnnxPointwiseError
from onnx_pointwise.examples.preprocessing import (
    ImageInput,
    Layout,
    Mapped,
    Preprocessing,
    choose_preprocessing,
    image_input,
)
from onnx_pointwise.examples.synthetic import dead_leaves
from onnx_pointwise.graph import ResolvedShapes
from onnx_pointwise.runtime import UNNAMED, InputSpec, input_specs, split_inputs

Array = NDArray[Any]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
#: Examples that are taken at most, unless told otherwise.
LIMIT = 1024
# Where examples come from that were handed over as arrays.
_GIVEN = "given"
# What numpy calls the first array of an archive that nobody named.
_NOBODYS = "arr_0"
# Arrays of an archive, in bytes, that are read at most; and from where on many times their size is no honest archive.
_MOST_BYTES = 2**35
_SUSPICIOUS_BYTES, _SUSPICIOUS_RATIO = 2**28, 200
# Synthetic examples: pixels and MACs of one pass over all of them, and fewest and most examples.
_PIXELS, _MACS = 3e6, 5e11
_FEWEST, _MOST = 64, 1024


@runtime_checkable
class CalibrationDataReader(Protocol):
    """ONNX Runtime's protocol: batches by input name, then ``None``."""

    def get_next(self) -> Mapping[str, Array] | None:
        """Give the next batch."""
        ...


#: What ``rewrite`` takes for calibration inputs: ``auto`` (synthetic images where the network takes images, else none),
#: ``synthetic``, ``none`` or ``None``; a path to ``.npz``, ``.npy`` (``file.npz:key`` picks one array) or a folder of
#: ``.npy`` files or images; an array for the only input; arrays by input name; an object with ``get_next()``; or any
#: iterable of arrays or dicts, each with a leading batch dimension.
CalibrationSource = (
    Literal["auto", "synthetic", "none"]
    | str
    | Path
    | Array
    | Mapping[str, Array]
    | CalibrationDataReader
    | Iterable[Array | Mapping[str, Array]]
    | None
)


@dataclass(frozen=True)
class Calibration:
    """Example inputs, ready for the network.

    Attributes:
        inputs: Input name to array, [N, ...]; empty where there are none.
        description: Where they come from, as JSON-ready values, with a ``sentence`` for a person.
    """

    inputs: Mapping[str, Array] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def drawn(self) -> bool:
        """Whether they are synthetic images."""
        return bool(self.description.get("source") == "synthetic")


def calibrate(
    model: ir.Model,
    source: CalibrationSource,
    shapes: ResolvedShapes,
    *,
    macs: int = 0,
    limit: int | None = None,
    preprocessing: Preprocessing | str | None = None,
    layout: Layout | None = None,
    seed: int = 0,
) -> Calibration:
    """Get example inputs for a model.

    Args:
        model: The model.
        source: Where from, see ``CalibrationSource``.
        shapes: The model's shapes.
        macs: MACs of one example, which keep the number of synthetic ones in bounds.
        limit: The most examples to take.
        preprocessing: What pixels are mapped to, or the name of a preset; for images and synthetic images. Arrays are
            taken to be ready for the network, unless it is given for them too, or they are bytes where the network
            takes images of floats: these are pixels.
        layout: Layout of given arrays of images, where it is not the network's; that of pixels is seen.
        seed: Seed of synthetic images.

    Returns:
        The examples, checked.

    Raises:
        InputError: There are none, they do not fit the model, or they hold NaN or infinity; or synthetic images were
            asked for and the model does not take images.
    """
    if limit is not None and limit < 1:
        raise InputError(f"The number of calibration inputs must be at least 1, not {limit}.")
    image = image_input(model, shapes)
    drawn = isinstance(source, str) and source in ("auto", "synthetic")
    if source is None or (isinstance(source, str) and source == "none"):
        _require_unused(preprocessing, layout, "no example inputs are taken")
        return Calibration(
            {}, {"source": "none", "sentence": "Weights come from the kernels alone; no example inputs."}
        )
    if drawn:
        _require_unused(None, layout, "no arrays of images are given")
        if image is not None:
            return _synthetic(model, image, macs, limit, preprocessing, seed)
        if source == "synthetic":
            declared = "; ".join(map(str, input_specs(model)))
            raise InputError(f"Synthetic images need one image input with 1 or 3 channels; the model takes {declared}.")
        _require_unused(preprocessing, None, "the model does not take images")
        sentence = "The model does not take images, so weights come from the kernels alone; name example inputs."
        return Calibration({}, {"source": "none", "sentence": sentence})
    specs = input_specs(model)
    most = LIMIT if limit is None else limit
    if isinstance(source, str | Path):
        return _from_path(model, Path(source), specs, image, most, preprocessing, layout, seed)
    with contextlib.closing(_guarded(_parts(source, specs))) as parts:
        arrays = _gather(parts, most)
    arrays, mapped = _prepared(model, arrays, image, preprocessing, layout, seed)
    return _checked(arrays, specs, most, {"source": "given"}, _GIVEN, mapped)


def _require_unused(preprocessing: Preprocessing | str | None, layout: Layout | None, why: str) -> None:
    """Refuse what would otherwise be left aside without a word."""
    if preprocessing is not None:
        raise InputError(
            f"A value range was given, but {why}: leave --preset, --mean, --std, --scale and --channel-order out."
        )
    if layout is not None:
        raise InputError(f"The layout {layout} was given, but {why}: leave --layout out.")


def _synthetic(
    model: ir.Model,
    image: ImageInput,
    macs: int,
    limit: int | None,
    preprocessing: Preprocessing | str | None,
    seed: int,
) -> Calibration:
    if limit is None:
        limit = int(np.clip(min(_PIXELS / (image.height * image.width), _MACS / max(1, macs)), _FEWEST, _MOST))
    mapped = choose_preprocessing(model, image, preprocessing, seed=seed)
    drawn = dead_leaves(limit, image.height, image.width, channels=image.channels, seed=seed)
    sentence = (
        f"No example inputs were given: {limit} synthetic images of {image.width}x{image.height} were drawn, "
        f"with {mapped.sentence}."
    )
    description = {
        "source": "synthetic",
        "count": limit,
        "seed": seed,
        "size": [image.height, image.width],
        "preset": mapped.preset,
        "preset_origin": mapped.origin,
        "preprocessing": mapped.preprocessing.to_dict(),
        "sentence": sentence,
    }
    return Calibration({image.name: image.arrange(mapped.preprocessing.apply(drawn))}, description)


def _from_path(
    model: ir.Model,
    path: Path,
    specs: list[InputSpec],
    image: ImageInput | None,
    limit: int,
    preprocessing: Preprocessing | str | None,
    layout: Layout | None,
    seed: int,
) -> Calibration:
    name, key = _with_key(path)
    if not name.exists():
        raise InputError(f"{path}: no such file or folder of calibration inputs.")
    about: dict[str, Any] = {"source": "file" if name.is_file() else "folder"}
    if name.is_dir():
        pictures = sorted(item for item in name.iterdir() if item.suffix.lower() in IMAGE_ENDINGS)
        if pictures:
            _require_unused(None, layout, f"{path} holds image files, whose layout is known")
            if image is None:
                raise InputError(f"{path}: holds images, but the model takes {'; '.join(map(str, specs))}.")
            mapped = choose_preprocessing(model, image, preprocessing, seed=seed)
            pixels = np.stack([_picture(item, image) for item in pictures[:limit]])
            arrays = {image.name: image.arrange(mapped.preprocessing.apply(pixels))}
            return _checked(arrays, specs, limit, about, str(path), mapped)
        files = sorted(name.glob("*.npy"))
        if not files:
            raise InputError(f"{path}: holds neither images ({', '.join(IMAGE_ENDINGS)}) nor .npy files.")
        arrays = _gather(({_only(specs): _batched(_load(item), specs)} for item in files), limit)
    elif name.suffix.lower() == ".npz":
        arrays = _from_npz(name, key, specs)
    elif name.suffix.lower() == ".npy":
        arrays = {_only(specs): _load(name)}
    else:
        raise InputError(f"{path}: calibration inputs come from .npz, .npy or a folder, not '{name.suffix}'.")
    arrays, pixels_as = _prepared(model, arrays, image, preprocessing, layout, seed)
    return _checked(arrays, specs, limit, about, str(path), pixels_as)


def calibration_path(source: str | Path) -> Path | None:
    """Give the file or folder that example inputs come from; None where they are drawn, or there are none."""
    return None if str(source) in ("auto", "synthetic", "none") else _with_key(Path(source))[0]


def _with_key(path: Path) -> tuple[Path, str | None]:
    """Part ``file.npz:key``."""
    if path.exists() or ":" not in path.name:
        return path, None
    text = str(path)
    # Names of arrays may hold colons, too: input:0.
    for place in (index for index, sign in enumerate(text) if sign == ":"):
        if Path(text[:place]).is_file():
            return Path(text[:place]), text[place + 1 :]
    stem, _, key = text.rpartition(":")
    return Path(stem), key


def read_npz(path: str | Path) -> dict[str, Array]:
    """Read all arrays of an ``.npz`` file, by name; of ``file.npz:key`` that one, without a name.

    A single array that was stored without a name has none here either, whatever numpy called it in the file.

    Raises:
        InputError: The file is missing or cannot be read, or holds no such array.
    """
    path, key = _with_key(Path(path))
    if key is not None:
        arrays = read_npz(path)
        if key == _NOBODYS and set(arrays) == {UNNAMED}:
            return arrays
        if key not in arrays:
            raise InputError(f"{path}: holds no array '{key}'; it holds {', '.join(arrays) or 'none'}.")
        return {UNNAMED: arrays[key]}
    try:
        _require_no_bomb(path)
        _require_whole_arrays(path)
        with np.load(path, allow_pickle=False) as data:
            return {UNNAMED if data.files == [_NOBODYS] else name: data[name] for name in data.files}
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file.") from error
    except Exception as error:  # zipfile, numpy and OS errors alike
        raise InputError(f"{path}: cannot be read as .npz: {error}.") from error


def _require_no_bomb(path: str | Path) -> None:
    """Refuse archives that grow beyond measure when they are read."""
    with zipfile.ZipFile(path) as archive:
        items = archive.infolist()
    whole = sum(item.file_size for item in items)
    packed = max(1, sum(item.compress_size for item in items))
    if whole > _MOST_BYTES or (whole > _SUSPICIOUS_BYTES and whole / packed > _SUSPICIOUS_RATIO):
        raise InputError(
            f"{path}: {packed / 2**20:.3g} MB in it become {whole / 2**20:.3g} MB of arrays, which are not read; give "
            "fewer examples, or store them as they are (numpy.savez)."
        )


def _require_whole_arrays(path: str | Path) -> None:
    """Refuse arrays of an archive that hold less than they say they do: room is made for what they say."""
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            if item.filename.endswith(".npy"):
                with archive.open(item) as stream:
                    _require_whole(stream, item.file_size, f"{path}: the array '{item.filename[:-4]}'")


def _require_whole(stream: IO[bytes], size: int, what: str) -> None:
    """Compare the size of an array in NumPy's format with what its head says."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    reader = readers.get(np.lib.format.read_magic(stream))
    if reader is None:  # names that are no ASCII, as arrays of numbers have none
        return
    shape, _, dtype = reader(stream)
    held, said = size - stream.tell(), math.prod(shape) * dtype.itemsize
    if said > held and not dtype.hasobject:
        raise InputError(
            f"{what} is said to hold {dtype}[{', '.join(map(str, shape))}], which takes {said} bytes, but there are "
            f"{held}; write it again."
        )


def _from_npz(path: Path, key: str | None, specs: list[InputSpec]) -> dict[str, Array]:
    if key is not None:
        return {_only(specs): read_npz(f"{path}:{key}")[UNNAMED]}
    arrays = read_npz(path)
    if set(arrays) == {UNNAMED}:
        return {_only(specs): arrays[UNNAMED]}
    names = list(arrays)
    wanted = {spec.name for spec in specs}
    if len(wanted) == 1 and not wanted & set(names) and len(names) > 1:
        raise InputError(
            f"{path}: holds {', '.join(names)}, none of which is the model's input {specs[0]}; "
            f"pick one with {path.name}:{names[0]}."
        )
    return {name: array for name, array in arrays.items() if name in wanted} if wanted <= set(names) else arrays


def _load(path: Path) -> Array:
    try:
        with path.open("rb") as stream:
            _require_whole(stream, path.stat().st_size, f"{path}: the array")
        array: Array = np.load(path, allow_pickle=False)
    except InputError:
        raise
    except Exception as error:  # numpy and OS errors alike
        raise InputError(f"{path}: cannot be read as .npy: {error}.") from error
    return array


def _picture(path: Path, image: ImageInput) -> NDArray[np.uint8]:
    """Read a picture, shrink its shorter side to the network's size and cut out its middle: uint8 [H, W, C]."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InputError("Reading images takes Pillow: pip install 'onnx-pointwise[images]'.") from error
    try:
        with Image.open(path) as opened:
            picture = ImageOps.fit(
                opened.convert("L" if image.channels == 1 else "RGB"),
                (image.width, image.height),
                Image.Resampling.BICUBIC,
            )
    except Exception as error:  # whatever the readers of damaged files raise, and refusals of enormous ones
        raise InputError(f"{path}: cannot be read as an image: {error}.") from error
    return np.asarray(picture, np.uint8).reshape(image.height, image.width, image.channels)


def _only(specs: list[InputSpec]) -> str:
    if len(specs) != 1:
        raise InputError(
            f"The model has {len(specs)} inputs ({'; '.join(map(str, specs))}); give arrays by name, as .npz."
        )
    return specs[0].name


def _batched(array: Array, specs: list[InputSpec]) -> Array:
    """Take an array without a batch dimension for one example."""
    shape = specs[0].shape
    return array[None] if shape is not None and array.ndim == len(shape) - 1 else array


def _parts(source: Any, specs: list[InputSpec]) -> Generator[Mapping[str, Array], None, None]:
    if isinstance(source, np.ndarray):
        yield {_only(specs): source}
    elif isinstance(source, Mapping):
        yield source
    elif isinstance(source, CalibrationDataReader):
        yield from _read(source, specs)
    elif isinstance(source, Iterable):
        for part in source:
            yield _batch(part, specs)
    else:
        raise InputError(f"Calibration inputs cannot come from an object of type {type(source).__name__}.")


def _batch(part: Any, specs: list[InputSpec]) -> Mapping[str, Array]:
    """Name the arrays of a batch, as readers and loaders give them: by name, one array, or one for each input."""
    if isinstance(part, Mapping):
        return part
    if isinstance(part, list | tuple) and part and all(hasattr(item, "shape") for item in part):
        if len(part) != len(specs):
            raise InputError(
                f"A calibration batch holds {len(part)} arrays, but the model has {len(specs)} inputs "
                f"({'; '.join(map(str, specs))}); give the inputs alone, without labels, or by name."
            )
        return {spec.name: np.asarray(item) for spec, item in zip(specs, part, strict=True)}
    return {_only(specs): np.asarray(part)}


def _guarded(parts: Generator[Mapping[str, Array], None, None]) -> Generator[Mapping[str, Array], None, None]:
    """Turn whatever somebody else's reader raises into a sentence, when it begins, on the way, and when it ends."""
    count = 0
    try:
        with contextlib.closing(parts):
            for part in parts:
                yield part
                count += 1
    except (OnnxPointwiseError, MemoryError):
        raise
    except Exception as error:  # whatever it raises
        raise InputError(
            f"The calibration inputs cannot be read: what gives them failed after {count} batches with "
            f"{type(error).__name__}: {error}; correct it, or take other examples (--calibration synthetic, none)."
        ) from error


def _read(reader: CalibrationDataReader, specs: list[InputSpec]) -> Iterator[Mapping[str, Array]]:
    """Read all batches; one that can be rewound is left as if nobody had read it, for the quantizer, say."""
    rewind = getattr(reader, "rewind", None)
    if callable(rewind):
        rewind()
    try:
        while (batch := reader.get_next()) is not None:
            yield _batch(batch, specs)
    finally:
        if callable(rewind):
            rewind()


def _gather(parts: Iterable[Mapping[str, Array]], limit: int) -> dict[str, Array]:
    """Join batches up to a number of examples; no more are read than that takes."""
    columns: dict[str, list[Array]] = {}
    count = 0
    for part in parts:
        if columns and set(part) != set(columns):
            raise InputError(f"One calibration batch holds {', '.join(part)}, another one {', '.join(columns)}.")
        _require_examples(part)
        for name, array in part.items():
            columns.setdefault(name, []).append(np.asarray(array))
        count += max((len(array) for array in part.values() if np.ndim(array)), default=0)
        if count >= limit:
            break
    if not count:
        raise InputError(
            "There are no calibration inputs in what was given; a reader that was read before needs rewind()."
        )
    for name, column in columns.items():
        if len({(item.dtype, item.shape[1:]) for item in column}) > 1:
            kinds = sorted({f"{item.dtype}{list(item.shape[1:])}" for item in column})
            raise InputError(
                f"Calibration inputs of '{name}' differ in kind: {' and '.join(kinds[:3])}; give equal ones."
            )
    return {name: np.concatenate(column) for name, column in columns.items()}


def _require_examples(arrays: Mapping[str, Array]) -> None:
    """Every array holds one example or more along its first dimension."""
    for name, array in arrays.items():
        if np.ndim(array) == 0:
            raise InputError(
                f"Calibration input '{name}' is a single number, of which no example can be told from another; make it "
                "a constant of the model, or take no examples (--calibration none)."
            )


def _prepared(
    model: ir.Model,
    arrays: dict[str, Array],
    image: ImageInput | None,
    preprocessing: Preprocessing | str | None,
    layout: Layout | None,
    seed: int,
) -> tuple[dict[str, Array], Mapped | None]:
    """Bring given arrays of images into the network's layout and value range, where that was asked for.

    Bytes for a network that takes images of floats are pixels, as in files of images, and are taken as these are.
    """
    pixels = image is not None and _are_pixels(arrays, image)
    if preprocessing is None and layout is None and not pixels:
        return arrays, None
    if image is None or set(arrays) != {image.name}:
        raise InputError("A value range or layout was given, but the model does not take images.")
    array = arrays[image.name]
    if array.ndim != 4:
        raise InputError(f"Images are [N, C, H, W] or [N, H, W, C], but an array of shape {array.shape} was given.")
    if (layout or _layout_of(array, image)) == "nchw":
        array = array.transpose(0, 2, 3, 1)
    if preprocessing is None and not pixels:
        return {image.name: image.arrange(array)}, None
    mapped = choose_preprocessing(model, image, preprocessing, seed=seed)
    return {image.name: image.arrange(mapped.preprocessing.apply(array))}, mapped


def _are_pixels(arrays: Mapping[str, Array], image: ImageInput) -> bool:
    """Whether what was given are images of bytes, and the network takes floats."""
    array = arrays.get(image.name)
    if array is None or array.dtype != np.uint8 or image.takes_pixels or array.ndim != 4:
        return False
    return image.channels in (array.shape[1], array.shape[3])


def _layout_of(array: Array, image: ImageInput) -> Layout:
    """Where the channels of given images are: the network's layout, unless only the other one has as many there."""
    first, last = array.shape[1] == image.channels, array.shape[3] == image.channels
    if first == last:
        return image.layout
    return "nchw" if first else "nhwc"


def _narrowed(arrays: dict[str, Array], specs: list[InputSpec]) -> dict[str, Array]:
    """Bring float32 examples to a float16 network's type and back: one set serves both versions of a network."""
    wanted = {spec.name: spec.dtype for spec in specs}
    pair = {np.dtype(np.float16), np.dtype(np.float32)}
    with np.errstate(over="ignore"):  # infinity is refused with its example
        return {
            name: array.astype(wanted[name]) if {array.dtype, wanted.get(name)} == pair else array
            for name, array in arrays.items()
        }


def _checked(
    arrays: dict[str, Array],
    specs: list[InputSpec],
    limit: int,
    about: dict[str, Any],
    origin: str,
    mapped: Mapped | None = None,
) -> Calibration:
    """Check examples against what the network takes, and say where they come from."""
    _require_examples(arrays)
    for name, array in arrays.items():
        if len(array) == 0:
            raise InputError(f"There are no calibration inputs: '{name}' has shape {list(array.shape)}.")
    arrays = _narrowed(arrays, specs)
    split_inputs(specs, arrays, limit=LIMIT)
    count = min(limit, max(len(array) for array in arrays.values()))
    arrays = {name: array[:count] for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array.reshape(count, -1)).all(1))[0])
            raise InputError(f"Calibration input '{name}' holds NaN or infinity, first in example {bad}.")
    sentence = f"{count} calibration inputs" + ("" if origin == _GIVEN else f" from {origin}")
    if mapped is not None:
        about = about | {"preset": mapped.preset, "preprocessing": mapped.preprocessing.to_dict()}
        sentence += f", mapped by {mapped.sentence}"
    return Calibration(arrays, about | {"count": count, "sentence": f"{sentence}."})
