import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Tiny models spend their time waiting for threads, not computing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
