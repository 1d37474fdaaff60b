"""Stream a video through a student, frame by frame: `python inference_streaming.py checkpoint=… input=… output=…`."""

from videomamba_depth.configuration.build_stream import stream_main
from videomamba_depth.configuration.cli import hydra_entry
from videomamba_depth.configuration.stream_schema import StreamConfig

if __name__ == "__main__":
    hydra_entry("stream", StreamConfig, stream_main)
