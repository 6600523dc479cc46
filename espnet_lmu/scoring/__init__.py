"""Word, character and token error rates of hypotheses against references."""
