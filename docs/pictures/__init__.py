"""The pictures of docs/method.md, committed as SVG: `python -m docs.pictures`. They read on white and on black."""
