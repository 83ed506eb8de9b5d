"""What a hook does, whoever calls it: its settings, how it asks the host's binder, and what it does where it cannot.

It needs nothing but Python's own library. Settings stand in `/etc/leasehold/hooks.conf`, or in the file that the
variable LEASEHOLD_HOOKS names; README.md has them.
"""

import configparser
import contextlib
import json
import os
import re
import signal
import socket
import sys
import syslog
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

SETTINGS = "/etc/leasehold/hooks.conf"
DEFAULTS = {
    "door": "/run/leasehold/binder.sock",
    "on_failure": "closed",
    "on_stop": "release",
    "timeout_s": "30",
    "state": "/run/leasehold/hooks",
    "xl": "/usr/sbin/xl",
}
CHOICES = {"on_failure": ("closed", "open"), "on_stop": ("release", "keep")}
TIMEOUT_S_MAX = 600.0
ANSWER_BYTES_MAX = 1 << 16
CANNOT_TELL = frozenset({"busy", "cut_off", "internal", "unavailable"})
"""Answers of the door by which it does not know, rather than refuses."""
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MARK = "leasehold: "


class AskingFailedError(Exception):
    """It cannot be asked, or not be known what to ask: `on_failure` decides."""


class RefusedError(Exception):
    """The domain may not have the device."""


class Settings:
    """What the file of settings says."""

    def __init__(self, path: str) -> None:
        self.path = path
        read = configparser.ConfigParser(interpolation=None)
        self.trouble = ""
        try:
            with open(path, encoding="utf-8") as file:
                read.read_file(file)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, configparser.Error) as error:
            self.trouble = "{} cannot be read: {}".format(path, " ".join(str(error).split()))
            # What was taken in before that is not in its last shape.
            read.clear()
        for section in set(read.sections()) - {"hooks"}:
            self.trouble = f"{path}: there is no section [{section}]; there is [hooks]"
        said = dict(read["hooks"]) if read.has_section("hooks") else {}
        for name, value in said.items():
            if name not in DEFAULTS:
                self.trouble = "{}: there is no setting {!r}; there are {}".format(path, name, ", ".join(DEFAULTS))
            elif value not in CHOICES.get(name, (value,)):
                choices = " or ".join(CHOICES[name])
                self.trouble = f"{path}: {name} is {value!r}; it can be {choices}"
        values = dict(DEFAULTS, **said)
        self.door, self.xl, self.state = values["door"], values["xl"], values["state"]
        # Whatever is wrong with the settings, nothing is let through that would not be else.
        self.is_open = values["on_failure"] == "open" and not self.trouble
        self.releases = values["on_stop"] != "keep"
        self.timeout_s = 30.0
        try:
            timeout_s = float(values["timeout_s"])
        except ValueError:
            timeout_s = 0.0
        if 0 < timeout_s <= TIMEOUT_S_MAX:
            self.timeout_s = timeout_s
        else:
            most = f"{TIMEOUT_S_MAX:g}"
            self.trouble = "{}: timeout_s is {!r}; it can be up to {}".format(path, values["timeout_s"], most)
            self.is_open = False


# --- the door ---------------------------------------------------------------------------------------------------------


def ask(settings: Settings, op: str, domain: dict[str, str], devices: Sequence[str]) -> dict[str, Any]:
    """Send the binder one question, and give its answer, which is one line of JSON.

    Raises:
        AskingFailedError: there is no answer that can be understood.
    """
    if settings.trouble:
        raise AskingFailedError(settings.trouble)
    name = domain["name"].encode(errors="replace").decode()
    question = dict(domain, name=name, op=op, devices=list(devices))
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as door:
            door.connect(settings.door)
            door.sendall(json.dumps(question).encode() + b"\n")
            heard = b""
            while b"\n" not in heard:
                part = door.recv(4096)
                if not part:
                    raise AskingFailedError(f"the binder at {settings.door} ended without an answer")
                heard += part
                if len(heard) > ANSWER_BYTES_MAX:
                    raise AskingFailedError(f"the binder's answer has more than {ANSWER_BYTES_MAX} bytes")
    except OSError as error:
        why = error.strerror or str(error)
        raise AskingFailedError(f"there is no binder at {settings.door}: {why}") from None
    try:
        said: object = json.loads(heard[: heard.index(b"\n")])
    except (ValueError, RecursionError):
        said = None
    answer: dict[str, Any] = said if isinstance(said, dict) else {}
    if not isinstance(answer.get("ok"), bool) or not isinstance(answer.get("code", ""), str):
        raise AskingFailedError(f"what answers at {settings.door} is no binder: {heard[:80]!r}")
    if not answer["ok"] and answer.get("code") in CANNOT_TELL:
        raise AskingFailedError(f"the binder cannot tell: {_said(answer)}")
    return answer


