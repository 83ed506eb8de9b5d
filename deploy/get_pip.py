"""Puts pip into the environment that runs this, where Python came without ensurepip.

`python get_pip.py constraints.txt` uses the standard library alone. The wheel is the one that the constraints name,
from the index that pip itself would use (`PIP_INDEX_URL`, pip.conf, else PyPI), and it is run only if its SHA-256 is
the one that the index gives for it.
"""

import configparser
import hashlib
import json
import os
import re
import runpy
import ssl
import sys
import tempfile
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin

DEFAULT_INDEX = "https://pypi.org/simple/"
TIMEOUT_S = 60
WHEEL_BYTES_MAX = 16 * 1024 * 1024
PAGE_BYTES_MAX = 16 * 1024 * 1024


def setting(name: str, default: str) -> str:
    """One of pip's settings, as pip looks them up: environment, then the user's file, then the machine's."""
    from_environment = os.environ.get(f"PIP_{name.upper().replace('-', '_')}")
    if from_environment:
        return from_environment
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
    places = [
        os.environ.get("PIP_CONFIG_FILE", ""),
        str(config_home / "pip" / "pip.conf"),
        str(Path("~/.pip/pip.conf").expanduser()),
        "/etc/xdg/pip/pip.conf",
        "/etc/pip.conf",
    ]
    for place in filter(None, places):
        config = configparser.RawConfigParser()
        try:
            config.read(place, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue
        for section in ("install", "global"):
            if config.has_option(section, name):
                return config.get(section, name).strip()
    return default


class Links(HTMLParser):
    """The links of a page of the index."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the address of a link."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def fetch(url: str, bytes_max: int) -> tuple[bytes, str, str]:
    """What is at an address, its type, and the address it was finally found at."""
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "leasehold-set-up"})
    context = ssl.create_default_context(cafile=setting("cert", "") or None)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:
        body = answer.read(bytes_max + 1)
        if len(body) > bytes_max:
            sys.exit(f"{url} is larger than {bytes_max} bytes")
        return body, answer.headers.get_content_type(), answer.url


def wheels(index: str) -> dict[str, tuple[str, str]]:
    """File name -> address and SHA-256 of pip's wheels in the index."""
    page = urljoin(index.rstrip("/") + "/", "pip/")
    if page.startswith("file:"):
        page += "index.html"
    body, content_type, base = fetch(page, PAGE_BYTES_MAX)
    if content_type.endswith("json"):
        files = json.loads(body)["files"]
        return {each["filename"]: (urljoin(base, each["url"]), each["hashes"].get("sha256", "")) for each in files}
    links = Links()
    links.feed(body.decode())
    found = {}
    for link in links.found:
        address, fragment = urldefrag(urljoin(base, link))
        found[address.rsplit("/", 1)[1]] = (address, fragment.partition("sha256=")[2])
    return found


def pinned_version(constraints: Path) -> str:
    """The version of pip that the constraints name."""
    match = re.search(r"^pip==(\S+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        sys.exit(f"{constraints} names no version of pip")
    return match[1]


def main() -> None:
    """Fetch the wheel, check it, and let it install itself."""
    if sys.prefix == sys.base_prefix:
        sys.exit("this is for virtual environments only")
    version = pinned_version(Path(sys.argv[1]))
    index = setting("index-url", DEFAULT_INDEX)
    name = f"pip-{version}-py3-none-any.whl"
    address, expected = wheels(index).get(name, ("", ""))
    if not address or not expected:
        sys.exit(f"{index} has no {name} with a SHA-256")
    print(f"pip {version} from {index}")
    body, _, _ = fetch(address, WHEEL_BYTES_MAX)
    if hashlib.sha256(body).hexdigest() != expected:
        sys.exit(f"{name} is not what the index says it is")
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / name
        wheel.write_bytes(body)
        sys.path.insert(0, str(wheel))
        sys.argv = ["pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", str(wheel)]
        runpy.run_module("pip", run_name="__main__")


if __name__ == "__main__":
    main()
