"""Whether XML of node devices is as libvirt's schema wants it."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.support.not_run import not_run

SCHEMA: Final = Path("/usr/share/libvirt/schemas/nodedev.rng")


def invalid(folder: Path, devices: Mapping[str, str]) -> set[str]:
    """Of XML by name, the names of those that libvirt's schema does not allow; `folder` is for files."""
    if shutil.which("xmllint") is None or not SCHEMA.exists():
        not_run("libxml2-utils or libvirt's nodedev.rng (libvirt0) is not installed")
    files = {name: folder / f"{number}.xml" for number, name in enumerate(devices)}
    for name, xml in devices.items():
        files[name].write_text(xml, encoding="utf-8")
    command = ["xmllint", "--noout", "--relaxng", str(SCHEMA), *map(str, files.values())]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    verdicts = dict(re.findall(r"^(.*\.xml) (validates|fails to validate)$", said, re.MULTILINE))
    assert len(verdicts) == len(devices), said
    return {name for name, file in files.items() if verdicts[str(file)] != "validates"}
