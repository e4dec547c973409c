import pytest
from serving import serving


@pytest.fixture(scope="session")
def server():
    """One for all tests that leave it as it was."""
    with serving() as running:
        yield running
