"""What is sent to the page of a pass; one file for each part of the page."""
