"""Selectors: what they match, what is said of those that are wrong, and that what is certain of them is so."""

import random
import subprocess
import sys

import pytest

from leasehold.events import inputs, limits, schedule_inputs
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DeviceId, Holder, RequestId
from leasehold.events.scheduling import Constraint, Need, Option
from leasehold.projections import attributes, buckets, narrowing, selectors
from leasehold.projections.celparser import Fault
from leasehold.projections.selectors import Selector
from leasehold.projections.state import State
from tests.projections.selecting import DISK, GPU, MDEV, NIC, STICK, VF, Chance, UnsayableError, world

_HOSTILE = "tests.projections.hostile_selectors"
_PHYSICAL = (NIC, VF, GPU, MDEV, DISK, STICK)
MATCHES = {
    "true": _PHYSICAL,
    'device.vendor == "8086"': (NIC, VF),
    'device.vendor == "10de" && device.product == "20b0"': (GPU,),
    "device.pci.class == '0302'": (GPU,),
    'device.pci.class in ["0200", "0302"]': (NIC, VF, GPU),
    'device.pci.class.startsWith("01")': (DISK,),
    "device.pci.vf": (VF,),
    'device.pci.pf == "pci/0000:41:00.0"': (MDEV,),
    "device.numa_node == 0": (NIC, VF),
    "device.numa_node % 2 == 1": (GPU,),
    "!has(device.numa_node)": (MDEV, DISK, STICK),
    "device.numa_node == 0 || device.bus == 'usb'": (NIC, VF, STICK),
    'device.driver == "" && device.bus == "pci"': (VF, MDEV),
    'device.driver != "vfio-pci" && device.kind == "pci"': (NIC, VF, DISK),
    'device.pcie_root == "pci0000:40"': (GPU,),
    'device.attributes["resource.kubernetes.io"].pcieRoot == "pci0000:40"': (GPU,),
    'device.attributes["resource.kubernetes.io"].pciBusID == "0000:03:00.0"': (NIC,),
    "device.attributes['resource.kubernetes.io'].numaNode == 1": (GPU,),
    'device.attributes["rack"] == "b4"': (NIC,),
    'has(device.attributes["rack"])': (NIC,),
    "device.nets.exists(net, net.speed_mbps >= 1000)": (NIC,),
    "device.nets.exists(net, net.link == 'down')": (NIC,),
    "size(device.nets) == 2 && device.nets[0].name == 'eth0'": (NIC,),
    "device.nets.filter(net, net.link == 'up').size() == 1": (NIC,),
    "device.nets.exists_one(net, net.driver == 'igb')": (NIC,),
    "has(device.disks) && device.disks.all(disk, disk.size_bytes > 500000000000)": (DISK,),
    "device.disks.exists(disk, disk.model.matches('^SSD [0-9]+$'))": (DISK,),
    'device.vendor_name.matches("(?i)INTEL")': (NIC,),
    r"device.driver.matches(r'^\w+-\w+$')": (GPU,),
    r"device.driver.matches(r'^[\w-]+$') && !device.driver.matches(r'\d|\W')": (NIC, DISK),
    r"device.vendor_name.matches(r'^[^\s]+\s\S+$')": (NIC,),
    'device.mdev.type == "nvidia-63"': (MDEV,),
    '"flr" in device.pci.resets': (NIC,),
    "device.pci.vfs < device.pci.vfs_max": (NIC,),
    "device.pci.link_width < device.pci.link_width_max": (NIC,),
    'device.pci.subsystem_vendor == "15d9"': (NIC,),
    'device.usb.class == "08" && device.usb.speed_kbps >= 480000': (STICK,),
    'device.usb.port == "2-1.4"': (STICK,),
    "int(device.usb.class) == 8": (STICK,),
    'string(device.numa_node) == "1"': (GPU,),
    'device.serial == "A1" ? true : device.iommu_group > 10': (NIC, GPU),
    '// all cards of one maker\ndevice.vendor == "8086" && // but\n!device.pci.vf': (NIC,),
    'device.vendor == "\\x38086"': (NIC, VF),
    "device.host == 'h1'": _PHYSICAL,
    'device.id == "h1/pci/0000:41:00.0"': (GPU,),
    "[1, 2].exists(x, [2, 3].exists(y, x == y)) && device.numa_node == 1": (GPU,),
    "device.numa_node - 1 == 0": (GPU,),
    "-device.numa_node == -1": (GPU,),
    "1 + device.numa_node * 5 == 6": (GPU,),
    "10 - 4 - 5 == device.numa_node": (GPU,),
    "device.pci.vf || device.numa_node == 1 && false": (VF,),
}


