"""Texts of the evaluation: tokenizers, text towers, captions, class names and prompts."""
