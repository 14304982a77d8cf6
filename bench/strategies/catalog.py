"""Names and options of all strategies: what a suite may write, with defaults, bounds and help. Nothing here imports torch.

Each class is one name of an axis, its docstring is the help, and its fields are the options. `code` is the function or
class (`module:attribute`) that receives the options as keyword arguments. Class attributes are traits: other code asks for
a trait, never for a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import Field, ValidationError, model_validator

from bench import registry
from bench.base import in_words
from bench.schema import Choice, Model, Scalar
from bench.workloads.base import Layout

CATALOG: dict[str, dict[str, type[Options]]] = {}
"""Axis -> name -> options. Subclasses of `Options` with a name register themselves."""
_MODULES = {"compile": "graph"}
"""Modules whose name is not that of their axis."""
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Number = Annotated[int, Field(ge=1)]


class Options(Model):
    """The options of one strategy. `library` is the optional package that it needs.

    `changes_shape`: the trained model has other tensors than its workload builds. `needs_blocks`: it works on the repeated
    layers of a model.
    """

    axis: ClassVar[str] = ""
    name: ClassVar[str]
    code: ClassVar[str]
    library: ClassVar[str | None] = None
    changes_shape: ClassVar[bool] = False
    needs_blocks: ClassVar[bool] = False

    def __init_subclass__(cls, axis: str | None = None, name: str | None = None, code: str | None = None) -> None:
        cls.axis = axis or cls.axis
        if name is not None:
            function = f"{_MODULES.get(cls.axis, cls.axis)}:{name.replace('-', '_')}"
            cls.name, cls.code = name, f"bench.strategies.{code or function}"
            CATALOG.setdefault(cls.axis, {})[name] = cls

    @classmethod
    def help(cls) -> str:
        """Return the first line of the description."""
        return str(cls.__doc__).splitlines()[0]


# Parallelism: how the devices share the work.


class ParallelismOptions(Options, axis="parallelism"):
    """Traits: `whole_model`: each rank holds the whole model; `cuts_layers`: ranks hold parts of layers, or some layers.

    `cuts_matrices`: each rank holds a part of each matrix. `shares_copy`: devices train one copy of the model together,
    `size` of them. `shards`: weights are gathered block by block. `graph_safe`: a CUDA graph can capture its step. `stages`:
    layers are divided in order, and activations travel. `divides` are the parts of memory that `ways` devices share;
    `buckets`: gradients travel in buffers of their own. `group` is the option with the devices of a group: where a run
    crosses nodes and leaves it open, a group is a node.
    """

    whole_model: ClassVar[bool] = True
    cuts_layers: ClassVar[bool] = False
    cuts_matrices: ClassVar[bool] = False
    shares_copy: ClassVar[bool] = False
    shards: ClassVar[bool] = False
    graph_safe: ClassVar[bool] = False
    buckets: ClassVar[bool] = False
    stages: ClassVar[bool] = False
    divides: ClassVar[tuple[str, ...]] = ()
    group: ClassVar[str | None] = None

    @classmethod
    def per_copy(cls, options: Mapping[str, Scalar], devices: int) -> int:
        """Return how many devices share one copy of the model; `options` may lack what has a default."""
        return 1

    def ways(self, devices: int) -> int:
        """Return the number of devices among which the parts in `divides` are divided."""
        return devices

    def why_not(self, devices: int) -> str | None:
        """Return the reason why so many devices cannot share the work, if there is one."""
        return None

    def why_not_batch(self, samples: int, accumulation: int, size: int) -> str | None:
        """Return the reason why `size` devices cannot share `accumulation` batches of `samples` per step, if there is one."""
        return None

    def why_not_model(self, layout: Layout, size: int) -> str | None:
        """Return the reason why `size` devices cannot share a model, if there is one."""
        return None


class SingleOptions(ParallelismOptions, name="single", code="parallelism:Single"):
    """One device, without any communication."""

    graph_safe = True

    def why_not(self, devices: int) -> str | None:  # noqa: D102
        return f"parallelism single uses one device, not {devices}: choose ddp" if devices > 1 else None


class _Replicated(ParallelismOptions):
    buckets = True
    bucket_mb: Number = Field(25, description="MiB of gradients that are sent together")


class DdpOptions(_Replicated, name="ddp", code="parallelism:Ddp"):
    """Data parallelism: each device holds a copy of the model; gradients are averaged during the backward pass."""

    graph_safe = True


class Zero1Options(_Replicated, name="zero1", code="zero:Zero1"):
    """ZeRO stage 1: like ddp, with the state of the optimizer divided among the devices."""

    divides = ("optimizer",)


class _Split(ParallelismOptions):
    whole_model = False
    meta: bool = Field(False, description="create the weights after they are divided, so that no device holds all")


class _Sharded(_Split):
    shards = True
    needs_blocks = True
    divides = ("weights", "gradients", "optimizer")
    reshard: bool = Field(True, description="free the gathered weights between the forward and the backward pass")
    mixed: bool = Field(True, description="send and keep gathered weights in the type in which layers compute")


class Fsdp2Options(_Sharded, name="fsdp2", code="sharded:Fsdp2"):
    """Fully sharded data parallelism (ZeRO stage 3): each block's weights are gathered when it computes."""

    offload: bool = Field(False, description="keep weights, gradients and the optimizer in the memory of the host")


