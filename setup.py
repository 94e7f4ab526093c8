"What pyproject.toml declares dynamic, read from settings.ini."
import re
from configparser import ConfigParser
from pathlib import Path
from shutil import copy
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read_string((here/"settings.ini").read_text(encoding="utf-8"))
package = settings["package"]

def lines(text): return [line.strip() for line in text.splitlines() if line.strip()]

class WithNotebook(build_py):
    "The wheel brings train.ipynb, which `semissl-batch` executes where there is no clone."
    def run(self):
        super().run()
        if not self.editable_mode: copy(here/"nbs/experiments/train.ipynb", Path(self.build_lib)/"semissl")

setup(
    cmdclass={"build_py": WithNotebook},
    version=re.search(r'^__version__ = "(.+)"$', (here/"semissl/__init__.py").read_text(encoding="utf-8"), re.M)[1],
    author=package["author"],
    license_expression=package["license"],
    license_files=["LICENSE"],
    keywords=[word.strip() for word in package["keywords"].split(",")],
    classifiers=lines(package["classifiers"]),
    python_requires=">=" + package["min_python"],
    long_description=(here/"README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["semissl", "semissl.*"]),
    package_data={"semissl": ["*/*.csv"]},
    install_requires=lines(package["requirements"]),
    extras_require={name: lines(text) for name, text in settings["extras"].items()},
    entry_points={"console_scripts": lines(package["console_scripts"]), "nbdev": ["semissl = semissl._modidx:d"]},
)
