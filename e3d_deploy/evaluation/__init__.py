"""Measures of forecast quality under two conventions, compared with simple baselines, with tables and pictures."""

from e3d_deploy.evaluation.measuring import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