class HsdpOptions(Fsdp2Options, name="hsdp", code="sharded:Hsdp"):
    """Hybrid sharding: groups of devices shard the model, and the groups are copies of each other."""

    group = "shard"
    shard: Annotated[int, Field(ge=2)] = Field(2, description="devices of one group; over several nodes: of a node")

    def ways(self, devices: int) -> int:  # noqa: D102
        return self.shard

    def why_not(self, devices: int) -> str | None:  # noqa: D102
        if devices % self.shard or devices < 2 * self.shard:
            return (
                f"hsdp needs a multiple of {self.shard} devices, at least {2 * self.shard}, not {devices}: choose fsdp2"
            )
        return None


Size = Literal[0] | Annotated[int, Field(ge=2)]


class _Shared(ParallelismOptions):
    shares_copy = True
    what: ClassVar[str] = "layers"
    size: Size = Field(0, description="devices that share one copy of the model; 0 means all")

    @classmethod
    def per_copy(cls, options: Mapping[str, Scalar], devices: int) -> int:
        return int(options.get("size", cls.model_fields["size"].default)) or devices

    def ways(self, devices: int) -> int:
        return self.size or devices

    def why_not(self, devices: int) -> str | None:
        size = self.size or devices
        if devices < 2:
            return f"parallelism {self.name} divides {self.what} among devices: it needs at least 2, not {devices}"
        if size > devices or devices % size:
            return f"{devices} devices cannot form groups of {size} that share {self.what}: choose another size"
        return None

    def why_not_model(self, layout: Layout, size: int) -> str | None:
        if layout.heads is None:
            return f"parallelism {self.name} divides decoders like GPT-2 and Llama, not other models: choose ddp"
        if layout.shares_layers:
            return f"parallelism {self.name} cannot divide layers that share their weights: choose ddp"
        return None


class PpOptions(_Split, _Shared, name="pp", code="pipeline:Pp"):
    """Pipeline parallelism: each device holds some layers, and micro-batches pass through them."""

    cuts_layers = True
    stages = True
    divides = ("weights", "gradients", "optimizer", "activations")
    schedule: Literal["1f1b", "gpipe"] = Field("1f1b", description="order of forward and backward passes")
    microbatches: Annotated[int, Field(ge=0)] = Field(0, description="micro-batches per batch; 0 chooses")

    def count(self, samples: int, stages: int) -> int:
        """Return the number of micro-batches of a batch: as given, or the most up to twice the stages."""
        return self.microbatches or max(n for n in range(1, min(samples, 2 * stages) + 1) if samples % n == 0)

    def why_not_batch(self, samples: int, accumulation: int, size: int) -> str | None:  # noqa: D102
        count = self.count(samples, size)
        if samples % count:
            return f"parallelism pp: {samples} samples cannot be cut into {count} equal micro-batches"
        if self.schedule == "1f1b" and count * accumulation < size:
            least = f"1f1b needs at least {size} micro-batches for {size} stages, not {count * accumulation}"
            return f"parallelism pp: {least}: choose a larger batch"
        return None

    def why_not_model(self, layout: Layout, size: int) -> str | None:  # noqa: D102
        few = f"parallelism pp: {layout.blocks} layers cannot be divided among {size} stages"
        return super().why_not_model(layout, size) or (few if layout.blocks < size else None)


