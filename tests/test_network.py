"""The network of nodes: read from a tree as the kernel has it, told on the page of a run, and flagged where it is slow."""

from pathlib import Path

import pandas as pd
import pytest

from app.pages.nodes import network_words
from app.pages.nodes import nodes as nodes_of
from bench.figures.flags import judge
from bench.machine.network import network_facts
from bench.record import NetworkFacts, NetworkPort, NodeFacts, RunRecord
from bench.schema import COMMAND
from tests import rows

IB = NetworkPort(name="mlx5_0:1", state="ACTIVE", rate="400 Gb/sec (4X NDR)", link="InfiniBand")


def port(root: Path, adapter: str, number: int, **files: str) -> None:
    folder = root / "infiniband" / adapter / "ports" / str(number)
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def interface(root: Path, name: str, **files: str) -> None:
    folder = root / "net" / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text + "\n")


def test_the_kernel_tells_ports_and_interface(tmp_path: Path) -> None:
    infiniband = {"state": "4: ACTIVE", "rate": "400 Gb/sec (4X NDR)", "link_layer": "InfiniBand"}
    port(tmp_path, "mlx5_0", 1, **infiniband)
    port(tmp_path, "mlx5_1", 1, state="1: DOWN", rate="10 Gb/sec (4X SDR)", link_layer="InfiniBand")
    port(tmp_path, "mlx5_2", 1, state="4: ACTIVE", rate="200 Gb/sec (4X HDR)", link_layer="Ethernet")
    port(tmp_path, "mlx5_3", 2)
    interface(tmp_path, "ib0", speed="400000", mtu="2044")
    found = network_facts("ib0", tmp_path)
    assert (found.interface, found.bits_per_second, found.mtu_bytes) == ("ib0", 400 * 10**9, 2044)
    assert found.ports[0] == IB
    assert found.ports[3] == NetworkPort(name="mlx5_3:2"), "what it does not say is absent"
    assert [each.active_infiniband for each in found.ports] == [True, False, False, False]


@pytest.mark.parametrize("speed", ["-1", "0", "", "4294967295x"])
def test_an_unknown_speed_is_absent(tmp_path: Path, speed: str) -> None:
    interface(tmp_path, "eth0", speed=speed, mtu="1500")
    found = network_facts("eth0", tmp_path)
    assert (found.bits_per_second, found.mtu_bytes, found.ports) == (None, 1500, [])
    (tmp_path / "net" / "eth0" / "speed").unlink()
    assert network_facts("eth0", tmp_path).bits_per_second is None
    assert network_facts("eth1", tmp_path) == NetworkFacts(interface="eth1")


def test_the_loopback_interface_of_this_machine_has_no_speed() -> None:
    """Its file is there, and reading it is an error of the kernel."""
    assert network_facts("lo").bits_per_second is None


def over(record: RunRecord, ports: list[NetworkPort], device: str, variables: dict[str, str]) -> RunRecord:
    """Return a record of a run on two nodes, of which the second has these ports."""
    network = NetworkFacts(interface="eth0", ports=ports)
    nodes = [
        NodeFacts(name=name, first_rank=rank, ended="ended", network=each)
        for name, rank, each in (("n1", 0, None), ("n2", 1, network))
    ]
    spec = record.spec.changed(num_nodes=2, devices_per_node=1, device_type=device)
    environment = record.environment.changed(variables=variables)
    return record.changed(nodes=nodes, spec=spec, environment=environment)


@pytest.mark.parametrize(
    ("device", "variables", "slow"),
    [
        ("cpu", {}, True),  # gloo
        ("gpu", {}, False),
        ("gpu", {"NCCL_IB_DISABLE": "1"}, True),
        ("gpu", {"NCCL_IB_DISABLE": "0"}, False),
        ("gpu", {"NCCL_IB_DISABLE": "1", "NCCL_NET_PLUGIN": "aws-ofi"}, False),  # another transport may be used
        ("gpu", {"NCCL_NET": "Socket"}, True),
        ("gpu", {"NCCL_NET": "IB"}, False),
        ("gpu", {"NCCL_SOCKET_IFNAME": "eth0"}, False),  # where they meet, not how they exchange data
    ],
)
def test_sockets_in_place_of_infiniband_are_flagged(device: str, variables: dict[str, str], *, slow: bool) -> None:
    record = rows.record(2)
    assert ("slow_network" in judge(over(record, [IB], device, variables), {})) is slow
    for others in ([], [IB.changed(state="DOWN")], [IB.changed(link="Ethernet")]):
        assert "slow_network" not in judge(over(record, others, device, variables), {})
    own = over(record, [IB], device, variables)
    assert "slow_network" not in judge(own.changed(spec=own.spec.changed(workload=COMMAND)), {})


def test_the_page_of_a_run_shows_the_network_of_each_node() -> None:
    record = over(rows.record(2), [IB, IB.changed(name="mlx5_1:1"), IB.changed(state="DOWN")], "cpu", {})
    first, second = nodes_of(record)["Network"]
    assert pd.isna(first)
    assert second == ("eth0; 2 x InfiniBand 400 Gb/sec (4X NDR) ACTIVE; 1 x InfiniBand 400 Gb/sec (4X NDR) DOWN")
    known = NetworkFacts(interface="ib0", bits_per_second=25 * 10**9, mtu_bytes=9000)
    assert network_words(known) == "ib0, 25 Gb/s, MTU 9000"
