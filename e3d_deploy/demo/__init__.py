"""Demonstration: trained models, and a tour of the features of the package."""
