"""The package map: top-level rooms become sub-packages of ``archbench``.

Bare ``kernels``, ``models``, ``hardware`` and ``reports`` collide with distributions of those names, so they
install as ``archbench.kernels`` and so on. Listing the packages here keeps "a new track is a new folder" true:
pyproject.toml cannot discover packages under another name.
"""

from setuptools import find_packages, setup

ROOMS = ("hardware", "kernels", "models", "reports")

packages = find_packages("src")
for room in ROOMS:
    packages += [f"archbench.{room}", *(f"archbench.{room}.{name}" for name in find_packages(room))]

setup(packages=packages, package_dir={"": "src"} | {f"archbench.{room}": room for room in ROOMS})
