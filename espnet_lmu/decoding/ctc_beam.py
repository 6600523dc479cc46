"""CTC prefix beam search with an n-gram language model, by flashlight-text through torchaudio's `ctc_decoder`.

Lexicon-free, the hypotheses are sequences of tokens and the language model is one of tokens. With a lexicon they are
sequences of its words and the language model is one of words. A hypothesis scores (Hannun et al. 2014)

    log P(tokens | audio) + lm_weight * log10 P(tokens or words) + insertion_score * number of tokens or words

T encoder frames, V tokens; token 0 is the blank.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_lmu.decoding.greedy import BLANK, GreedyDecoder, load_input
from espnet_lmu.decoding.results import Hypothesis
from espnet_lmu.errors import UserError
from espnet_lmu.lm.ngram import WORD_END
from espnet_lmu.tokens import SOS_EOS, SPACE, UNKNOWN


@dataclass(frozen=True)
class BeamOptions:
    """How wide to search.

    Args:
        beam_size: hypotheses kept after each frame.
        beam_size_token: the most probable tokens of a frame that are tried; None for all.
        beam_threshold: hypotheses that score less than the best by more than this are dropped.
    """

    beam_size: int = 50
    beam_size_token: int | None = None
    beam_threshold: float = 50.0


def import_decoder():
    """The module of torchaudio's decoder, which needs the optional package flashlight-text."""
    try:
        from torchaudio.models.decoder import _ctc_decoder
    except ImportError:
        raise UserError("decoding: ctc_beam needs flashlight-text: pip install 'espnet_lmu[beam]'") from None
    return _ctc_decoder


@functools.lru_cache(maxsize=1)
def _load_kenlm(path: str, entries: tuple[str, ...]):
    """KenLM's model at `path`, which knows the entries by their positions."""
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    try:
        return KenLM(path, Dictionary(list(entries)))
    except RuntimeError as error:
        raise UserError(f"{path}: not a language model that KenLM reads ({' '.join(str(error).split())})") from None


class CTCBeamSearch:
    """Prefix beam search over the log posteriors of one utterance at a time.

    Lexicon-free, a hypothesis sums over its alignments. With a lexicon its best alignment counts.

    Args:
        token_list: the V tokens of the model.
        options: how wide to search.
        lm: KenLM file (binary or ARPA), of tokens, or of words with a `lexicon`; None for no language model.
        lexicon: words and their tokens, from `espnet_lmu.lm.ngram.write_lexicon`; None for lexicon-free search.
        lm_weight: weight of the language model's log10 probabilities.
        word_score: added for each word, with a lexicon.

    Raises:
        UserError: the lexicon has tokens that the model lacks.
    """

    def __init__(
        self,
        token_list: list[str],
        options: BeamOptions,
        lm: Path | None = None,
        lexicon: Path | None = None,
        lm_weight: float = 0.0,
        word_score: float = 0.0,
    ):
        decoder = import_decoder()
        self.with_lexicon = lexicon is not None
        self.sos_eos = len(token_list) - 1
        if self.with_lexicon:
            # A token that ends words; see `write_lexicon`.
            end = SPACE if SPACE in token_list else WORD_END
            tokens = [*token_list, end] if end == WORD_END else token_list
            self.word_end = tokens.index(end)
            # The decoder numbers the words itself and loads the model with these numbers.
            model = str(lm)
        else:
            # A token that does not occur.
            tokens, end = token_list, SOS_EOS
            # torchaudio would number the tokens in the order of a hash table, and ask the model by their positions in
            # the token list.
            model = _load_kenlm(str(lm), tuple(token_list)) if lm is not None and lm_weight else decoder._ZeroLM()
        try:
            self._decoder = decoder.ctc_decoder(
                lexicon=str(lexicon) if self.with_lexicon else None,
                tokens=tokens,
                lm=model,
                nbest=1 if self.with_lexicon else options.beam_size,
                beam_size=options.beam_size,
                beam_size_token=options.beam_size_token,
                beam_threshold=options.beam_threshold,
                lm_weight=lm_weight,
                word_score=word_score,
                log_add=not self.with_lexicon,
                blank_token=token_list[BLANK],
                sil_token=end,
                unk_word=UNKNOWN,
            )
        except (RuntimeError, ValueError) as error:
            if self.with_lexicon and "Unknown entry in dictionary" in str(error):
                raise UserError(
                    f"{lexicon}: {error}: it was made for other tokens; run stage 9 again, after stage 5"
                ) from None
            raise

    def __call__(self, log_probs) -> list[tuple[list[int], list[str], float]]:
        """Search.

        Args:
            log_probs: (T, V) log posteriors, float32.

        Returns:
            hypotheses, each as its token ids, its words (with a lexicon) and its score: with a lexicon the best one, or
            none where no sequence of words fits; else all that the last frame leaves in the beam.
        """
        if self.with_lexicon:
            log_probs = self._with_word_ends(log_probs)
        hypotheses: dict[tuple[int, ...], tuple[list[int], list[str], float]] = {}
        for found in self._decoder(log_probs[None].contiguous())[0]:
            # The decoder begins and ends with its silence.
            ids = [token for token in found.tokens.tolist() if token != self.sos_eos]
            # It keeps alignments that end with a blank apart from those that do not.
            _, _, other = hypotheses.get(tuple(ids), (None, None, -float("inf")))
            hypotheses[tuple(ids)] = ids, found.words, float(np.logaddexp(found.score, other))
        return list(hypotheses.values())

    def _with_word_ends(self, log_probs):
        """Log posteriors with the end of words: as probable as the blank, where it is no token of the model.

        One more frame ends the last word.
        """
        import torch

        if self.word_end == log_probs.size(1):
            log_probs = torch.cat([log_probs, log_probs[:, BLANK, None]], dim=1)
        last = torch.full((1, log_probs.size(1)), -torch.inf)
        last[0, [BLANK, self.word_end]] = 0.0
        return torch.cat([log_probs, last])


