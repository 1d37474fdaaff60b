"""One self-contained HTML page beside the JSON and the Markdown of an evaluation."""

from .clips_page import clips_page
from .fresh_page import fresh_page
from .page import write_html
from .pictures import ClipPictures, ClipView, Gallery

__all__ = ["ClipPictures", "ClipView", "Gallery", "clips_page", "fresh_page", "write_html"]
