"""xend's HTTP server as a function: a request in, a reply out.

A path leads from directory to directory; each answers GET by itself, and POST by the operation that `op` names. What an
operation returns is printed as SXP, nothing at all for nothing, and `''` for the empty text, which is why some answers
end with that. Whatever Python exception an operation meets becomes status 500 with its text, but for operations in
threads, where only some become a text, and the others no reply at all.
"""

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qs, quote, unquote

import msgspec

from leasehold.events.errors import XendSimError
from leasehold.services.xend import sxp
from leasehold.services.xendsim.calls import Stuck, Xend
from leasehold.services.xendsim.configuring import number, parsed
from leasehold.services.xendsim.forms import buttons, fields_of
from leasehold.services.xendsim.hypervisor import RUNNING
from leasehold.services.xendsim.state import Domain, Parsed, Tree

SXP_TYPE: Final = "application/sxp"
LINGERING: Final = frozenset(
    {
        *("create", "wait_for_devices", "pause", "unpause", "shutdown", "destroy", "start", "delete"),
        *("mem_target_set", "maxmem_set", "set_vcpus", "device_create", "device_destroy", "device_configure"),
    }
)
"""Operations after which xend forgets to close the connection, also where they succeed."""


class Request(msgspec.Struct, kw_only=True):
    """As it came. `headers`: names in lower case; `body`: none without a length; `port`: what the server believes to be
    its own, which it builds addresses with.
    """

    method: str
    uri: str
    headers: dict[str, str] = {}
    body: bytes | None = None
    port: int = 8080
    hostname: str = "localhost"

    @property
    def wants_sxp(self) -> bool:
        """Whether SXP is answered, rather than a page."""
        agent, accept = self.headers.get("user-agent"), self.headers.get("accept")
        return not agent or not accept or SXP_TYPE in accept


class Reply(msgspec.Struct, kw_only=True):
    """What is sent back. `silent`: nothing is; `after_ms` and `then`: what is sent is known only later; `lingers`: the
    connection is not closed.
    """

    code: int = 200
    reason: str = "OK"
    content_type: str = ""
    extra: dict[str, str] = {}
    body: bytes = b""
    lingers: bool = False
    silent: bool = False
    after_ms: int = 0
    then: "Callable[[], Reply] | None" = None


def printed(tree: Tree) -> bytes:
    """A value as xend prints it."""
    return sxp.show(_encoded(tree))


def _encoded(tree: Tree) -> sxp.Printable:
    if isinstance(tree, str):
        return tree.encode("latin-1", "replace")
    return [_encoded(each) for each in tree] if isinstance(tree, list) else tree


def answer(xend: Xend, request: Request) -> Reply:
    """What xend answers."""
    return _Turn(xend, request).answer()


