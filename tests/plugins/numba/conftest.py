import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory):
    """Kernels are compiled anew, and nothing is left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_NUMBA_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield
