"""What a meter is: a source of energy readings, and what it declares about them.

`bench.registry` maps the names of meters to their classes. A new meter is one class there: the sidecar, the trace, the
doctor and the checks of a suite read its declaration and know no meter by name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

from bench import registry
from bench.schema import Gpu

Component = Literal["gpu", "cpu", "dram", "node"]
Scope = Literal["gpu", "module", "package", "dram", "machine"]
Nature = Literal["measured", "estimated", "imported"]
Listing = tuple[list[Gpu], str | None, str | None]
"""GPUs of one vendor, the version of its driver, and the reason if there are no GPUs."""
_COMPONENTS = get_args(Component)
INTEGERS = ("t_ns", "wall_ns", "energy_uj", "power_mw", "wrap_uj")
INTERVAL = 0.095
"""Seconds between readings of a counter that is published every 100 ms. A little less than that period: no step is missed,
and the times of the steps can be estimated, which readings in step with the counter would not allow (`curve`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One reading of one device, or an event.

    `energy_uj` is a cumulative counter in microjoules, `power_mw` instant power in milliwatts, `wrap_uj` the range
    after which the counter starts again. What a device does not report is None. Raises ValueError for anything else.
    """

    t_ns: int
    wall_ns: int
    source: str | None = None
    component: Component | None = None
    device: str | None = None
    energy_uj: int | None = None
    power_mw: int | None = None
    wrap_uj: int | None = None
    mode: str | None = None
    event: str | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        numbers = self.t_ns, self.wall_ns, self.energy_uj or 0, self.power_mw or 0, self.wrap_uj or 0
        if any(type(value) is not int or value < 0 for value in numbers):
            values = {name: getattr(self, name) for name in INTEGERS}
            raise ValueError(f"t_ns, wall_ns and counters must be whole numbers of at least 0: {values}")
        if self.event is None:
            if self.source not in registry.names("meter") or self.component not in _COMPONENTS or not self.device:
                raise ValueError(f"a reading needs the name of a meter as its source, a component and a device: {self}")
            if self.energy_uj is None and self.power_mw is None:
                raise ValueError(f"a reading needs energy or power: {self}")

    def to_json(self) -> str:
        """Return one line of JSON without its end; fields that are None are left out."""
        return _encode({name: value for name in _NAMES if (value := getattr(self, name)) is not None})

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Return the row of a line; unknown fields are ignored. Raises ValueError for a damaged line."""
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"not a row: {line[:80]!r}")
        try:
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        except TypeError as error:
            raise ValueError(f"not a row: {line[:80]!r}") from error


_NAMES = tuple(f.name for f in fields(Reading))
_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: the sidecar writes ten rows a second for each GPU


class Meter(Protocol):
    """A source of energy readings. The attributes of the class declare what its readings mean; subclass it.

    A reading with `energy_uj` is a cumulative counter, one with `power_mw` a sample of power that is integrated. A failed
    read is a row with the event `error`, never a reading of 0.
    """

    source: ClassVar[str] = ""
    """Its name in the registry, and the `source` of its rows."""
    components: ClassVar[tuple[Component, ...]] = ()
    """What it may read on some machine."""
    period: ClassVar[float] = 1.0
    """Seconds between readings."""
    nature: ClassVar[Nature] = "measured"
    """Whether its joules come from hardware, from a model, or from a recording."""
    steps: ClassVar[bool] = False
    """Whether its counter is published in steps, so that a reading may be out of date by one of them."""
    always_moves: ClassVar[bool] = False
    """Whether a counter that stands still for seconds is broken, because what it measures always draws power."""
    mirrored: ClassVar[bool] = False
    """Whether two devices may show one and the same counter, which then counts once."""
    scope: ClassVar[Scope | None] = None
    """What a sensor spans, if that does not follow from the component."""
    unverified: ClassVar[str] = ""
    """What its readings were never compared with; every reading then carries the flag `unverified_meter`."""
    argument: ClassVar[str] = ""
    """What a suite must write after the name and a colon; empty if nothing."""

    reason: str | None = None
    """Why nothing can be read; None if something can."""
    unread: Mapping[str, str] = {}
    """Why single devices cannot be read."""
    doubts: Mapping[str, str] = {}
    """Why the counters of single devices are not used, although there are some."""
    starting: bool = False
    """Whether it is still starting; until then it returns no rows."""

    @classmethod
    def open(cls, argument: str, gpus: Sequence[str] | None) -> Self:
        """Return the meter for the GPUs with these UUIDs, or for all visible ones if None."""
        return cls()

    @classmethod
    def list_gpus(cls, own_pids: Collection[int] = ()) -> Listing:
        """Return the GPUs that this meter's vendor lists; processes of `own_pids` are not users of a GPU."""
        return [], None, None

    def read(self) -> list[Reading]:
        """Return one row for each device."""
        return []

    def row(self, component: Component, device: str, **values: Any) -> Reading:
        """Return a row of this meter, by default with the time of now."""
        times = {"t_ns": time.monotonic_ns(), "wall_ns": time.time_ns()}
        return Reading(source=self.source, component=component, device=device, **times | values)

    def conditions(self, root_pid: int) -> list[Reading]:
        """Return event rows with the conditions of each device; processes below `root_pid` belong to the run."""
        return []

    def close(self) -> None:
        """Release the hardware."""
        return


def meter_class(name: str) -> type[Meter]:
    """Return the class of a meter, named as in a suite (`nvml`, `replay:/path`). Raises ValueError if it is unknown."""
    loaded: type[Meter] = registry.load("meter", name.partition(":")[0])
    return loaded


def check_meter(name: str) -> None:
    """Raise ValueError if a suite may not name a meter like this."""
    cls, argument = meter_class(name), name.partition(":")[2]
    if bool(argument) != bool(cls.argument):
        usage = f"{cls.source}:{cls.argument}" if cls.argument else cls.source
        raise ValueError(f"meter {name!r} must be written {usage}")


def meter_classes() -> Iterator[type[Meter]]:
    """Import and return all registered meters, in the order of the registry."""
    return map(meter_class, registry.names("meter"))


def usable(names: Iterable[str]) -> list[str]:
    """Return the named meters that can read hardware here; each is opened and closed for it."""
    present = []
    for name in names:
        if meter_class(name).nature == "measured":
            meter = meter_class(name).open(name.partition(":")[2], None)
            meter.close()
            present += [] if meter.reason else [name]
    return present


def list_gpus(own_pids: Collection[int] = ()) -> Listing:
    """Return the visible GPUs of the first vendor that has any, its driver, and why there is none.

    Compute processes of others are in `used_by`; this process, its children and `own_pids` are not others.
    """
    listings = [cls.list_gpus(own_pids) for cls in meter_classes() if "gpu" in cls.components]
    present = [listing for listing in listings if listing[0]]
    explained = [listing for listing in listings if listing[2]]
    if not present and len(explained) > 1:
        return [], None, "; ".join(str(reason) for _, _, reason in explained)
    return (present or explained or [([], None, None)])[0]
