"""Trained models at work: audio to text with times, and models packed into one file or published."""