def _said(answer: dict[str, Any]) -> str:
    """What an answer says for people, in one line."""
    message, help_ = (str(answer.get(name) or "") for name in ("message", "help"))
    text = "{}. {}".format(message.rstrip("."), help_).strip() if help_ else message
    text = text or "it gives no reason"
    return text[:2000]


def may_have(settings: Settings, op: str, domain: dict[str, str], devices: Sequence[str]) -> None:
    """Return if the domain has leases for all these devices, and they are handed over: then its end will be told.

    Raises:
        RefusedError, AskingFailedError.
    """
    if not devices:
        return
    try:
        answer = ask(settings, op, domain, devices)
    except AskingFailedError:
        if settings.is_open:
            mark(settings, domain)
        raise
    if not answer["ok"]:
        raise RefusedError(_said(answer))
    mark(settings, domain)


def mark(settings: Settings, domain: dict[str, str]) -> None:
    """Note that the domain was let through with devices, so that its end is told; one that was refused has none."""
    try:
        os.makedirs(settings.state, mode=0o700, exist_ok=True)
        with open(os.path.join(settings.state, domain["uuid"]), "w", encoding="utf-8"):
            pass
    except OSError as error:
        note(syslog.LOG_WARNING, "the end of {} will not be told: {}".format(domain["name"], error))


def has_ended(settings: Settings, domain: dict[str, str]) -> None:
    """Tell that the domain has let go of its devices. Nothing is refused by that, and nothing depends on it: pollers
    see the end of a domain as well, and later.
    """
    if not settings.releases:
        return
    try:
        os.unlink(os.path.join(settings.state, domain["uuid"]))
    except OSError:
        return
    let_go(settings, "stop", domain, ())


def let_go(settings: Settings, op: str, domain: dict[str, str], devices: Sequence[str]) -> None:
    """Tell that a domain, or that it has let go of these devices."""
    try:
        answer = ask(settings, op, domain, devices)
        trouble = "" if answer["ok"] else _said(answer)
    except AskingFailedError as error:
        trouble = str(error)
    if trouble:
        note(syslog.LOG_WARNING, "{} has let go, which could not be told: {}".format(domain["name"], trouble))


def note(priority: int, text: str) -> None:
    """Say it to whoever runs this, and to the system's log."""
    text = "".join(each if each.isprintable() else " " for each in text)
    print(_MARK + text, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        syslog.syslog(priority, text)


def limit(settings: Settings) -> None:
    """End whatever takes longer than it may, even a read that hangs."""

    def late(*_: Any) -> NoReturn:
        raise AskingFailedError(f"there was no answer within {settings.timeout_s:g} s")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout_s)


def unlimited() -> None:
    """From here on it may take as long as it likes."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def failed_open(settings: Settings, error: AskingFailedError) -> None:
    """Say that nobody was asked."""
    note(syslog.LOG_WARNING, f"{error}; let through, as {settings.path} says on_failure = open")


def decided(settings: Settings, work: Callable[[], None]) -> bool:
    """Do what asks, within the time that it has; whether it goes on, and all that is to be said of it said."""
    try:
        limit(settings)
        work()
    except RefusedError as error:
        unlimited()
        note(syslog.LOG_NOTICE, str(error))
        return False
    except Exception as error:  # noqa: BLE001 - whatever it was, nobody was asked
        unlimited()
        failed = error if isinstance(error, AskingFailedError) else AskingFailedError(f"the hook fails: {error!r}")
        if settings.is_open:
            failed_open(settings, failed)
            return True
        note(syslog.LOG_ERR, f"{failed}; refused, as on_failure is closed ({settings.path})")
        return False
    unlimited()
    return True


def settings_of_this_host() -> Settings:
    """As `SETTINGS` or LEASEHOLD_HOOKS has them."""
    syslog.openlog("leasehold-hook")
    return Settings(os.environ.get("LEASEHOLD_HOOKS", SETTINGS))
