"""A model behind OpenAI's HTTP interface: an engine that batches continuously, and an application around it."""
