"""Many small models trained side by side: the reference that membership inference compares a model with."""
