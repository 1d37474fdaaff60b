"""Depth in the browser, beside a file or a camera: `python scripts/serve.py checkpoint=…`, then open the address."""

from videomamba_depth.configuration.build_serve import serve_main
from videomamba_depth.configuration.cli import hydra_entry
from videomamba_depth.configuration.serve_schema import ServeConfig

if __name__ == "__main__":
    hydra_entry("serve", ServeConfig, serve_main)
