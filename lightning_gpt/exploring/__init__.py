"""A page on the local address that shows a model at work on a text while it is typed and changed."""
