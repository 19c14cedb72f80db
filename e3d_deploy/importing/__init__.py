"""Import of published weights: checkpoints of google/e3d_lstm and of OpenSTL become models of this package."""

from e3d_deploy.importing.fit import Finding, Imported
from e3d_deploy.importing.load import import_checkpoint
from e3d_deploy.importing.parity import Parity, compare_outputs

__all__ = ["Finding", "Imported", "Parity", "compare_outputs", "import_checkpoint"]
