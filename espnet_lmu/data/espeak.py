"""Speech from eSpeak NG, for the demo corpus and for tests.

The library and its voices come from the `espeakng-loader` package and are driven through ctypes
(functions and constants: eSpeak NG's speak_lib.h and espeak_ng.h). eSpeak NG is not thread-safe and
keeps state from one utterance to the next, even across Terminate and Initialize, so that the same call
twice gives different samples. Each utterance is therefore synthesised in a forked child that starts from
the same fresh state and the same random seed: its samples depend on the arguments alone. An exception is known: of
a variant by Klatt's synthesizer, Reed, an utterance has differed twice, for a reason that is not known.
"""

from __future__ import annotations

import ctypes
import difflib
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from espnet_lmu.errors import UserError

RATE_RANGE = (80, 450)
PITCH_RANGE = (0, 99)

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_PARAMETER_RATE = 1
_PARAMETER_PITCH = 3


class _Voice(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _Library(NamedTuple):
    lib: ctypes.CDLL
    sample_rate: int
    voices: tuple[str, ...]
    variants: tuple[str, ...]


def voices() -> tuple[str, ...]:
    """Names of the voices: a language, or a regional form of it, such as `en` or `en-us`."""
    return _library().voices


def variants() -> tuple[str, ...]:
    """Names of the variants, which change the speaker and may be put on any voice, such as `f3`. Case counts."""
    return _library().variants


def synthesize(
    text: str, voice: str = "en", variant: str | None = None, rate: int = 175, pitch: int = 50
) -> tuple[np.ndarray, int]:
    """Speak a text. The same arguments give the same samples, in any order and in any process (but see above).

    Args:
        text: What to say.
        voice: One of `voices()`.
        variant: One of `variants()`; None for the voice's own speaker.
        rate: Words per minute, 80 to 450.
        pitch: Base pitch, 0 to 99 (median fundamental frequency of about 70 to 170 Hz).

    Returns:
        The samples (n,), int16, and their rate in Hz.

    Raises:
        UserError: `espeakng-loader` is not installed, or an argument is unknown or out of range.
    """
    library = _library()
    # eSpeak NG takes an unknown variant for none at all, without a word.
    _check_name("voice", voice, library.voices)
    if variant is not None:
        _check_name("variant", variant, library.variants)
    _check_range("rate", rate, RATE_RANGE)
    _check_range("pitch", pitch, PITCH_RANGE)
    if not text.strip():
        raise UserError("nothing to say: the text is empty")
    name = voice if variant is None else f"{voice}+{variant}"
    samples = np.frombuffer(_output_of_child(lambda: _speak(library.lib, text, name, rate, pitch)), dtype=np.int16)
    if not samples.any():
        raise UserError(f"eSpeak NG said nothing for {text!r} with voice {name}")
    return samples, library.sample_rate


def _check_name(kind: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise UserError(f"eSpeak NG has no {kind} {name!r}; the nearest: {', '.join(nearest)}")


def _check_range(name: str, value: int, limits: tuple[int, int]) -> None:
    if not limits[0] <= value <= limits[1]:
        raise UserError(f"the {name} of eSpeak NG goes from {limits[0]} to {limits[1]}, not {value}")


@lru_cache(maxsize=1)
def _library() -> _Library:
    try:
        import espeakng_loader
    except ImportError:
        raise UserError("speech synthesis needs eSpeak NG: pip install 'espnet_lmu[demo]'") from None
    try:
        lib = ctypes.CDLL(espeakng_loader.get_library_path())
    except OSError as error:
        raise UserError(f"eSpeak NG of espeakng-loader cannot be loaded: {error}") from None
    lib.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
    lib.espeak_ListVoices.argtypes = [ctypes.POINTER(_Voice)]
    lib.espeak_Synth.argtypes = [
        ctypes.c_char_p,  # text
        ctypes.c_size_t,  # size of the text
        ctypes.c_uint,  # start position
        ctypes.c_int,  # what the position counts
        ctypes.c_uint,  # end position, 0 for none
        ctypes.c_uint,  # flags
        ctypes.c_void_p,  # identifier that callbacks get
        ctypes.c_void_p,  # user data
    ]
    sample_rate = lib.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if sample_rate <= 0:
        raise UserError("eSpeak NG of espeakng-loader does not start: reinstall espeakng-loader")
    # A voice goes by the name of its file: not every listed language code is understood (en-gb is not).
    voice_names = tuple(sorted(name.lower() for name in _list_voices(lib, None)))
    variant_names = tuple(sorted(_list_voices(lib, _Voice(languages=b"variant"))))
    return _Library(lib, sample_rate, voice_names, variant_names)


def _list_voices(lib: ctypes.CDLL, wanted: _Voice | None) -> list[str]:
    listed = lib.espeak_ListVoices(ctypes.byref(wanted) if wanted else None)
    names = []
    while listed[len(names)]:
        names.append(listed[len(names)].contents.identifier.decode().rsplit("/", 1)[-1])
    return names


def _speak(lib: ctypes.CDLL, text: str, name: str, rate: int, pitch: int) -> bytes:
    """The samples as bytes; to be called in a child only, as it leaves state behind."""
    pieces = []

    @_SynthCallback
    def collect(samples: ctypes._Pointer, count: int, _events: int) -> int:
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, count * ctypes.sizeof(ctypes.c_short)))
        return 0

    lib.espeak_ng_SetRandSeed(ctypes.c_long(1))
    lib.espeak_SetSynthCallback(collect)
    failed = lib.espeak_SetVoiceByName(name.encode())
    lib.espeak_SetParameter(_PARAMETER_RATE, rate, 0)
    lib.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0)
    encoded = text.encode()
    if failed or lib.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _CHARS_UTF8, None, None):
        return b""
    lib.espeak_Synchronize()
    return b"".join(pieces)


def _output_of_child(produce: Callable[[], bytes]) -> bytes:
    """Run `produce` in a forked child and return what it made."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read_end)
            with os.fdopen(write_end, "wb") as pipe:
                pipe.write(produce())
            status = 0
        finally:
            os._exit(status)  # without the parent's exit handlers and unwritten buffers
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        output = pipe.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise UserError(f"eSpeak NG failed (status {status})")
    return output