class CpOptions(_Shared, _Replicated, name="cp", code="context:Cp"):
    """Context parallelism: each sequence is divided among devices, with ring attention (needs GPUs)."""

    what = "sequences"
    divides = ("activations",)

    def why_not_model(self, layout: Layout, size: int) -> str | None:  # noqa: D102
        queries, keys = layout.heads or (0, 0)
        if queries != keys:
            return f"parallelism cp needs as many heads of keys as of queries, not {keys} and {queries}"
        if layout.tokens % (2 * size):
            return f"parallelism cp: sequences of {layout.tokens} tokens cannot be cut into {2 * size} equal parts"
        return super().why_not_model(layout, size)


class _Divided(_Split, _Shared):
    cuts_layers = True
    cuts_matrices = True
    divides = ("weights", "gradients", "optimizer")
    sequence: bool = Field(False, description="divide norms and the residual stream along the sequence")
    loss_parallel: bool = Field(True, description="compute the loss without gathering the logits")

    def why_not_model(self, layout: Layout, size: int) -> str | None:
        queries, keys = layout.heads or (0, 0)
        if queries % size or keys % size:
            heads = f"{queries} heads" + (f" and {keys} of keys and values" if keys != queries else "")
            return f"parallelism {self.name}: {heads} cannot be divided among {size} devices"
        if self.sequence and layout.tokens % size:
            parts = f"{size} equal parts: leave sequence out"
            return f"parallelism {self.name}: sequences of {layout.tokens} tokens cannot be cut into {parts}"
        return super().why_not_model(layout, size)


class TpOptions(_Divided, name="tp", code="tensor:Tp"):
    """Tensor parallelism: every layer is divided among all devices (Megatron-LM)."""

    def why_not(self, devices: int) -> str | None:  # noqa: D102
        if devices > 1 and 0 < self.size < devices:
            return "tp shares one copy among all devices: choose fsdp_tp for several copies"
        return super().why_not(devices)


class FsdpTpOptions(_Divided, _Sharded, name="fsdp_tp", code="tensor:FsdpTp"):
    """Both: groups of devices divide the layers (tp), and what each holds is sharded over the groups (fsdp2)."""

    group = "size"
    size: Size = Field(
        2, description="devices that divide the layers; 0 means all; over several nodes: those of a node"
    )

    def ways(self, devices: int) -> int:  # noqa: D102
        return devices

    def why_not(self, devices: int) -> str | None:  # noqa: D102
        if devices > 1 and self.size in (0, devices):
            return f"fsdp_tp with groups of {devices} on {devices} devices has one group: choose tp"
        return super().why_not(devices)


# Precision: the number formats of training.


class PrecisionOptions(Options, axis="precision"):
    """The number formats of a training."""


class Fp32Options(PrecisionOptions, name="fp32"):
    """32-bit floats throughout; TF32 is off."""


class Tf32Options(PrecisionOptions, name="tf32"):
    """32-bit storage, matrix products on TF32 tensor cores (NVIDIA Ampere and newer)."""


class Bf16Options(PrecisionOptions, name="bf16"):
    """32-bit parameters; autocast to bfloat16."""


class Bf16ParamsOptions(PrecisionOptions, name="bf16_params"):
    """Parameters, gradients and optimizer state in bfloat16: half the memory of fp32, less accurate updates."""


class Fp16Options(PrecisionOptions, name="fp16"):
    """32-bit parameters; autocast to float16 with a gradient scaler."""


class Fp8Options(PrecisionOptions, name="fp8"):
    """Linear layers of the blocks multiply in 8-bit floats (torchao), the rest as bf16; needs compute capability 8.9."""

    library = "torchao"
    recipe: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] = Field(
        "tensorwise", description="torchao's scaling"
    )


# Optimizer and learning rate.


class OptimizerOptions(Options, axis="optimizer"):
    """The rule by which a step changes the weights."""


