"""Decoding of a test set: batched greedy CTC, or ESPnet's beam search in several processes."""
