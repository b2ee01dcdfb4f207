"""The commands. ``python -m scripts.NAME`` goes around the launcher, so its guard against foreign packages stands here, too."""

import sys

from icrl.__main__ import obstacle

_message = obstacle()
if _message is not None:
    print(f"icrl: error: {_message}", file=sys.stderr)
    sys.exit(2)