class _Plain(OptimizerOptions):
    implementation: Literal["auto", "fused", "foreach", "loop"] = Field(
        "auto", description="kernels of an update: fused, one per operation, or one per parameter; auto is the fastest"
    )


class SgdOptions(_Plain, name="sgd"):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013)."""

    learning_rate: Factor = Field(0.1, description="step size")
    momentum: Share = Field(0.9, description="share of the last update that is kept")
    nesterov: bool = Field(False, description="Nesterov momentum")
    weight_decay: Factor = Field(0.0, description="L2 penalty")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class AdagradOptions(_Plain, name="adagrad"):
    """Adagrad (Duchi et al. 2011)."""

    learning_rate: Factor = Field(0.01, description="step size")
    weight_decay: Factor = Field(0.0, description="L2 penalty")


class _Moments(OptimizerOptions):
    learning_rate: Factor = Field(1e-3, description="step size")
    weight_decay: Factor = Field(0.01, description="decay of the weights in each step")
    beta1: Beta = Field(0.9, description="decay of the mean of the gradients")
    beta2: Beta = Field(0.999, description="decay of the mean of their squares")
    epsilon: Factor = Field(1e-8, description="added to the denominator")


class AdamOptions(_Moments, _Plain, name="adam"):
    """Adam (Kingma and Ba 2015); the weight decay is added to the gradient."""

    weight_decay: Factor = Field(0.0, description="L2 penalty")


class AdamWOptions(_Moments, _Plain, name="adamw"):
    """AdamW (Loshchilov and Hutter 2019): Adam with decoupled weight decay."""


class AdamW8bitOptions(_Moments, name="adamw8bit"):
    """AdamW with both moments in 8 bits (Dettmers et al. 2022, torchao)."""

    library = "torchao"


class ScheduleOptions(Options, axis="schedule"):
    """The learning rate over the measured steps."""

    warmup: Beta = Field(0.0, description="share of the measured steps in which the rate rises from 0")


class ConstantOptions(ScheduleOptions, name="constant"):
    """The same learning rate throughout."""


class LinearOptions(ScheduleOptions, name="linear"):
    """Linear decay."""

    warmup: Beta = Field(0.1, description="share of the measured steps in which the rate rises from 0")
    final: Factor = Field(0.0, description="last learning rate, as a share of the full one")


class CosineOptions(ScheduleOptions, name="cosine"):
    """Half a cosine (Loshchilov and Hutter 2017, without restarts)."""

    warmup: Beta = Field(0.1, description="share of the measured steps in which the rate rises from 0")
    final: Factor = Field(0.1, description="last learning rate, as a share of the full one")


class StepOptions(ScheduleOptions, name="step"):
    """Multiplied by a factor at the end of each stage."""

    factor: Rate = Field(0.1, description="factor at the end of each stage")
    stages: Number = Field(3, description="stages of equal length")


# Memory, compilation, attention.


class MemoryOptions(Options, axis="memory"):
    """What is stored for the backward pass."""


class KeepAllOptions(MemoryOptions, name="none", code="parts:unchanged"):
    """Keep all activations."""


class RecomputeOptions(MemoryOptions, name="recompute"):
    """Keep only the inputs of each block and recompute the rest in the backward pass (Chen et al. 2016)."""

    needs_blocks = True


class SelectiveOptions(MemoryOptions, name="selective"):
    """Recompute some blocks, or only their cheap operations (Korthikanti et al. 2022)."""

    needs_blocks = True
    every: Number = Field(2, description="recompute every n-th block")
    policy: Literal["recompute_all", "save_products"] = Field(
        "recompute_all", description="recompute all of a block, or keep products, convolutions and attention"
    )


class OffloadOptions(MemoryOptions, name="offload"):
    """Move the activations of the blocks to the host's memory until the backward pass needs them (needs a GPU)."""

    needs_blocks = True


class CompileOptions(Options, axis="compile"):
    """How a step becomes kernels."""


class EagerOptions(CompileOptions, name="eager"):
    """Run each operation as it comes."""


class _Compiled(CompileOptions):
    dynamic: bool = Field(False, description="one graph for all batch sizes")
    fullgraph: bool = Field(False, description="fail where the step cannot be one graph")
    cold: bool = Field(False, description="compile anew, without the cache of the execution")


