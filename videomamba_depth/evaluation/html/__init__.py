"""One self-contained HTML page beside the JSON and the Markdown of an evaluation."""
