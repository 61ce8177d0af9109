"""The continuous groups that are found, against a count of all that there are.

The tangents of the groups lie in the kernel of the parameter-to-output Jacobian. Where they do not span it, families of
groups are not found yet: `tests.minis` says how many directions that leaves, and of which families.
"""

import pytest

from tests.minis import MINIS, count
from tests.module_lists import MODULE_LISTS
from tests.small_models import SMALL_MODELS

ALL = {**MINIS, **SMALL_MODELS, **MODULE_LISTS}


@pytest.mark.parametrize("mini", ALL.values(), ids=ALL)
def test_tangents_lie_in_the_kernel_and_what_they_leave_is_known(mini):
    counted = count(mini)
    assert counted["outside"] <= 1e-6
    assert counted["unaccounted"] == mini.missing[0]