@dataclass(frozen=True)
class BeamDecoding:
    """Decoding of batches of (id, path), for `espnet_lmu.decoding.pieces.decode_set`.

    The posteriors of an utterance are computed once for all weights. Without a lexicon the insertion score, which the
    decoder then lacks, chooses among the hypotheses that the last frame leaves in the beam.

    Args:
        options: how wide to search.
        lm, lexicon: of `CTCBeamSearch`.
        lm_weights: weights of the language model's log10 probabilities.
        insertion_scores: added for each word, without a lexicon for each token.
    """

    options: BeamOptions
    lm: Path | None
    lexicon: Path | None
    lm_weights: tuple[float, ...]
    insertion_scores: tuple[float, ...]

    def __call__(self, decoder: GreedyDecoder, batches: list[list[tuple[str, str]]]) -> list[dict[str, Hypothesis]]:
        """Hypotheses for each pair of weight and score, in the order of `itertools.product`."""
        posteriors: dict = {}
        for batch in batches:
            keys, paths = zip(*batch, strict=True)
            outputs = decoder.log_posteriors([load_input(path, decoder) for path in paths])
            posteriors |= zip(keys, [None if output is None else output.cpu() for output in outputs], strict=True)
        results = []
        for lm_weight in self.lm_weights:
            if self.lexicon is None:
                search = self._search(decoder, lm_weight)
                found = {key: search(log_probs) for key, log_probs in posteriors.items() if log_probs is not None}
                for score in self.insertion_scores:
                    results.append({key: self._best(decoder, found.get(key), score) for key in posteriors})
            else:
                for score in self.insertion_scores:
                    search = self._search(decoder, lm_weight, score)
                    found = {key: search(log_probs) for key, log_probs in posteriors.items() if log_probs is not None}
                    results.append({key: self._best(decoder, found.get(key)) for key in posteriors})
        return results

    def _search(self, decoder: GreedyDecoder, *weights: float) -> CTCBeamSearch:
        return CTCBeamSearch(decoder.converter.token_list, self.options, self.lm, self.lexicon, *weights)

    def _best(self, decoder: GreedyDecoder, candidates: list | None, token_score: float = 0.0) -> Hypothesis:
        """The best of what was found, with a score for each token; `candidates` None: the input was too short."""
        if candidates is None:
            return Hypothesis()
        scored = [(score + token_score * len(ids), ids, words) for ids, words, score in candidates]
        score, ids, words = max(scored, default=(-float("inf"), [], []))
        if self.lexicon is not None:
            # Without the marks of the words' ends.
            ids = decoder.converter.tokens2ids(decoder.tokenizer.text2tokens(" ".join(words)))
        return decoder.hypothesis(ids, score)
