"""Attacks on models that read text: one search engine, pluggable edits, constraints and searches."""
