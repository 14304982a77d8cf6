"""Workloads with a model of `transformers`: from a preset, from any fields of its configuration, or from a local folder."""

from __future__ import annotations

import ast
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ConfigDict, model_validator

from bench.registry import did_you_mean
from bench.schema import Count, Scalar
from bench.workloads.base import Layout, Workload, WorkloadArgs

if TYPE_CHECKING:
    import torch

Preset = tuple[str, dict[str, Any]]
"""An architecture and the fields of its configuration."""
TRANSFORMER_NAMES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "vocabulary": "vocab_size",
}
CAUSAL, UNMASKED = "sdpa_causal", "sdpa_unmasked"
_HEADS = {"llama": 32}
"""Heads that `transformers` assumes for an architecture; the others have 12."""
_SCALARS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}


@cache
def config_fields(architecture: str) -> dict[str, frozenset[str]]:
    """Return the fields of an architecture's configuration class, each with the names of the plain types that it accepts.

    They are read from the source of the installed `transformers`, as importing the class imports torch and takes seconds.
    """
    package = find_spec("transformers")
    if package is None or package.origin is None:
        raise ValueError("the package transformers is not installed")
    path = Path(package.origin).parent / "models" / architecture / f"configuration_{architecture}.py"
    configuration = next(node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef))
    fields = {}
    for node in configuration.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = {part.id for part in ast.walk(node.annotation) if isinstance(part, ast.Name)}
            if "ClassVar" not in names:
                fields[node.target.id] = frozenset(names & set(_SCALARS))
    return fields


def pretrained_config(folder: str) -> dict[str, Any]:
    """Return the configuration in a folder written by `save_pretrained` of transformers. Raises ValueError for others."""
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise ValueError(f"pretrained: no such folder: {path}")
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise ValueError(f"pretrained: {path} has no config.json with *.safetensors (as save_pretrained writes them)")
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"pretrained: {path / 'config.json'} is not JSON: {error}") from error
    return config


