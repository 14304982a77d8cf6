"""Workloads whose model is made from a configuration of `transformers`: presets, any field by its name, local checkpoints."""

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
from bench.workloads.base import Workload, WorkloadArgs

if TYPE_CHECKING:
    import torch

Preset = tuple[str, dict[str, Any]]
"""An architecture, and the fields of its configuration."""
TRANSFORMER_NAMES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "vocabulary": "vocab_size",
}
CAUSAL, UNMASKED = "sdpa_causal", "sdpa_unmasked"
_SCALARS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}


@cache
def config_fields(architecture: str) -> dict[str, frozenset[str]]:
    """Fields of an architecture's configuration class, each with the names of the plain types that it takes.

    They are read off the source of the installed `transformers`: importing the class takes seconds, as it imports torch.
    """
    package = find_spec("transformers")
    if package is None or package.origin is None:
        raise ValueError("the package transformers is not installed")
    path = Path(package.origin).parent / "models" / architecture / f"configuration_{architecture}.py"
    (found,) = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)][:1]
    fields = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = {part.id for part in ast.walk(node.annotation) if isinstance(part, ast.Name)}
            if "ClassVar" not in names:
                fields[node.target.id] = frozenset(names & set(_SCALARS))
    return fields


def pretrained_config(folder: str) -> dict[str, Any]:
    """Return the configuration of a checkpoint that `save_pretrained` of transformers wrote. Raises ValueError for others."""
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise ValueError(f"pretrained: no such folder: {path}")
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise ValueError(f"pretrained: {path} has no config.json with *.safetensors, as save_pretrained writes them")
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"pretrained: {path / 'config.json'} is not JSON: {error}") from error
    return config


