"""Ours beside other projects in interleaved rounds: what ``lightning-gpt bench`` measures and prints."""
