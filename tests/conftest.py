"""Plugins of pytest that tests of the pytest plugin need."""

pytest_plugins = ["pytester"]
