"""Evaluation: samples of trained agents and their scores."""
