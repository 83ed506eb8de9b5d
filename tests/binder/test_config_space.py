"""Registers are read as the standards have it, from whatever bytes there are; switches without ACS are found."""

import random
from pathlib import Path

import pytest

from leasehold.services.binder.config_space import ConfigSpace
from tests.binder.bench import Bench
from tests.binder.kernel import NIC, VF0, pci

EXPRESS, POWER, FEATURES = 0x10, 0x01, 0x13


def config(
    *, header: int = 0, port: int = 0, flr: bool = False, af: bool = False, pm: bool = False, acs: int = -1
) -> bytes:
    """A configuration space: power management at 0x40, PCI Express at 0x50, advanced features at 0x90; `acs`: what is
    enabled of it, -1: there is none.
    """
    data = bytearray(4096)
    data[0x06], data[0x0E], data[0x34] = 0x10, header, 0x40
    data[0x40:0x42] = POWER, 0x50
    data[0x44] = 0 if pm else 0x08
    data[0x50:0x52] = EXPRESS, 0x90
    data[0x52] = port << 4 | 2
    data[0x57] = 0x10 if flr else 0
    data[0x90:0x94] = FEATURES, 0, 6, 3 if af else 0
    if acs >= 0:
        data[0x100:0x104] = (0x0D | 1 << 16).to_bytes(4, "little")
        data[0x106] = acs
    return bytes(data)


def space(folder: Path, data: bytes) -> ConfigSpace:
    """Of a function whose file holds these bytes."""
    (folder / "config").write_bytes(data)
    return ConfigSpace(str(folder))


@pytest.mark.parametrize(
    ("given", "ways"),
    [({}, ()), ({"flr": True}, ("flr",)), ({"af": True, "pm": True}, ("af_flr", "pm")), ({"pm": True}, ("pm",))],
)
def test_ways_to_reset(tmp_path: Path, given: dict[str, bool], ways: tuple[str, ...]) -> None:
    """Function level reset of PCI Express, of the advanced features, and a power cycle that loses state."""
    assert space(tmp_path, config(**given)).resets == ways


@pytest.mark.parametrize(
    ("port", "acs", "lacks"), [(6, -1, True), (6, 0x1D, False), (6, 0x05, True), (4, -1, False), (5, -1, False)]
)
def test_switch_ports(tmp_path: Path, port: int, acs: int, lacks: bool) -> None:
    """Only ports of a switch that point down need it, and all four ways must be enabled."""
    assert space(tmp_path, config(header=1, port=port, acs=acs)).lacks_acs is lacks


def test_whatever_bytes_there_are(tmp_path: Path) -> None:
    """Loops of capabilities, cut files and noise come to an end without an error."""
    seed = 20_261_121
    print(f"seed {seed}")
    rng = random.Random(seed)
    for size in (0, 1, 0x0E, 0x0F, 64, 255, 256, 257, 4096):
        for _ in range(20):
            found = space(tmp_path, rng.randbytes(size))
            assert -1 <= found.header_type < 0x80
            assert set(found.resets) <= {"flr", "af_flr", "pm"}
            assert found.lacks_acs in (True, False)
    loop = bytearray(config())
    loop[0x91] = 0x40
    loop[0x100:0x104] = (0x01 | 0x100 << 20).to_bytes(4, "little")
    assert space(tmp_path, bytes(loop)).resets == ()
    assert ConfigSpace(str(tmp_path / "nothing")).header_type == -1


@pytest.mark.parametrize("acs", [-1, 0x1D])
def test_behind_a_switch_without_acs(bench: Bench, acs: int) -> None:
    """A stub without isolation of its own, and no groups: who else is below the switch is named; with him it goes."""
    kernel = bench.kernel
    for link in kernel.root.sys.glob("bus/pci/devices/*/iommu_group"):
        link.unlink()
    upstream = "pci0000:00/0000:00:1d.0/0000:10:00.0"
    kernel.pci.bridge("pci0000:00/0000:00:1d.0")
    kernel.pci.bridge(upstream)
    for number in (0, 1):
        port = kernel.pci.bridge(f"{upstream}/0000:11:0{number}.0")
        (kernel.tree.devices / port / "config").write_bytes(config(header=1, port=6, acs=acs))
        kernel.pci.add(f"{port}/0000:1{number + 2}:00.0", "e1000e", "8086:10d3", "flr")
    kernel.run(["modprobe", "xen-pciback"])
    bench = Bench(kernel, "pciback")
    if acs < 0:
        refused = bench.failed(pci("0000:12:00.0"))
        assert refused.reason == "it is behind a switch that lacks ACS (0000:11:00.0), and so is 0000:13:00.0"
        bench.ready(pci("0000:12:00.0"), pci("0000:13:00.0"))
    else:
        bench.ready(pci("0000:12:00.0"))
    bench.ready(pci(NIC), pci(VF0))
