"""Evaluation: pure metrics, and their assembly from committed sidecars."""
