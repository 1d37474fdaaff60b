"""From the values of `configs/serve.yaml` to a page that is served."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from videomamba_depth.configuration.serve_schema import ServeConfig
from videomamba_depth.models.checkpoint import load_student
from videomamba_depth.serving.settings import ServeSettings
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.signals import STOPPED_STATUS

log = logging.getLogger(__name__)

_NEEDED = ("starlette", "uvicorn", "websockets")


def serve_main(config: ServeConfig) -> None:
    """Serve the page until Ctrl-C, SIGTERM or SIGHUP; exit status 130 then.

    Raises:
        UserError: anything that a person can mend.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"the page needs {' and '.join(missing)}: pip install 'videomamba-depth[serve]'")
    from videomamba_depth.serving.same_origin import is_loopback
    from videomamba_depth.serving.server import listen, run_server

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        with listen(config.host, config.port) as listener:
            app = build_page(config)
            host, port = listener.getsockname()[:2]
            if not is_loopback(config.host):
                log.warning("whoever reaches this machine at port %d can use the page: there is no password", port)
            log.info("open http://%s:%d in a browser; Ctrl-C ends", f"[{host}]" if ":" in host else host, port)
            run_server(app, listener, settings(config))
    except KeyboardInterrupt:
        logging.shutdown()
        os._exit(STOPPED_STATUS)  # sys.exit would wait for a step of the model, whose client has been cut off


def build_page(config: ServeConfig) -> Any:
    """Return the application that `config` describes, its model loaded."""
    from videomamba_depth.serving.app import build_app
    from videomamba_depth.serving.same_origin import is_loopback

    model = load_student(config.checkpoint, config.input_size)

    def new_stream() -> DepthStream:
        resets = ResetPolicy(cuts=config.reset_at_cuts, max_gap_s=config.max_gap_s)
        return DepthStream(model, device=config.device, dtype=config.dtype, resets=resets)

    new_stream().step(np.zeros((64, 64, 3), np.uint8))  # compiles what is to be, and fails before anybody is served
    names = (config.host, *config.allowed_hosts)
    return build_app(new_stream, settings(config), loopback=is_loopback(config.host), allowed_hosts=names)


def settings(config: ServeConfig) -> ServeSettings:
    """Return the limits that `config` sets."""
    return ServeSettings(
        max_upload_mb=config.max_upload_mb,
        max_pixels=config.max_pixels,
        longest_px=config.longest_px,
        max_streams=config.max_streams,
        decode_s=config.decode_s,
        upload_s=config.upload_s,
        idle_s=config.idle_s,
        colour_map=config.colour_map,
    )
