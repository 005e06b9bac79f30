"""From a model to the best artifacts for a budget: candidates over all installed formats, each measured.

from pathlib import Path
from edgekit_workflow.optimize import Settings, optimize

done = optimize(Settings(Path("model"), Path("run"), budget=1_200_000, texts={"stories": Path("stories.txt")}))
print(done.chosen.path, done.front)
"""

from __future__ import annotations

from edgekit_workflow.optimize.running import Optimized as Optimized
from edgekit_workflow.optimize.running import optimize as optimize
from edgekit_workflow.optimize.settings import Settings as Settings
from edgekit_workflow.optimize.settings import read_settings as read_settings

__all__ = ["Optimized", "Settings", "optimize", "read_settings"]