class DefaultOptions(_Compiled, name="default"):
    """Compile with TorchInductor."""


class MaxAutotuneOptions(_Compiled, name="max-autotune"):
    """Compile, and time several kernels for each product; with CUDA graphs on a GPU."""


class ReduceOverheadOptions(_Compiled, name="reduce-overhead"):
    """Compile, and replay the kernels as CUDA graphs (needs a GPU)."""


class CudaGraphsOptions(CompileOptions, name="cuda_graphs"):
    """Capture the eager forward and backward pass once and replay it (needs a GPU)."""


class AttentionOptions(Options, axis="attention"):
    """`forced`: one kernel has to compute the attention."""

    forced: ClassVar[bool] = True


class SdpaOptions(AttentionOptions, name="sdpa"):
    """torch chooses the kernel."""

    forced = False


class FlashOptions(AttentionOptions, name="flash"):
    """FlashAttention (Dao 2023), which never holds the attention matrix."""


class EfficientOptions(AttentionOptions, name="efficient"):
    """Memory-efficient attention (Rabe and Staats 2021) as in xFormers, on GPUs."""


class CudnnOptions(AttentionOptions, name="cudnn"):
    """The fused attention of cuDNN, on GPUs in 16 bits."""


class MathOptions(AttentionOptions, name="math"):
    """Plain matrix products and softmax; memory grows with the square of the sequence."""


# What is trained, and what is served.


class FinetuneOptions(Options, axis="finetune"):
    """The weights that are trained."""


class FullOptions(FinetuneOptions, name="full", code="parts:unchanged"):
    """Train all weights."""


class LastLayersOptions(FinetuneOptions, name="last_layers"):
    """Train the last blocks and the head."""

    needs_blocks = True
    layers: Annotated[int, Field(ge=0)] = Field(1, description="trained blocks; 0 trains the head alone")


class BitfitOptions(FinetuneOptions, name="bitfit"):
    """Train only the biases (Ben Zaken et al. 2022)."""


class _Adapter(FinetuneOptions):
    library = "peft"
    changes_shape = True
    targets: Annotated[str, Field(min_length=1)] = Field(
        "auto", description="names of layers, separated by spaces; auto: peft's choice; all: all linear layers"
    )


class LoraOptions(_Adapter, name="lora"):
    """Train low-rank additions to weight matrices (Hu et al. 2022, peft), which are merged to be served."""

    rank: Annotated[int, Field(ge=1, le=65_536)] = Field(8, description="rank of the additions")
    alpha: Rate = Field(16.0, description="scale: alpha / rank")
    dropout: Beta = Field(0.0, description="dropout of their inputs")


class Ia3Options(_Adapter, name="ia3"):
    """Train factors of keys, values and MLP activations (IA3, Liu et al. 2022, peft)."""


class PruningOptions(Options, axis="pruning"):
    """The weights that are removed."""


class DenseOptions(PruningOptions, name="none", code="parts:unchanged"):
    """Prune nothing."""


class MagnitudeOptions(PruningOptions, name="magnitude"):
    """Set the smallest weights of each tensor to 0 and keep them 0."""

    sparsity: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="share of the weights")
    schedule: Literal["gradual", "once"] = Field("gradual", description="cubic from begin to end, or all at begin")
    begin: Share = Field(0.0, description="share of the steps at which pruning begins")
    end: Share = Field(0.5, description="share of the steps at which it ends")
    updates: Number = Field(16, description="updates of the masks")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.begin > self.end:
            raise ValueError(f"begin must not be after end, but {self.begin:g} > {self.end:g}")
        return self


class StructuredOptions(PruningOptions, name="structured"):
    """Remove hidden neurons of each MLP before the training."""

    changes_shape = True
    needs_blocks = True
    share: Annotated[float, Field(gt=0, lt=1)] = Field(0.25, description="share of the neurons")


class LayersOptions(PruningOptions, name="layers"):
    """Remove blocks from the middle of the model before the training."""

    changes_shape = True
    needs_blocks = True
    remove: Number = Field(1, description="number of blocks")


class SemiStructuredOptions(PruningOptions, name="semi_structured"):
    """Keep two of each four weights (2:4), which sparse tensor cores skip when the model is served (needs a GPU)."""


