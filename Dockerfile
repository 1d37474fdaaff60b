# The web page on a CPU at port 7860, as a Docker Space of the Hugging Face hub has it:
#   docker build -t videomamba-depth .
#   docker run --rm -p 7860:7860 videomamba-depth                            # then open http://127.0.0.1:7860
#   docker run --rm -p 7860:7860 -e CHECKPOINT=owner/name videomamba-depth   # a student of the hub
FROM python:3.11-slim-bookworm

# OpenCV's libraries, and the compiler of the kernels. Debian keeps one version of each per release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user

USER 1000
ENV HOME=/home/user PATH=/home/user/venv/bin:$PATH UV_TORCH_BACKEND=cpu UV_NO_CACHE=1
WORKDIR /home/user/src
COPY --chown=1000 pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY --chown=1000 configs configs
COPY --chown=1000 kernels kernels
COPY --chown=1000 videomamba_depth videomamba_depth
# uv takes the builds of PyTorch without CUDA, as UV_TORCH_BACKEND says.
# hadolint ignore=DL3013
RUN python -m venv /home/user/venv \
    && pip install --no-cache-dir uv \
    && uv pip install --constraint constraints.txt ".[serve]"

# Streams a frame, so that the kernels are compiled before anybody waits for them.
WORKDIR /home/user
RUN python -c "import numpy; from videomamba_depth import DepthStream; DepthStream('embedded').step(numpy.zeros((64, 64, 3), 'uint8'))"

ENV CHECKPOINT=embedded
EXPOSE 7860
# A Space gives its name in SPACE_HOST, and shows the page in a frame.
CMD ["sh", "-c", "exec videomamba-depth serve checkpoint=$CHECKPOINT host=0.0.0.0 port=7860 allowed_hosts=[${SPACE_HOST:-localhost}] framed_by=[https://huggingface.co]"]
