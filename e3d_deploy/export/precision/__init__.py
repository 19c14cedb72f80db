"""Precision of a bundle: rewrite of the step in a low type, calibration, drift, choice of a policy, diagnosis."""
