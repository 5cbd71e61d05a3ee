"""Only the extension modules; everything else about the package stands in pyproject.toml."""

import glob
import os
import shutil
import sys
import sysconfig

from setuptools import Extension, setup

try:
    import torch
    from torch.utils.cpp_extension import (
        CUDA_HOME,
        BuildExtension,
        CppExtension,
        CUDAExtension,
        include_paths,
    )
except ImportError:
    sys.exit(
        "ensdistill: torch is missing; the extension is compiled against it. Install it first, for example "
        "`pip install "
        "torch==2.13.0`, then `pip install --no-build-isolation .`, so that the build uses that torch. In a "
        "checkout, "
        "`make setup` does all of it."
    )
if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")):
    sys.exit(
        "ensdistill: a C++17 compiler is missing. Debian/Ubuntu: `apt-get install g++`; Fedora: `dnf "
        "install gcc-c++`."
    )
headers = sysconfig.get_path("include")
if not os.path.exists(os.path.join(headers, "Python.h")):
    advice = "Debian/Ubuntu: `apt-get install python3-dev`; Fedora: `dnf install python3-devel`."
    sys.exit(f"ensdistill: Python's headers are missing ({headers}/Python.h). {advice}")

# The oldest torch whose stable ABI the libraries use: one build then serves every later torch.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
PLAIN_CXX = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall"]
CXX = [*PLAIN_CXX, "-Wno-psabi", "-Wno-maybe-uninitialized", *STABLE_ABI]

extensions = [
    CppExtension(
        "ensdistill._cpu",
        ["csrc/schema.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))],
        extra_compile_args=[*CXX, f'-DENSDISTILL_TORCH_VERSION="{torch.__version__}"'],
    ),
    # Reads caches without torch: of torch's headers it sees pybind11's alone, and it links to none of its
    # libraries.
    Extension(
        "ensdistill._shards",
        sorted(glob.glob("csrc/shards/*.cpp")),
        include_dirs=include_paths()[:1],
        extra_compile_args=PLAIN_CXX,
    ),
]
# Decided by what can be compiled, not by whether a GPU is plugged in: builders often have none. So are the
# architectures, unless TORCH_CUDA_ARCH_LIST names others; toolkits before 12.8 don't know Blackwell.
if torch.version.cuda and CUDA_HOME:
    knows_blackwell = tuple(map(int, torch.version.cuda.split(".")[:2])) >= (12, 8)
    architectures = os.environ.setdefault(
        "TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX" if knows_blackwell else "8.0;9.0+PTX"
    )
    extensions.append(
        CUDAExtension(
            "ensdistill._cuda",
            ["csrc/cuda/module.cpp", *sorted(glob.glob("csrc/cuda/**/*.cu", recursive=True))],
            extra_compile_args={
                "cxx": [*CXX, f'-DENSDISTILL_ARCHITECTURES="{architectures}"'],
                "nvcc": ["-std=c++17", "-O3", "-DUSE_CUDA", *STABLE_ABI],
            },
        )
    )

# The Makefile installs the packages with one command and builds in place with another: compiling once is
# enough.
if os.environ.get("ENSDISTILL_SKIP_EXTENSION"):
    extensions = []

setup(ext_modules=extensions, cmdclass={"build_ext": BuildExtension})
