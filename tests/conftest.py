"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder of real benchmark data (AGENTRL_TEST_DATA, else ../shared/data beside the checkout); skips when absent."""
    folder = Path(os.environ.get("AGENTRL_TEST_DATA", _ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set AGENTRL_TEST_DATA to run this test")
    return folder
