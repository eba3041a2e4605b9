"""Behavioural tests in the manner of CheckList (Ribeiro et al., arXiv 2005.04118)."""
