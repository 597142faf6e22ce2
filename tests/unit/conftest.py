from __future__ import annotations

import sys
from pathlib import Path

# Helpers that tests of several packages use: `tiny_teacher` and `training`.
for place in ("teacher", "student"):
    sys.path.insert(0, str(Path(__file__).parent / place))
