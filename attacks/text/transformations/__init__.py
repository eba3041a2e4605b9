"""Edits of single words."""
