import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_runs


@pytest.fixture(scope="session")
def study_folders(tmp_path_factory):
    """Four regimes, two seeds, all finished: read only."""
    return fake_runs.fake_study(tmp_path_factory.mktemp("study"), epochs=5, images=4)
