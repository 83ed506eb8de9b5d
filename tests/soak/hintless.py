"""The process of an allocator that knows no hint: it decides always, whoever else does. Arguments as the real one's."""

import sys
from unittest.mock import patch

from leasehold.services import processes

if __name__ == "__main__":
    with patch.object(processes, "KvHint", lambda _connection: None):
        sys.exit(processes.main())
