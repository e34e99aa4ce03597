"""What makes the documentation's site; the pages beside it are Markdown."""
