"""Which folders make up the distribution; all else stands in pyproject.toml.

configs/ lies at the root of the repository, where it is read and edited, and inside the package once it is installed.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["videomamba_depth*"]),
        *find_namespace_packages("kernels", include=["selective_scan*"]),
        "videomamba_depth.configs",
        *(f"videomamba_depth.configs.{name}" for name in find_namespace_packages("configs")),
    ],
    package_dir={"selective_scan": "kernels/selective_scan", "videomamba_depth.configs": "configs"},
)