@pytest.mark.parametrize("text", MATCHES)
def test_what_is_meant_matches(text: str) -> None:
    """A selector matches the devices that it means, and no others."""
    state = world()
    selector = selectors.compiled(text)
    assert isinstance(selector, Selector), selector
    found = [key for key in _PHYSICAL if selector.matches(state, DeviceId(f"h1/{key}")) is True]
    assert found == list(MATCHES[text])


WRONG = {
    "": (1, 1, "it is empty"),
    "   ": (1, 1, "it is empty"),
    "device.vendor": (1, 1, "not yes or no"),
    "vendor == '8086'": (1, 1, "meant is device.vendor"),
    "device.numa == 0": (1, 1, "meant is device.numa_node"),
    "device.speed == 0": (1, 1, "meant is device.usb.speed_kbps"),
    "device.foo == 0": (1, 1, "there are bus, disks"),
    "device == 'a'": (1, 1, "say what of the device"),
    "device.pci == 'a'": (1, 1, "say what of device.pci is meant"),
    "device.nets.name == 'a'": (1, 1, "device.nets is a list"),
    "device.vendor.x == 'a'": (1, 1, "device.vendor is a text"),
    "device.vendor = '8086'": (1, 15, "meant is =="),
    "device.vendor == '8086' & true": (1, 25, "meant is &&"),
    "device.vendor == 8086": (1, 15, "a text on one side of == and a number"),
    "device.vendor == '10DE'": (1, 18, 'it looks like "8086"'),
    "device.vendor in ['8086', '10DE']": (1, 27, 'it looks like "8086"'),
    "'30200' == device.pci.class": (1, 1, 'it looks like "0302"'),
    "device.numa_node in ['0']": (1, 1, "never in a list of texts"),
    "device.numa_node < '0'": (1, 18, "never compared"),
    "device.pci.vf < true": (1, 15, "not compared by <"),
    "device.nets == device.nets": (1, 13, "not compared by =="),
    "true &&": (1, 8, "a value is missing, before the end"),
    "(true": (1, 6, "here ) is missing"),
    "true)": (1, 5, "cannot follow here"),
    "[1, 'a'].size() == 2": (1, 5, "the list is of others"),
    "[[1]].size() == 1": (1, 2, "lists are of"),
    "device.vendor == '8086": (1, 18, "a quotation mark is missing"),
    "device.vendor\n  == 8086": (2, 3, "never equal"),
    "device.vendor == '80\n86'": (1, 18, "one of several lines"),
    r"device.vendor == '\'": (1, 18, "a quotation mark is missing"),
    r"device.vendor == '\d'": (1, 19, r"a backslash itself is \\"),
    r"device.vendor == '\ud800'": (1, 19, "no character"),
    "device.numa_node == 1.5": (1, 21, "numbers are whole"),
    "device.numa_node == 1u": (1, 21, "numbers are whole"),
    "device.numa_node == 9223372036854775808": (1, 21, "the largest number"),
    f"device.numa_node == {'9' * 4000}": (1, 21, "the largest number"),
    "device.serial == null": (1, 18, "there is no null"),
    "device.serial == b'a'": (1, 18, "bytes"),
    "{'a': 1}.a == 1": (1, 1, "maps"),
    "now() > 1": (1, 1, "there is no function now"),
    "timestamp('x') == 1": (1, 1, "there is no function timestamp"),
    "device.nets.map(n, n.name).size() == 1": (1, 13, "there is no function map"),
    "device.vendor.startsWith()": (1, 15, "startsWith takes 2"),
    "device.nets.exists(n)": (1, 13, "takes a name and a condition"),
    "device.nets.exists(device, true)": (1, 20, "call the variable otherwise"),
    "device.nets.exists(n, device.nets.exists(n, true))": (1, 35, "an outer loop's"),
    "device.nets.exists(n, n.speed > 1)": (1, 23, "it has name, mac"),
    "device.vendor.exists(n, true)": (1, 1, "goes over a list"),
    "size(device.vendor) == 4": (1, 6, "counts the entries of a list"),
    "has(true)": (1, 1, "has() asks for one attribute"),
    "has(device.vendor == 'a')": (1, 1, "has() asks for one attribute"),
    "device.vendor.matches(device.product)": (1, 23, "written out"),
    "device.vendor.matches('(')": (1, 23, "no pattern"),
    "device.vendor.matches('a{9}')": (1, 23, "not among what patterns know"),
    r"device.vendor.matches(r'\p{L}')": (1, 23, "not among what patterns know"),
    "device.vendor.matches('(?s).')": (1, 23, "not among what patterns know"),
    "device.vendor.matches('[[:alpha:]]')": (1, 23, "not among what patterns know"),
    "device.vendor.matches('[a&&b]')": (1, 23, "not among what patterns know"),
    r"device.vendor.matches(r'[\W]')": (1, 23, "between [ and ]"),
    "device.vendor.matches('ä')": (1, 23, "ASCII"),
    f"device.vendor.matches('{'a' * 129}')": (1, 23, "at most 128"),
    "device.attributes.size() == 1": (1, 1, "a name stands in brackets"),
    'device.attributes["resource.kubernetes.io"].cpu == 1': (1, 1, "of the standard ones there are"),
    "device.attributes['\x1b[2J'].x == 1": (1, 1, "is a text"),
    "true \x1b": (1, 6, "has no meaning"),
    "'\\\x1b' == 'a'": (1, 2, "stands for nothing"),
    "for == 1": (1, 1, "a word of the language"),
    "!device.vendor": (1, 2, "behind ! stands yes or no"),
    "device.vendor + 'a' == 'b'": (1, 1, "beside + stand numbers"),
    "device.vendor ? true : false": (1, 1, "before ? stands yes or no"),
    "true ? true : 1": (1, 15, "as before it"),
    "[1].all(a, [2].all(b, [3].all(c, true)))": (1, 27, "at most 2 deep"),
    "(" * 40 + "true" + ")" * 40: (1, 33, "nested more than 32"),
    "!" * 40 + "true": (1, 33, "nested more than 32"),
    "1" + " + 1" * 40 + " == 1": (1, 129, "nested more than 32"),
    "true" + " && true" * 600: (1, 1, "longer than 4096"),
    "[" + ",".join("1" * 600) + "].size() == 600": (1, 1024, "more than 512 parts"),
    "device.nets.all(a, device.disks.all(b, " + " && ".join(["a.name != b.name"] * 10) + "))": (1, 1, "steps; at most"),
    "device.nets.all(n, n.name.matches('" + "." * 60 + "'))": (1, 1, "steps; at most"),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_with_its_place(text: str) -> None:
    """A selector that is none is told by line and column, with what would be right, and without being loaded."""
    line, column, said = WRONG[text]
    fault = selectors.check(text)
    assert isinstance(fault, Fault), fault
    assert said in fault.message
    assert fault.place == (line, column) or not column, f"{fault.shown}"
    assert fault.shown.replace("\n", "").isprintable()
    shown = fault.shown.split("\n")
    assert len(shown) == 3 and shown[2].strip() == "^"
    assert len(shown[2]) <= 2 + 2 * 60 and len(shown[1]) <= 2 + 2 * 60
    assert selectors.compiled(text) == fault


UNSAYABLE = {
    "device.numa_node >= 0": "it has no numa_node",
    "device.nets[5].name == 'a'": "a list has no entry of that number",
    "1 / (device.pci.class == '0108' ? 0 : 1) == 1": "it divides by zero",
    "9223372036854775807 + (device.pci.class == '0108' ? 1 : 1) > 0": "a number is too large",
    "int(device.driver) == 1": "a text is no number, or a pattern is too large",
}


@pytest.mark.parametrize("text", UNSAYABLE)
def test_what_cannot_be_said_does_not_match(text: str) -> None:
    """What cannot be said of a device is told as a reason in our own words, and is no match."""
    selector = selectors.compiled(text)
    assert isinstance(selector, Selector)
    assert selector.matches(world(), DeviceId(f"h1/{DISK}")) == UNSAYABLE[text]


def _values(state: State, key: str) -> dict[str, attributes.Value]:
    device = DeviceId(f"h1/{key}")
    return {name: each.read(state, device, state.devices[device]) for name, each in attributes.BY_NAME.items()}


def test_selectors_mean_what_the_language_says() -> None:
    """Selectors made by chance are true of just the devices of which a second reading of them, in Python, is true."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    state, said = world(), {True: 0, False: 0, "unsayable": 0}
    devices = {key: _values(state, key) for key in _PHYSICAL}
    for number in range(1_500):
        text, means = Chance(seed + number).truth(3)
        selector = selectors.compiled(text)
        if isinstance(selector, Fault):
            # Chance compares attributes with texts that they never are, and makes some too large.
            assert "is never like that" in selector.message or "steps" in selector.message, selector.shown
            continue
        for key, values in devices.items():
            found = selector.matches(state, DeviceId(f"h1/{key}"))
            try:
                meant: bool | str = bool(means(values, {}))
            except UnsayableError:
                meant = "unsayable"
            assert found == meant or (meant == "unsayable" and isinstance(found, str)), (text, key, found, meant)
            said[meant] += 1
    assert min(said.values()) > 50, said


def test_what_matches_is_in_one_of_the_buckets() -> None:
    """Whatever a selector made by chance matches, is in one bucket of each set that it is narrowed to."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    state, narrowed = world("h1", "h2"), 0
    for number in range(1_000):
        text = Chance(seed + number).certain()
        selector = selectors.compiled(text)
        if isinstance(selector, Fault):
            continue
        sets = narrowing.sets_of(selector.facts)
        narrowed += len(sets) > 1
        for device, row in state.devices.items():
            own = buckets.of_device(device, row)
            if own and selector.matches(state, device) is True:
                assert all(set(own) & set(each) for each in sets), (text, device, sets)
    assert narrowed > 200


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('device.vendor == "8086" && device.product in ["10c9", "10ca"]', ("model:8086:10c9", "model:8086:10ca")),
        ('device.vendor == "8086"', ("any",)),
        ('device.host == "h1"', ("host:h1",)),
        ('device.host == "h1" && device.pci.class == "0302"', ("pci_class:0302",)),
        ('device.host == "h1" && device.key == "pci/0000:03:00.0"', ("device:h1/pci/0000:03:00.0",)),
        ('device.pci.address == "0000:03:00.0" && device.host in ["h1", "h2"]',
         ("device:h1/pci/0000:03:00.0", "device:h2/pci/0000:03:00.0")),
        ('device.id == "h1/pci/0000:03:00.0"', ("device:h1/pci/0000:03:00.0",)),
        ('device.host == "h1" || device.host == "h2" && true', ("host:h1", "host:h2")),
        ('device.host == "h1" || device.kind == "pci"', ("any",)),
        ('!(device.host == "h1")', ("any",)),
        ('device.host != "h1"', ("any",)),
        ('device.kind == "usb_device"', ("kind:usb_device",)),
        ('device.host == "h1" && device.host == "h2"', ()),
        ('device.vendor == "" && device.product == ""', ("any",)),
        ('has(device.serial) ? device.host == "h1" : false', ("any",)),
    ],
)  # fmt: skip
def test_the_narrowest_buckets(text: str, found: tuple[str, ...]) -> None:
    """What a selector says for certain becomes the narrowest set of buckets; anything else does not narrow."""
    selector = selectors.compiled(text)
    assert isinstance(selector, Selector)
    assert narrowing.sets_of(selector.facts)[0] == found


