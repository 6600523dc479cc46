"""Encoders trained under one protocol, and the table of their error rates."""
