"""The loops in C, left out where nothing can compile them. All else is in pyproject.toml."""

import sysconfig

from setuptools import Extension, setup

# One wheel is for all versions of Python; builds without its lock have no stable ABI.
STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "optuna_nis.nn._kernels",
            ["optuna_nis/nn/_kernels.c"],
            extra_compile_args=["-O3"],
            define_macros=[("Py_LIMITED_API", "0x030a0000")] if STABLE else [],
            py_limited_api=STABLE,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE else {},
)
