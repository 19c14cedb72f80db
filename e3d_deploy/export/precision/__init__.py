"""Low types: written into the step, measured, chosen and explained."""
