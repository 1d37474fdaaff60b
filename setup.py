"""Which folders make up the distribution; all else stands in pyproject.toml.

A wheel that GitHub's machines build names the repository that it came from; there is no address to write down before.
configs/ lies at the root of the repository, where it is read and edited, and inside the package once it is installed.
"""

import os

from setuptools import find_namespace_packages, setup

is_on_github = "GITHUB_REPOSITORY" in os.environ
repository = "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}".format_map(os.environ) if is_on_github else ""
pages = {"Source": "", "Documentation": "/tree/HEAD/docs", "Issues": "/issues", "Changelog": "/blob/HEAD/CHANGELOG.md"}

setup(
    project_urls={name: repository + page for name, page in pages.items() if repository},
    packages=[
        *find_namespace_packages(include=["videomamba_depth*"]),
        *find_namespace_packages("kernels", include=["selective_scan*"]),
        "videomamba_depth.configs",
        *(f"videomamba_depth.configs.{name}" for name in find_namespace_packages("configs")),
    ],
    package_dir={"selective_scan": "kernels/selective_scan", "videomamba_depth.configs": "configs"},
)