def test_results_are_kept_within_bounds() -> None:
    """Results are kept by the values they depend on, never more than the bound, and forgetting changes none."""
    state = world()
    selector = selectors.compiled('device.vendor == "8086"')
    assert isinstance(selector, Selector)
    for number in range(limits.SELECTOR_RESULTS_KEPT_MAX + 10):
        assert selector.holds((f"{number:x}",)) is (f"{number:x}" == "8086")
        assert len(selectors._RESULTS) <= limits.SELECTOR_RESULTS_KEPT_MAX
    assert selector.matches(state, DeviceId(f"h1/{NIC}")) is True


class _PanicError(BaseException):
    """As the library's own, when its code fails."""


class _Failing:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def execute(self, _given: object) -> bool:
        raise self._error


def test_a_failure_of_the_library_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A panic inside the library makes a selector not match; who ends the process still does."""
    selector = selectors.compiled("device.vendor == '0000'")
    assert isinstance(selector, Selector)
    monkeypatch.setattr(selector, "_program", _Failing(_PanicError("it failed")))
    assert isinstance(selector.holds(("a",)), str)
    monkeypatch.setattr(selector, "_program", _Failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        selector.holds(("b",))


def _lease(*needs: Need, **fields: object) -> inputs.LeaseRequest:
    return inputs.LeaseRequest(
        request_id=RequestId("r"),
        issued_at_ns=1,
        needs=needs,
        holder=Holder("vm"),
        ttl_ms=60_000,
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_lease(Need(select="true"), Need(select="device.x")), "needs[1].select"),
        (_lease(Need(first_of=(Option(select="true"), Option(select="1")))), "needs[0].first_of[1].select"),
        (_lease(Need(select="true"), constraints=(Constraint(kind="same", attribute="numa"),)),
         "constraints[0].attribute"),
        (_lease(Need(select="true"), constraints=(Constraint(kind="same", attribute="nets"),)),
         "constraints[0].attribute"),
        (schedule_inputs.SetClassRequest(request_id=RequestId("r"), issued_at_ns=1, name="x", select="("), "select"),
    ],
)  # fmt: skip
def test_a_request_with_a_wrong_selector_is_turned_away(request_: object, field: str) -> None:
    """Before it is decided, a request whose selector or attribute is none is told which field it is."""
    with pytest.raises(InvalidInputError) as error:
        selectors.check_request(request_)
    assert error.value.field == field


def test_a_request_with_right_selectors_is_let_through() -> None:
    """Selectors and attributes that are such keep nobody out."""
    constraint = Constraint(kind="same", attribute='attributes["resource.kubernetes.io"].numaNode')
    selectors.check_request(_lease(Need(select="true"), Need(device_class="gpu"), constraints=(constraint,)))


def test_hostile_selectors_end_nothing() -> None:
    """Texts made to crash, hang or fill memory are read, and evaluated if they are selectors, in bounded time."""
    seed = random.randrange(2**32)
    command = [sys.executable, "-Werror", "-m", _HOSTILE, "--seed", str(seed), "--texts", "3000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    print(f"seed {seed}\n{done.stdout}{done.stderr}")
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["chain", "doubling"])
def test_the_library_alone_is_ended_by_them(name: str) -> None:
    """The bounds are needed: the library alone, given the same texts, takes its process with it."""
    command = [sys.executable, "-m", _HOSTILE, "--alone", name]
    done = subprocess.run(command, capture_output=True, timeout=100, check=False)
    assert done.returncode < 0, "it lives: look whether these bounds are still needed"
