"""Hold our node devices against a real libvirtd's, and show every difference with its reason: `make compare-libvirt`.

Ends with 1 if a difference has none, or if nothing can be compared.
"""

import sys
from collections import Counter

from tests.libvirt.daemon import what_is_missing
from tests.libvirt.explained import EXPLAINED, explanation_of
from tests.libvirt.looking import NAMES, look_at


def main() -> int:
    """Look at each machine."""
    if missing := what_is_missing():
        print(missing)
        return 1
    unexplained = 0
    for name in NAMES:
        look = look_at(name)
        found = [(each, explanation_of(each)) for each in look.differences()]
        both = len(look.theirs.keys() & look.ours.keys())
        print(f"{name}: libvirt lists {len(look.theirs)} devices, we {len(look.ours)}, {both} of one name")
        counts = Counter(why.what for _, why in found if why)
        for each in EXPLAINED:
            if counts[each.what]:
                print(f"  {counts[each.what]:3} {each.what}: libvirt: {each.theirs}; here: {each.ours}")
        for difference, why in found:
            if why is None:
                unexplained += 1
                print(f"  UNEXPLAINED {difference}")
    print(f"{unexplained} differences without a reason" if unexplained else "Every difference has its reason.")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