class TransformerArgs(WorkloadArgs):
    """The model: a preset, which implies the architecture, or a shape.

    Any other field of the configuration class of the architecture may be given by its name (`num_key_value_heads`,
    `rms_norm_eps`). `pretrained` is a local folder with `config.json` and `*.safetensors`, which define model and shape.
    """

    model_config = ConfigDict(extra="allow")
    presets: ClassVar[dict[str, Preset]]
    names: ClassVar[dict[str, dict[str, str]]]
    """For each architecture our arguments and the fields they set. The first architecture is the default."""
    fixed: ClassVar[frozenset[str]] = frozenset(
        {"use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "is_decoder", "add_cross_attention"}
    )
    """Fields that the workload sets itself."""

    architecture: str
    preset: str | None = None
    layers: Count | None = None
    hidden: Count | None = None
    heads: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_architecture(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset, folder, chosen = values.get("preset"), values.get("pretrained"), values.get("architecture")
        architecture = chosen or next(iter(cls.names))
        if isinstance(folder, str):
            values = {**values, "pretrained": str(Path(folder).expanduser().resolve())}
            architecture = str(pretrained_config(folder).get("model_type"))
        elif isinstance(preset, str):
            if preset not in cls.presets:
                raise ValueError(f"unknown preset {preset!r}: {did_you_mean(preset, cls.presets)}")
            architecture = cls.presets[preset][0]
        if architecture not in cls.names:
            raise ValueError(f"unknown architecture {architecture!r}: {did_you_mean(str(architecture), cls.names)}")
        if chosen not in (None, architecture):
            source = "pretrained" if folder else f"preset {preset!r}"
            raise ValueError(f"{source} is of architecture {architecture}, not {chosen}")
        return {**values, "architecture": architecture}

    @model_validator(mode="after")
    def _fields_exist(self) -> Self:
        own, fields = self.names[self.architecture], config_fields(self.architecture)
        extra = self.model_extra or {}
        for name, value in extra.items():
            if name not in fields or name in self.fixed:
                allowed = [*type(self).model_fields, *(fields.keys() - self.fixed)]
                raise ValueError(f"unknown key {name!r}: {did_you_mean(name, allowed)}")
            if not fields[name]:
                raise ValueError(f"{name} of {self.architecture} is a list or a mapping, which is not supported")
            if type(value).__name__ not in fields[name] and not (type(value) is int and "float" in fields[name]):
                types = " or ".join(words for kind, words in _SCALARS.items() if kind in fields[name])
                raise ValueError(f"{name} must be {types}, not {value!r}")
        shape = [name for name in ("preset", "layers", "hidden", "heads", "vocabulary") if getattr(self, name, None)]
        for name in shape[1:] if shape[:1] == ["preset"] else shape:
            if name not in own:
                raise ValueError(f"{self.architecture} has no {name}")
            if own[name] in extra:
                raise ValueError(f"{name} and {own[name]} are the same field: give one of them")
        if self.pretrained and (shape or extra):
            raise ValueError(f"a pretrained model has its own shape: leave {', '.join([*shape, *extra])} out")
        return self

    def layout(self) -> Layout:
        """Return the number of layers, or of the residual blocks of a ResNet."""
        fields = self.configuration()
        layers = self.names[self.architecture].get("layers")
        return Layout(int(fields[layers]), attention=True) if layers else Layout(sum(fields["depths"]))

    def refusals(self) -> dict[str, str]:
        """Return the arguments that it does not support; pretrained weights it does."""
        return {name: reason for name, reason in super().refusals().items() if name != "pretrained"}

    def complete(self) -> dict[str, Any]:
        """Return the configuration. Raises ValueError where it has no shape, or heads do not divide the hidden size."""
        fields, own = self.configuration(), self.names[self.architecture]
        if own["layers"] not in fields or own["hidden"] not in fields:
            raise ValueError(f"give a preset ({', '.join(self.presets)}), or layers and hidden")
        hidden, heads = int(fields[own["hidden"]]), int(fields.get(own["heads"], _HEADS.get(self.architecture, 12)))
        if hidden % heads:
            raise ValueError(f"hidden {hidden} is not a multiple of heads {heads}")
        return fields

    def configuration(self) -> dict[str, Any]:
        """Return the fields of the configuration: those of the preset or the folder, overridden by arguments."""
        if self.pretrained:
            return pretrained_config(self.pretrained)
        fields = dict(self.presets[self.preset][1]) if self.preset else {}
        shape = {name: getattr(self, name, None) for name in self.names[self.architecture]}
        return fields | self.scaled({k: v for k, v in shape.items() if v}) | (self.model_extra or {})

    def scaled(self, shape: dict[str, Scalar]) -> dict[str, Any]:
        """Return the fields that follow from our arguments: a hidden size implies the other widths, as usual multiples."""
        own = self.names[self.architecture]
        fields: dict[str, Any] = {own[name]: value for name, value in shape.items()}
        if "hidden" in shape:
            fields.setdefault(own["heads"], max(1, int(shape["hidden"]) // 64))
            fields |= {"intermediate_size": 4 * int(shape["hidden"])} if self.architecture != "gpt2" else {}
        return fields


class TransformerWorkload(Workload):
    """A model of `transformers` with random weights or those of a local folder."""

    classes: ClassVar[dict[str, tuple[str, str]]]
    """Names of the configuration class and the model class of each architecture."""
    args: TransformerArgs

    def more(self) -> dict[str, Any]:
        """Return the fields of the configuration that follow from the data or the task."""
        return {}

    @property
    def class_names(self) -> tuple[str, str]:
        """Names of the configuration class and the model class."""
        return self.classes[self.args.architecture]

    def config(self) -> Any:
        """Return the configuration of the model."""
        import transformers

        register_attention()
        configuration = getattr(transformers, self.class_names[0])
        if self.args.pretrained:
            return configuration.from_pretrained(self.args.pretrained, local_files_only=True, **self.more())
        return configuration(**self.args.configuration() | self.more())

    def build(self) -> torch.nn.Module:
        """Return the model on the current default device; on `meta` without pretrained weights."""
        import torch
        import transformers

        config = self.config()
        if self.args.pretrained and torch.get_default_device().type != "meta":
            model = self._pretrained(config).to(torch.get_default_device())
        else:
            model = getattr(transformers, self.class_names[1])(config)
        return self.finish(model)

    def _pretrained(self, config: Any) -> torch.nn.Module:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        with torch.device("cpu"):
            return getattr(transformers, self.class_names[1]).from_pretrained(
                self.args.pretrained,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a head for other classes starts at random
                dtype=torch.float32,
            )

    def finish(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model, changed as the arguments require."""
        return model

    def initialize(self, model: torch.nn.Module) -> None:
        """Initialise weights and buffers of a model that was built on `meta`; tied weights stay tied.

        Every rank reads pretrained weights, and sharded parameters take their part of them.
        """
        for module in model.modules():
            module._is_hf_initialized = False
        model.init_weights()
        if self.args.pretrained:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

            state = self.finish(self._pretrained(self.config())).state_dict()
            set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))


def register_attention() -> None:
    """Register two attention functions for which transformers makes no mask.

    For its own names transformers looks for padding and packed sequences in each forward pass, which waits for the
    device. Without a mask SDPA is causal in a decoder and unmasked in an encoder, as these workloads need.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for name in (CAUSAL, UNMASKED):
        AttentionInterface.register(name, sdpa_attention_forward)
