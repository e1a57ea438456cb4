"""What all tests share: one thread, a fixed seed, and the names that doctests use."""

import numpy as np
import pytest
import torch
from interpreter import INTERPRETED, mend


def pytest_configure(config):
    torch.set_num_threads(1)
    if INTERPRETED:
        mend()
        config.addinivalue_line("filterwarnings", "ignore:All-NaN slice encountered:RuntimeWarning")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _doctest_names(request):
    if type(request.node).__name__ == "DoctestItem":
        request.getfixturevalue("doctest_namespace").update(np=np, torch=torch)
