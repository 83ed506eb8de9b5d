"""Nothing that can be sent makes the stand-in fail in another way than the genuine one."""

import xmlrpc.client
from typing import Any, Final
from urllib.parse import quote, urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from leasehold.events.errors import XendSimError
from leasehold.services.xendsim import rpc, web
from leasehold.services.xendsim.configuring import disk_number
from tests.xendsim.test_life import PCI, Bench

OPS: Final = (
    *("create", "new", "list", "restore", "configure", "unpause", "pause", "rename", "shutdown", "delete", "start"),
    *("sysrq", "wait_for_devices", "destroy", "reset", "save", "dump", "migrate", "usb_add", "maxmem_set"),
    *("mem_target_set", "set_vcpus", "vcpuinfo", "pincpu", "devices", "device_create", "device_destroy"),
    *("device_configure", "domain_sched_credit_get", "domain_sched_credit_set", "cpu_sedf_get", "clear", "nothing"),
)
FIELDS: Final = (
    *("name", "reason", "key", "file", "live", "crash", "reset", "destination", "port", "node", "ssl", "memory"),
    *("target", "vcpus", "vcpu", "cpumap", "type", "config", "dev", "force", "rm_cfg", "weight", "cap", "dev_id"),
    "change_home_server",
)
CONFIGS: Final = (
    *(
        "(vbd)",
        "(pci)",
        "(vusb)",
        "(vif)",
        "pci",
        "()",
        "(())",
        "(vbd (dev xvdb))",
        "(vbd (uname phy:/dev/a) (dev xvdz))",
    ),
    *(
        "(pci (dev (bus x)))",
        "(pci (dev) (state Initialising))",
        "(pci (dev (opts)) (state Closing))",
        "(pci (dev (opts ())))",
    ),
    *(
        "(vusb (port (2)))",
        "(vusb (port ((2) 1-1)))",
        "(vusb (num-ports 999999999))",
        "(vusb (num-ports x))",
        "(vusb (port))",
    ),
    *(
        "(vm)",
        "(vm (name a) (vcpus 1) (memory 1))",
        "(vm (name a) (vcpus 0) (memory 1))",
        "(vm (name a) (vcpus 99999999) (memory 1))",
    ),
    *(
        "(vm (name (a)) (vcpus 1) (memory 1))",
        "(vm (name a) (vcpus 1) (memory 1) (image hvm))",
        "(vm (name a) (vcpus 1) (memory x))",
    ),
    *(
        "(vm (name a) (vcpus 1) (memory 1) (image (hvm (vnc (1)) (usb ()))) (device ()))",
        "(vm (name a) (vcpus 1) (memory 1) (uuid ()))",
    ),
    "(vm (name b) (vcpus 1) (memory 1) (device (vif (mac x))) (device))",
)
PATHS: Final = (
    "",
    "xend",
    "domain",
    "node",
    "dmesg",
    "log",
    "vnet",
    "web1",
    "gpu",
    "cold",
    "1",
    "0",
    "nobody",
    "%",
    "é",
)
WORDS: Final = (
    *("0", "1", "-1", "999999999999999999999", "poweroff", "suspend", "crash", "web1", "vbd", "pci", "vusb", "xvda"),
    *("vif", "all", "0,1", "/tmp/a", "", "\x00", "é", "r", "x"),
)


def bench() -> Bench:
    """A host with one domain of each kind."""
    made = Bench()
    made.host.state.timing.hotplug_timeout_ms = 0
    made.run("web1", "(device (vbd (uname phy:/dev/vg0/web1) (dev xvda1) (mode w))) (device (vusb (port (1 1-1))))")
    made.run("gpu", f"(image (hvm (usb 1) (vnc 1))) {PCI}")
    made.define("cold", PCI)
    return made


VALUES = st.sampled_from(WORDS) | st.sampled_from(CONFIGS) | st.text(max_size=8)
PAIRS = st.lists(st.tuples(st.sampled_from(("op", *FIELDS)), VALUES), max_size=8)


@st.composite
def requests(draw: st.DrawFn) -> web.Request:
    """A request, most of them near to what is meant."""
    op = draw(st.sampled_from(OPS))
    parts = ["xend", "domain", draw(st.sampled_from(("web1", "gpu", "cold", "0")))]
    path = "/".join(draw(st.just(parts) | st.just(parts[:2]) | st.lists(st.sampled_from(PATHS), max_size=4)))
    fields = dict.fromkeys(FIELDS, draw(st.sampled_from(WORDS))) | dict(draw(PAIRS)) | {"op": op}
    if draw(st.booleans()):
        fields["config"] = draw(st.sampled_from(CONFIGS))
    request = web.Request(method=draw(st.sampled_from(("GET", "POST", "POST", "HEAD", "PUT"))), uri="/" + quote(path))
    request.headers = {"content-type": "application/x-www-form-urlencoded"}
    if draw(st.integers(0, 5)) == 0:
        request.headers |= {"user-agent": "x", "accept": "*/*"}
    if draw(st.integers(0, 5)) == 0:
        request.uri += "?" + urlencode(draw(PAIRS))
    if draw(st.integers(0, 9)) == 0:
        request.headers["content-type"] = draw(
            st.sampled_from(("multipart/form-data; boundary=a", "multipart/form-data", "text/x"))
        )
    request.body = draw(st.just(urlencode(fields, errors="replace").encode()) | st.binary(max_size=40) | st.none())
    return request