class TransformerArgs(WorkloadArgs):
    """What model: a preset, or its shape one by one; the architecture follows from the preset's name.

    Any other field of the `transformers` configuration class of the architecture may be given by its own name
    (`num_key_value_heads`, `rms_norm_eps`). `pretrained` is a local folder with `config.json` and `*.safetensors`: the model
    and its shape come from there.
    """

    model_config = ConfigDict(extra="allow")
    presets: ClassVar[dict[str, Preset]]
    names: ClassVar[dict[str, dict[str, str]]]
    """Architectures, the first being that of shapes given one by one; arguments of ours and the fields they set."""
    fixed: ClassVar[frozenset[str]] = frozenset(
        {"use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "is_decoder", "add_cross_attention"}
    )
    """Fields that the workload sets by itself."""

    architecture: str
    preset: str | None = None
    layers: Count | None = None
    hidden: Count | None = None
    heads: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_architecture(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset, folder, asked = given.get("preset"), given.get("pretrained"), given.get("architecture")
        found = asked or next(iter(cls.names))
        if isinstance(folder, str):
            given = {**given, "pretrained": str(Path(folder).expanduser().resolve())}
            found = str(pretrained_config(folder).get("model_type"))
        elif isinstance(preset, str):
            if preset not in cls.presets:
                raise ValueError(f"unknown preset {preset!r}: {did_you_mean(preset, cls.presets)}")
            found = cls.presets[preset][0]
        if found not in cls.names:
            raise ValueError(f"unknown architecture {found!r}: {did_you_mean(str(found), cls.names)}")
        if asked not in (None, found):
            raise ValueError(
                f"{'pretrained' if folder else f'preset {preset!r}'} is of architecture {found}, not {asked}"
            )
        return {**given, "architecture": found}

    @model_validator(mode="after")
    def _fields_exist(self) -> Self:
        own, known = self.names[self.architecture], config_fields(self.architecture)
        extra = self.model_extra or {}
        for name, value in extra.items():
            if name not in known or name in self.fixed:
                allowed = [*type(self).model_fields, *(known.keys() - self.fixed)]
                raise ValueError(f"unknown key {name!r}: {did_you_mean(name, allowed)}")
            if not known[name]:
                raise ValueError(f"{name} of {self.architecture} is a list or a mapping: it cannot be given here")
            if type(value).__name__ not in known[name] and not (type(value) is int and "float" in known[name]):
                wanted = " or ".join(words for kind, words in _SCALARS.items() if kind in known[name])
                raise ValueError(f"{name} must be {wanted}, not {value!r}")
        shape = [name for name in ("preset", "layers", "hidden", "heads", "vocabulary") if getattr(self, name, None)]
        for name in shape[1:] if shape[:1] == ["preset"] else shape:
            if name not in own:
                raise ValueError(f"{self.architecture} has no {name}")
            if own[name] in extra:
                raise ValueError(f"{name} and {own[name]} are the same: give one of them")
        if self.pretrained and (shape or extra):
            raise ValueError(f"a pretrained model has its own shape: leave {', '.join([*shape, *extra])} out")
        return self

    def configuration(self) -> dict[str, Any]:
        """Fields of the configuration: the preset's, or the checkpoint's, with those that were given in their place."""
        if self.pretrained:
            return pretrained_config(self.pretrained)
        fields = dict(self.presets[self.preset][1]) if self.preset else {}
        given = {name: getattr(self, name, None) for name in self.names[self.architecture]}
        return fields | self.scaled({k: v for k, v in given.items() if v}) | (self.model_extra or {})

    def scaled(self, given: dict[str, Scalar]) -> dict[str, Any]:
        """Fields that follow from arguments of ours: with another hidden size the other widths are its usual multiples."""
        own = self.names[self.architecture]
        fields: dict[str, Any] = {own[name]: value for name, value in given.items()}
        if "hidden" in given:
            fields.setdefault(own["heads"], max(1, int(given["hidden"]) // 64))
            fields |= {"intermediate_size": 4 * int(given["hidden"])} if self.architecture != "gpt2" else {}
        return fields


class TransformerWorkload(Workload):
    """A model of `transformers`, with random weights or those of a local checkpoint."""

    classes: ClassVar[dict[str, tuple[str, str]]]
    """Names of the configuration and the model class of each architecture."""
    args: TransformerArgs

    def more(self) -> dict[str, Any]:
        """Fields of the configuration that follow from the data or the task."""
        return {}

    @property
    def class_names(self) -> tuple[str, str]:
        """Names of the configuration and the model class."""
        return self.classes[self.args.architecture]

    def config(self) -> Any:
        """Return the configuration of the model."""
        import transformers

        register_attention()
        made = getattr(transformers, self.class_names[0])
        if self.args.pretrained:
            return made.from_pretrained(self.args.pretrained, local_files_only=True, **self.more())
        return made(**self.args.configuration() | self.more())

    def build(self) -> torch.nn.Module:
        """Return the model on the current default device; on `meta` without the weights of a checkpoint."""
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
        made = getattr(transformers, self.class_names[1])
        with torch.device("cpu"):
            model: torch.nn.Module = made.from_pretrained(
                self.args.pretrained,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a head for other classes starts at random
                dtype=torch.float32,
            )
        return model

    def finish(self, model: torch.nn.Module) -> torch.nn.Module:
        """Change the model as the arguments say."""
        return model

    def initialize(self, model: torch.nn.Module) -> None:
        """Give weights and buffers to a model that was built on `meta`; weights that were tied are tied again.

        The weights of a checkpoint are read by every rank; sharded parameters take their part of them.
        """
        for module in model.modules():
            module._is_hf_initialized = False
        model.init_weights()
        if self.args.pretrained:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

            state = self.finish(self._pretrained(self.config())).state_dict()
            set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))


def register_attention() -> None:
    """Make two attentions known by name whose masks transformers does not know.

    For attentions that it knows it looks for padding and packed sequences in each forward pass, and waits for the device to
    know. Without a mask SDPA is causal in a decoder and sees everything in an encoder, which is what is wanted.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for name in (CAUSAL, UNMASKED):
        AttentionInterface.register(name, sdpa_attention_forward)
