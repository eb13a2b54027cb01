"""hyperedit: train hypernetwork knowledge editors against frozen language models, and apply them in one shot.

Importing this package, and applying an exported editor, needs neither lightning nor deepspeed.
"""

from editors.edits import LowRankEdit, MergedEdit
from editors.export.artifact import LoadedEditor, load_editor
from editors.requests import EditRequest

__all__ = ["EditRequest", "LoadedEditor", "LowRankEdit", "MergedEdit", "load_editor"]
