"""Published weights as models of ours: checkpoints of google/e3d_lstm and of OpenSTL."""

from e3d_deploy.importing.fit import Finding
from e3d_deploy.importing.load import import_checkpoint
from e3d_deploy.importing.parity import Parity, compare

__all__ = ["Finding", "Parity", "compare", "import_checkpoint"]
