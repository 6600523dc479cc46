"""Language models: text, n-grams by KenLM with the lexicon of their words."""
