"""The version, which the build, the command line and pages read."""

__version__ = "0.1.0"
