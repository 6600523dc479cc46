"""Legendre Memory Unit encoder for ESPnet2.

Importing the package makes ``encoder: lmu`` known to every ESPnet task that takes an encoder of this
kind, in this process, without importing ESPnet: the registration happens when a task is imported.
"""

from espnet_lmu import hook

__version__ = "0.1.0"
__all__ = ["LMUEncoder", "load_model"]

hook.install()


def __getattr__(name: str):
    # These need torch and ESPnet (seconds to import), so they are loaded on first use.
    if name == "LMUEncoder":
        from espnet_lmu.encoder.lmu_encoder import LMUEncoder

        return LMUEncoder
    if name == "load_model":
        from espnet_lmu.recognition.recognizer import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
