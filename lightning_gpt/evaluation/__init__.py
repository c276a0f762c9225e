"""How well a model predicts texts, and how well it does tasks."""
