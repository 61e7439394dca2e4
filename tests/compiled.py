"""What tests of compiled functions share."""

import pytest

from tinsmith.backend.compiled.threads import openmp

# They run on PyTorch's threads, of which a test may set another number.
COMPILED = [
    pytest.mark.skipif(openmp() is None, reason="this PyTorch's OpenMP library is not libgomp"),
    pytest.mark.usefixtures("threads_are_put_back"),
]
