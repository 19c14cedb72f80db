"""Evaluation of forecasts: measures under two conventions, two baselines, tables and pictures."""

from e3d_deploy.evaluation.measuring import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
