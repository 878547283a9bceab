"""The version of this package. Below all other rooms, since manifests, checkpoints and results name it."""

__version__ = "0.1.0"
