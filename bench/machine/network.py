"""The network of a node, as its kernel states it: ports of InfiniBand adapters, and the interface on which ranks meet."""

from __future__ import annotations

from pathlib import Path

from bench.record import NetworkFacts, NetworkPort

CLASSES = Path("/sys/class")


def network_facts(interface: str, classes: Path = CLASSES) -> NetworkFacts:
    """Return what the kernel says of a network interface, and of all ports of adapters; what it does not say is absent."""
    folder = classes / "net" / interface
    megabits, mtu = _count(folder / "speed"), _count(folder / "mtu")
    return NetworkFacts(
        interface=interface,
        bits_per_second=None if megabits is None else megabits * 10**6,
        mtu_bytes=mtu,
        ports=[_port(path) for path in sorted((classes / "infiniband").glob("*/ports/*"))],
    )


def _port(folder: Path) -> NetworkPort:
    """Return what the kernel says of a port: `4: ACTIVE`, `400 Gb/sec (4X NDR)`, and `InfiniBand` or `Ethernet`."""
    state = _text(folder / "state")
    return NetworkPort(
        name=f"{folder.parents[1].name}:{folder.name}",
        state=None if state is None else state.rpartition(":")[2].strip(),
        rate=_text(folder / "rate"),
        link=_text(folder / "link_layer"),
    )


def _text(path: Path) -> str | None:
    """Return the content of a file; None where it cannot be read (the speed of a loopback interface), or is empty."""
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeError):
        return None


def _count(path: Path) -> int | None:
    """Return a positive number; None where there is none: a speed of -1 is unknown."""
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() and int(text) else None
