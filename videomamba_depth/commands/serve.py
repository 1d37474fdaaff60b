"""Depth in the browser, beside a video file or the browser's camera.

videomamba-depth serve checkpoint=embedded       # then open the address that it prints; Ctrl-C ends
"""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from videomamba_depth.configuration.cli import hydra_entry
from videomamba_depth.configuration.serve_schema import ServeConfig
from videomamba_depth.models.checkpoint import load_student
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.device import use_threads
from videomamba_depth.utils.extras import require
from videomamba_depth.utils.signals import STOPPED_STATUS

log = logging.getLogger(__name__)


def main(config: ServeConfig) -> None:
    """Serve the page until Ctrl-C, SIGTERM or SIGHUP; exit status 130 then.

    Raises:
        UserError: anything that a person can mend.
    """
    for package in ("starlette", "uvicorn", "websockets"):
        require(package, "the page")
    from videomamba_depth.serving.same_origin import is_loopback
    from videomamba_depth.serving.server import listen, run_server

    use_threads(config.threads)
    try:
        with listen(config.host, config.port) as listener:
            app = build_page(config)
            host, port = listener.getsockname()[:2]
            if not is_loopback(config.host):
                log.warning("whoever reaches this machine at port %d can use the page: there is no password", port)
            log.info("open http://%s:%d in a browser; Ctrl-C ends", f"[{host}]" if ":" in host else host, port)
            run_server(app, listener, config)
    except KeyboardInterrupt:
        logging.shutdown()
        os._exit(STOPPED_STATUS)  # sys.exit would wait for a step of the model, whose client has been cut off


def build_page(config: ServeConfig) -> Any:
    """Return the application that `config` describes, its model loaded."""
    from videomamba_depth.serving.app import build_app
    from videomamba_depth.serving.same_origin import is_loopback

    model = load_student(config.checkpoint, config.short_side)

    def new_stream() -> DepthStream:
        resets = ResetPolicy(cuts=config.reset_at_cuts, max_gap_s=config.max_gap_s)
        return DepthStream(model, device=config.device, precision=config.precision, resets=resets)

    new_stream().step(np.zeros((64, 64, 3), np.uint8))  # compiles what is to be, and fails before anybody is served
    names = (config.host, *config.allowed_hosts)
    loopback = is_loopback(config.host)
    return build_app(new_stream, config, loopback=loopback, allowed_hosts=names, framed_by=config.framed_by)


def run() -> None:
    """Run the command line."""
    hydra_entry("serve", ServeConfig, main)


if __name__ == "__main__":
    run()