class QuantizationOptions(Options, axis="quantization"):
    """The number formats of the served weights."""

    library: ClassVar[str | None] = "torchao"


class AsTrainedOptions(QuantizationOptions, name="none", code="parts:unchanged"):
    """Serve the weights as they were trained."""

    library = None


class QFp16Options(QuantizationOptions, name="fp16"):
    """Serve 16-bit floats."""

    library = None


class Int8Options(QuantizationOptions, name="int8"):
    """8-bit integer weights, symmetric, with a scale for each output."""


class Int8AsymmetricOptions(QuantizationOptions, name="int8_asymmetric"):
    """8-bit integer weights with a scale and a zero point for each output."""


class Int8DynamicOptions(QuantizationOptions, name="int8_dynamic"):
    """8-bit integer weights and activations, both symmetric."""


class Int8DynamicAsymmetricOptions(QuantizationOptions, name="int8_dynamic_asymmetric"):
    """8-bit integer weights, symmetric, and activations with a zero point for each token."""


class Int4Options(QuantizationOptions, name="int4"):
    """4-bit integer weights with a scale and a zero point for each group (needs compute capability 8.0)."""

    group: Literal[32, 64, 128, 256] = Field(128, description="weights of one group")


class QatOptions(QuantizationOptions, name="qat"):
    """Quantization-aware training (Jacob et al. 2018): weights are rounded in each step as they will be served."""

    changes_shape = True
    bits: Literal[4, 8] = Field(8, description="bits of a weight")
    activations: bool = Field(True, description="quantize activations to 8 bits, too")


class DistillationOptions(Options, axis="distillation"):
    """What the model learns from."""


class LabelsOptions(DistillationOptions, name="none", code="parts:unchanged"):
    """Learn from the labels alone."""


class SoftOptions(DistillationOptions, name="soft"):
    """Learn also from the outputs of the model of the needed run (Hinton et al. 2015)."""

    temperature: Rate = Field(2.0, description="softens the outputs of both models")
    alpha: Share = Field(0.5, description="weight of the teacher in the loss")


def allowed(annotation: Any, bounds: tuple[Any, ...] = ()) -> str:
    """Say in words which values a type with its bounds allows."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        fields = [part for field in more for part in getattr(field, "metadata", [field])]
        return allowed(inner, (*bounds, *fields))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(allowed(part) for part in get_args(annotation))
    if get_origin(annotation) is Literal:
        *most, last = map(str, get_args(annotation))
        return f"{', '.join(most)} or {last}" if most else last
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[annotation]
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "of length >="}
    limits = [f"{sign} {getattr(bound, key)}" for bound in bounds for key, sign in signs.items() if hasattr(bound, key)]
    return " ".join([words, " and ".join(limits)]) if limits else words


def options(axis: str, choice: Choice) -> Options:
    """Return the validated options of a choice. Raises ValueError with all mistakes: what was given, what is allowed."""
    registry.check(axis, choice.name)
    return _default(axis, choice.name) if not choice.options else _validated(axis, choice)


@cache
def _default(axis: str, name: str) -> Options:
    return CATALOG[axis][name]()


def _validated(axis: str, choice: Choice) -> Options:
    cls, where = CATALOG[axis][choice.name], f"{axis} {choice.name!r}"
    try:
        return cls.model_validate(choice.options, strict=True)
    except ValidationError as error:
        mistakes = {str((found["loc"] or ("",))[0]): found for found in error.errors()}
    messages = []
    for name, found in mistakes.items():
        if found["type"] == "extra_forbidden":
            hint = registry.did_you_mean(name, cls.model_fields) if cls.model_fields else "it has none"
            messages.append(f"{where} has no option {name!r}: {hint}")
        elif not name:
            messages.append(f"{where}: {in_words(found)}")
        else:
            field = cls.model_fields[name]
            words = allowed(field.annotation, tuple(field.metadata))
            messages.append(f"{where}: {name} must be {words}, not {choice.options[name]!r}")
    raise ValueError("\n".join(messages))


def load(axis: str, choice: Choice) -> Any:
    """Return the code of a choice with its options bound as keyword arguments."""
    return partial(registry.load(axis, choice.name), **options(axis, choice).model_dump())
