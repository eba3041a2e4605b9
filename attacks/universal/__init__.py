"""Attacks that are made once and then work on any input: universal perturbations and adversarial patches."""
