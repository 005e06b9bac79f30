"""From a model to the best artifacts for a budget: candidates over all installed formats, each measured.

from pathlib import Path
from edgekit_workflow.optimize import Settings, optimize

done = optimize(Settings(Path("model"), Path("run"), budget=1_200_000, texts={"stories": Path("stories.txt")}))
print(done.chosen.path, done.front)
"""

from __future__ import annotations

from edgekit_workflow.optimize.running import Optimized, optimize
from edgekit_workflow.optimize.settings import Settings, read_settings

__all__ = ["Optimized", "Settings", "optimize", "read_settings"]
