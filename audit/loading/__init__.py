"""Loads models and data, and refuses files that could run code."""
