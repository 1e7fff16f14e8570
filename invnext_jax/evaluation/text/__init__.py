"""Text in evaluations: tokenizers, text towers, captions, class names and prompts."""
