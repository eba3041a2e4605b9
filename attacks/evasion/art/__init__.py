"""Attacks of the Adversarial Robustness Toolbox (https://arxiv.org/abs/1807.01069)."""