class _Turn:
    """One request on its way through the directories."""

    def __init__(self, xend: Xend, request: Request) -> None:
        self._xend = xend
        self._request = request
        self._reply = Reply()
        path, _, query = request.uri.partition("?")
        self._left = [unquote(each, "latin-1") for each in path[1:].split("/")]
        self._passed: list[str] = []
        self._fields: dict[str, list[str]] = parse_qs(query, encoding="latin-1")
        if request.method == "POST":
            self._fields |= fields_of(request.headers.get("content-type", ""), request.body)

    def answer(self) -> Reply:
        """The whole way: find the resource, let it answer."""
        found = self._find()
        if isinstance(found, str):
            self._reply = Reply(code=404, reason="Not found", content_type="text/plain", body=found.encode("latin-1"))
            return self._reply
        get, operations = found
        match self._request.method:
            case "GET" | "HEAD":
                op = self._fields.get("op", [])
                if "vcpuinfo" in operations and op[:1] == ["vcpuinfo"]:
                    self._perform(operations)
                else:
                    get()
            case "POST" if operations:
                self._perform(operations)
            case "POST":
                self._type("text/plain")
                self._write(b"POST")
            case method:
                self._reply.code, self._reply.reason = 501, "Not implemented"
                self._reply.extra["Accept"] = "GET,HEAD,POST"
                self._type("text/plain")
                self._write(f"Request method not supported ({method})".encode("latin-1"))
        return self._reply

    # --- finding ----------------------------------------------------------------------------------------------------

    def _find(self) -> "tuple[Callable[[], None], dict[str, Callable[[], Tree | Stuck | None]]] | str":
        """What the path names: how it answers GET, and its operations; or what is said if it names nothing."""
        nothing: dict[str, Callable[[], Tree | Stuck | None]] = {}
        ways: dict[tuple[str, ...], tuple[Callable[[], None], dict[str, Callable[[], Tree | Stuck | None]]]] = {
            (): (lambda: self._directory(["xend"]), nothing),
            ("xend",): (lambda: self._directory(["node", "domain", "vnet"]), nothing),
            ("xend", "node"): (self._get_node, {"shutdown": lambda: 0, "reboot": lambda: 0}),
            ("xend", "node", "dmesg"): (lambda: self._text(self._xend.host.state.dmesg), {"clear": self._clear}),
            ("xend", "node", "log"): (lambda: self._text("\n".join([*self._xend.host.state.log, ""])), nothing),
            ("xend", "domain"): (self._get_domains, self._domains_operations()),
            ("xend", "vnet"): (lambda: self._value([]), nothing),
        }
        at: tuple[str, ...] = ()
        while self._left:
            part = self._left.pop(0)
            self._passed.append(part)
            if not part:
                continue
            if at == ("xend", "domain"):
                return self._find_domain(part)
            at = (*at, part)
            if at not in ways:
                return f"Not found: {part}"
        return ways[at]

    def _find_domain(
        self, name: str
    ) -> "tuple[Callable[[], None], dict[str, Callable[[], Tree | Stuck | None]]] | str":
        try:
            domain = self._xend.host.find(name)
        except XendSimError:
            return f"<Fault 3: {name!a}>"
        while self._left:
            part = self._left.pop(0)
            self._passed.append(part)
            if part:
                return f"Not found: {part}"
        return lambda: self._get_domain(domain), self._domain_operations(domain)

    # --- answering --------------------------------------------------------------------------------------------------

    def _type(self, content_type: str) -> None:
        self._reply.content_type = content_type

    def _write(self, data: bytes) -> None:
        self._reply.body += data

    def _value(self, value: Tree | None) -> None:
        """Answer with a value, as SXP or as a page."""
        if value is None:
            return
        if self._request.wants_sxp:
            self._type(SXP_TYPE)
            self._write(printed(value))
            return
        shown = b"<code><pre>" + printed(value) + b"</pre></code>" if isinstance(value, list) else str(value).encode()
        self._page(shown)

    def _page(self, *parts: bytes) -> None:
        self._write(b"<html><head></head><body>" + self._path() + b"".join(parts) + b"</body></html>")

    def _path(self) -> bytes:
        at, shown = "/", '<h1><a href="/">/</a>'
        for part in filter(None, self._passed):
            at += part + "/"
            shown += f' <a href="{at}">{part}</a>/'
        return (shown + "</h1>").encode("latin-1")

    def _text(self, text: str) -> None:
        self._type("text/plain")
        self._write(text.encode("latin-1", "replace"))

    def _url(self) -> str:
        host = self._request.headers.get("host", "").partition(":")[0] or self._request.hostname
        return f"http://{host}:{self._request.port}/" + quote("/".join(self._passed), encoding="latin-1")

    def _directory(self, names: list[str]) -> None:
        if self._request.wants_sxp:
            self._type(SXP_TYPE)
            # Two blanks, as one comes after the word, and one before each name.
            self._write(b"(ls " + "".join(f" {each}" for each in names).encode() + b")")
        else:
            url = self._url().rstrip("/") + "/"
            items = "".join(f'<li><a href="{url}{each}">{each}</a></li>' for each in names)
            self._page(f"<ul>{items}</ul>".encode("latin-1"))
        self._value("")

    def _get_node(self) -> None:
        self._value(["node", *self._xend.printer.node()])

    def _clear(self) -> None:
        self._xend.host.state.dmesg = ""
        self._xend.host.changes += 1

    def _get_domains(self) -> None:
        state = self._fields.get("state", ["running"])[0]
        listed = self._xend.listed(state)
        if not self._request.wants_sxp:
            url = self._url().rstrip("/") + "/"
            items = "".join(f'<li><a href="{url}{each.name}"> Domain {each.name}</a></li>' for each in listed)
            self._page(f"<ul>{items}</ul>".encode("latin-1"))
        elif self._fields.get("detail", [""])[0] == "1":
            self._value(self._details())
            return
        else:
            self._value([each.name for each in listed])
        self._xend.listing_done(listed)

    def _details(self) -> list[Tree]:
        host = self._xend.host
        running = [each for each in host.shown() if host.status(each) == RUNNING]
        details: list[Tree] = [self._xend.printer.domain(each) for each in running]
        self._xend.listing_done(running)
        return details

    def _get_domain(self, domain: Domain) -> None:
        if self._request.wants_sxp:
            self._type(SXP_TYPE)
            self._write(printed(self._xend.printer.domain(domain)))
        else:
            words = {1: "paused", 2: "running", 3: "suspended", 5: "crashed"}
            word = words.get(self._xend.host.status(domain), "halted")
            number_ = domain.domid if domain.domid >= 0 else None
            about = f"<p><domain id={number_} name={domain.name} memory={domain.memory_mib << 20} state={word}></p>"
            self._page(about.encode("latin-1"), buttons(self._url()).encode("latin-1"))
        self._value("")

    # --- operations -------------------------------------------------------------------------------------------------

    def _perform(self, operations: "dict[str, Callable[[], Tree | Stuck | None]]") -> None:
        ops = self._fields.get("op", [])
        if len(ops) != 1:
            self._reply.code, self._reply.reason = 406, "Invalid request"
            self._value("")
            return
        (op,) = ops
        operation = operations.get(op)
        if operation is None:
            said = f"Operation not implemented: {op}"
            self._reply.code, self._reply.reason = 501, _one_line(said)
            self._type("text/plain")
            self._write(said.encode("latin-1"))
            self._value("")
            return
        self._reply.lingers = op in LINGERING and self._passed[1] == "domain"
        try:
            value = operation()
        except XendSimError as error:
            self._failed(op, error)
            return
        if op == "device_configure" and self._sxpr("config")[:1] == ["vusb"]:
            self._reply.lingers = False
        if isinstance(value, Stuck):
            stuck = value
            self._reply.after_ms = stuck.after_ms
            self._reply.then = lambda: self._gave_up(op, stuck)
        elif not self._reply.silent:
            self._value(value)

    def _gave_up(self, op: str, stuck: Stuck) -> Reply:
        self._failed(op, self._xend.gave_up(stuck))
        self._reply.then = None
        return self._reply

    def _failed(self, op: str, error: XendSimError) -> None:
        self._reply.code, self._reply.reason = 500, _one_line(f"Request failed: {op}")
        self._reply.lingers = not str(error).startswith("pci: failed to locate")
        self._error(error)

    def _error(self, error: XendSimError) -> None:
        said = f"<Fault 3: {str(error)!a}>" if error.kind == "missing" else str(error)
        if self._request.wants_sxp:
            self._value(["xend.err", said])
        else:
            self._value(f"<p>{said}</p>")

    def _threaded(self, work: "Callable[[], Tree | None]") -> None:
        """Operations in threads: the status stays what it was, and only what xend means to say is said."""
        try:
            work()
        except XendSimError as error:
            if error.kind == "python":
                self._reply.silent = True
            else:
                self._error(error)

    def _accepted(self, work: "Callable[[], Tree | Stuck | None]") -> "Callable[[], Tree | Stuck | None]":
        def accept() -> Tree | Stuck | None:
            self._reply.code, self._reply.reason = 202, "Accepted"
            self._reply.extra["Location"] = f"{self._url()}/.."
            return work()

        return accept

    def _field(self, name: str) -> str:
        """The first of a field's values, as xend takes it where it does not look closer."""
        values = self._fields.get(name)
        if not values:
            raise XendSimError(f"'{name}'", kind="python")
        return values[0]

    def _arg(self, name: str) -> str:
        """A field's only value, as xend takes it where it looks closer."""
        values = self._fields.get(name)
        if not values:
            raise XendSimError(f"Missing parameter: {name}")
        if len(values) > 1:
            raise XendSimError(f"Too many values for {name}")
        return values[0]

    def _int(self, name: str) -> int:
        try:
            return number(self._arg(name))
        except XendSimError as error:
            raise XendSimError(str(error)) from error

    def _sxpr(self, name: str) -> Parsed:
        text = self._arg(name)
        try:
            values = parsed(text)
        except XendSimError as error:
            raise XendSimError("Coercion to sxpr failed") from error
        if not values:
            raise XendSimError("object of type 'NoneType' has no len()")
        if len(values) > 1:
            raise XendSimError("Too many sxprs")
        return values[0]

    def _domains_operations(self) -> "dict[str, Callable[[], Tree | Stuck | None]]":
        return {
            "create": self._create,
            "new": lambda: self._xend.new(self._sxpr("config")),
            "list": self._details,
            "restore": lambda: self._threaded(self._restore),
        }

    def _create(self) -> Tree:
        values = self._fields.get("config")
        if not values:
            raise XendSimError("Configuration error 'NoneType' object has no attribute '__getitem__'")
        try:
            trees = parsed(values[0])
        except XendSimError as error:
            raise XendSimError(f"Configuration error {error}") from error
        if not trees:
            raise XendSimError("Configuration error list index out of range")
        try:
            domain = self._xend.create(trees[0])
        except XendSimError as error:
            raise XendSimError(f"Error creating domain: {error}") from error
        self._reply.code, self._reply.reason = 201, "created"
        self._reply.extra["Location"] = f"{self._url()}/{domain.name}"
        return self._xend.printer.domain(domain)

    def _restore(self) -> None:
        domain = self._xend.restore(self._arg("file"))
        self._reply.code, self._reply.reason = 201, "Created"
        self._reply.extra["Location"] = f"{self._url()}/{domain.name}"

    def _domain_operations(self, domain: Domain) -> "dict[str, Callable[[], Tree | Stuck | None]]":
        xend, accepted = self._xend, self._accepted
        return {
            "configure": self._configure,
            "unpause": lambda: xend.unpause(xend.numbered(domain)),
            "pause": lambda: xend.pause(xend.numbered(domain)),
            "rename": accepted(lambda: xend.rename(domain, self._field("name"))),
            "shutdown": accepted(lambda: xend.shutdown(domain, self._field("reason"))),
            "delete": accepted(lambda: xend.delete(domain)),
            "start": accepted(lambda: xend.start(domain)),
            "sysrq": accepted(lambda: xend.sysrq(domain, number(self._field("key")))),
            "wait_for_devices": accepted(lambda: xend.wait(domain)),
            "destroy": accepted(lambda: xend.destroy(xend.numbered(domain))),
            "reset": accepted(lambda: xend.reset(domain)),
            "save": accepted(lambda: self._threaded(lambda: self._save(domain))),
            "dump": accepted(lambda: self._threaded(lambda: self._dump(domain))),
            "migrate": lambda: self._threaded(lambda: self._migrate(domain)),
            "usb_add": accepted(lambda: self._threaded(lambda: self._usb(domain))),
            "usb_del": accepted(lambda: self._threaded(lambda: self._usb(domain))),
            "maxmem_set": lambda: xend.set_max_memory(domain, self._int("memory")),
            "mem_target_set": lambda: xend.set_memory(domain, self._int("target")),
            "set_vcpus": lambda: xend.set_vcpus(domain, self._int("vcpus")),
            "vcpuinfo": lambda: xend.printer.vcpus(domain),
            "pincpu": lambda: self._pin(domain),
            "devices": lambda: xend.devices(domain, self._arg("type")),
            "device_create": lambda: xend.device_create(domain, self._sxpr("config")),
            "device_destroy": lambda: self._device_destroy(domain),
            "device_configure": lambda: xend.device_configure(domain, self._sxpr("config"), self._arg("dev")),
            "domain_sched_credit_get": lambda: f"{{'cap': {domain.cap}, 'weight': {domain.weight}}}",
            "domain_sched_credit_set": lambda: self._set_credit(domain),
            "cpu_sedf_get": lambda: self._sedf(domain),
        }

    def _configure(self) -> Tree:
        self._sxpr("config")
        raise XendSimError("domain_configure() takes exactly 2 arguments (3 given)", kind="python")

    def _save(self, domain: Domain) -> None:
        path = self._field("file")
        self._xend.save(self._xend.numbered(domain), path)

    def _dump(self, domain: Domain) -> None:
        self._arg("file")
        _live, crash, reset = (self._int(each) for each in ("live", "crash", "reset"))
        self._xend.dump(self._xend.numbered(domain), crash=bool(crash), reset=bool(reset))

    def _migrate(self, domain: Domain) -> None:
        self._arg("destination")
        for each in ("live", "port", "node", "ssl"):
            self._int(each)
        self._arg("change_home_server")
        self._xend.migrate(self._xend.numbered(domain))

    def _usb(self, domain: Domain) -> None:
        self._xend.usb(domain)
        # The genuine one hands on the request instead of the device.
        raise XendSimError("cannot concatenate 'str' and 'instance' objects", kind="python")

    def _pin(self, domain: Domain) -> Tree:
        vcpu, cpus = self._arg("vcpu"), self._arg("cpumap")
        return self._xend.pin(
            domain, vcpu if vcpu.lower() == "all" else str(number(vcpu)), [number(each) for each in cpus.split(",")]
        )

    def _device_destroy(self, domain: Domain) -> None:
        kind, name = self._arg("type"), self._arg("dev")
        self._int("force")
        self._xend.device_destroy(domain, kind, name, keep=not self._int("rm_cfg"))

    def _set_credit(self, domain: Domain) -> Tree:
        weight, cap = self._int("weight"), self._int("cap")
        if not 1 <= weight <= 65_535:
            raise XendSimError("Cpu weight out of range, valid values are within range from 1 to 65535")
        if not 0 <= cap <= domain.vcpus * 100:
            raise XendSimError(
                f"Cpu cap out of range, valid range is from 0 to {domain.vcpus * 100} for specified number of vcpus"
            )
        domain.weight, domain.cap = weight, cap
        self._xend.host.changes += 1
        return 0

    def _sedf(self, domain: Domain) -> Tree:
        self._xend.numbered(domain)
        return [
            "sedf",
            ["domid", domain.domid],
            ["period", 100_000_000],
            ["slice", 0],
            ["latency", 0],
            ["extratime", 1],
            ["weight", 0],
        ]


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)
