"""Conversations, chat templates and prompts, as training, evaluation and commands read them."""
