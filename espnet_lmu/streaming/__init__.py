"""Recognition of audio while it is spoken."""

from espnet_lmu.streaming.recognizer import Partial, StreamingRecognizer

__all__ = ["Partial", "StreamingRecognizer"]
