"""Limits that the user sets, whatever the baselines say."""
