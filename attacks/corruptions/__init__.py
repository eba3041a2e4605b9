"""The 15 common corruptions of Hendrycks & Dietterich (arXiv 1903.12261), as functions of tensors on any device."""
