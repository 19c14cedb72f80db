"""Forecast quality: measures by two conventions, baselines, pictures."""

from e3d_deploy.evaluation.measuring import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
