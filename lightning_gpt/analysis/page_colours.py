"""The page's light colours as colour maps of matplotlib, so that pictures and page show the same.

The stops are those of ``assets/colours.js``.
"""

from matplotlib.colors import LinearSegmentedColormap

SEQUENTIAL_STOPS = ("#f1f4f9", "#c9dcf3", "#84b3e3", "#3f82c8", "#1d5199", "#0b2559")
"""For weights and probabilities, from 0 to 1."""
DIVERGING_STOPS = ("#0f4c8f", "#6ea3d8", "#f3f3f1", "#eba571", "#a8430b")
"""For scores and changes, from negative to positive."""

SEQUENTIAL = LinearSegmentedColormap.from_list("page_sequential", SEQUENTIAL_STOPS)
DIVERGING = LinearSegmentedColormap.from_list("page_diverging", DIVERGING_STOPS)
MASK = LinearSegmentedColormap.from_list("page_mask", (SEQUENTIAL_STOPS[0], SEQUENTIAL_STOPS[3]))
"""0 and 1 of a mask."""
