"""The programs of the rules, and the user's tools."""

from tinsmith.late_torch import import_torch_late

import_torch_late()