@settings(max_examples=150, deadline=None)
@given(asked=st.lists(requests(), min_size=1, max_size=6))
def test_any_request(asked: list[web.Request]) -> None:
    """Each request has a reply of a kind that the genuine one has, and the host can be shown after it."""
    made = bench()
    for request in asked:
        reply = web.answer(made.xend, request)
        if reply.then is not None:
            reply = reply.then()
        assert reply.code in {200, 201, 202, 404, 406, 500, 501}, (request, reply)
        assert "\n" not in reply.reason
        made.wait(1_000)
    for each in made.host.shown():
        made.xend.printer.domain(each)
        made.xend.printer.vcpus(each)
    web.answer(made.xend, web.Request(method="GET", uri="/xend/domain?detail=1"))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["web1", "gpu", "cold"])
def test_any_configuration(name: str, config: str) -> None:
    """A configuration that makes no sense is refused, or taken and can be shown; each operation by itself."""
    made = bench()
    asked = [(f"/xend/domain/{name}", "device_create"), (f"/xend/domain/{name}", "device_configure")]
    for path, op in [*asked, ("/xend/domain", "new"), ("/xend/domain", "create")]:
        body = urlencode({"op": op, "config": config, "dev": "0"}).encode()
        form = {"content-type": "application/x-www-form-urlencoded"}
        reply = web.answer(made.xend, web.Request(method="POST", uri=path, headers=form, body=body))
        assert reply.code in {200, 201, 500}, reply
        for each in made.host.shown():
            made.xend.printer.domain(each)
            made.xend.printer.devices(each, "vusb")


RPC_VALUES = st.recursive(
    st.sampled_from(WORDS) | st.integers(-9, 2**31 - 1) | st.booleans() | st.floats(allow_nan=False),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.sampled_from("ab"), each, max_size=2),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(rpc.METHODS)), values=st.lists(RPC_VALUES, max_size=5), domain=st.booleans())
@example(name="xend.domain", values=["nobody"], domain=False)
def test_any_call(name: str, values: list[Any], domain: bool) -> None:
    """Each call of XML-RPC is answered by a value, or by one of xend's faults."""
    made = bench()
    params = ("web1", *values) if domain else tuple(values)
    try:
        body = xmlrpc.client.dumps(params, name).encode()
    except OverflowError:
        return
    reply = rpc.answer(made.xend, body)
    try:
        xmlrpc.client.loads(reply.then() if reply.then else reply.body)
    except xmlrpc.client.Fault as fault:
        assert fault.faultCode in {1, 2, 3}, fault


@given(value=RPC_VALUES)
@example(value=[True, {"a": [1.5, "<&>"]}, -3, [], ""])
def test_written(value: Any) -> None:
    """Values are written to the byte as Python's own XML-RPC writes them, which the genuine one does, too."""
    try:
        expected = xmlrpc.client.dumps((value,), methodresponse=True)
    except OverflowError:
        return
    assert f"<params>\n<param>\n{rpc.written(value)}</param>\n</params>\n" in expected


@settings(deadline=None)
@given(body=st.binary(max_size=200))
def test_any_xml(body: bytes) -> None:
    """What is no call of XML-RPC is a fault."""
    with pytest.raises(xmlrpc.client.Fault):
        xmlrpc.client.loads(rpc.answer(bench().xend, body).body)


@pytest.mark.parametrize(
    ("name", "number"),
    [("xvda", 51712), ("xvda1", 51713), ("xvdb", 51728), ("xvdz", 268441856), ("hda:disk", 768), ("hdc:cdrom", 5632),
     ("sda", 2048), ("51728", 51728), ("vbd/51728", 51728), ("/dev/xvda", 51712)],
)  # fmt: skip
def test_disk_numbers(name: str, number: int) -> None:
    """Names of virtual disks have the numbers that xend gives them (xvda1, xvdb, xvdz, hda, hdc: as recorded)."""
    assert disk_number(name) == number


def test_no_disk() -> None:
    """What names no disk is refused."""
    with pytest.raises(XendSimError):
        disk_number("floppy")
