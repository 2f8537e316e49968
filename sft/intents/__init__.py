"""Intents without a language model: composed from metadata, taken from reviews, imported from LC-Rec."""
