"""What pyproject.toml cannot say: conf/ stays at the top of the repository and travels in the wheel as bench/conf."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConf(build_py):
    """build_py that brings conf/ along; an editable installation finds it where it is."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(Path(__file__).parent / "conf", Path(self.build_lib) / "bench" / "conf", dirs_exist_ok=True)


setup(cmdclass={"build_py": WithConf})
