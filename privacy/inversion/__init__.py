"""Model inversion: what do the classes of a model look like to it, and does that show its training data?"""
