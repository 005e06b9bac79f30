"""Modules beside the tests, such as `openvino_models`, can be imported by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
