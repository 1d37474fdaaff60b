"""One self-contained HTML page beside the JSON and the Markdown of an evaluation."""

from videomamba_depth.evaluation.html.clips_page import clips_page
from videomamba_depth.evaluation.html.fresh_page import fresh_page
from videomamba_depth.evaluation.html.page import write_html
from videomamba_depth.evaluation.html.pictures import ClipPictures, ClipView, Gallery

__all__ = ["ClipPictures", "ClipView", "Gallery", "clips_page", "fresh_page", "write_html"]
