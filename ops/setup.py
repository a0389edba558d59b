"""Builds the operator as a package: ``pip install --no-build-isolation ./ops``, from the project's root.

The CPU kernels run on every processor of this one's family (they choose AVX2 at run time), the CUDA kernels on the GPUs
found here or those in TORCH_CUDA_ARCH_LIST. If these cannot be compiled, a message says why.
"""

import sys
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

sys.path.insert(0, str(Path(__file__).resolve().parent))

from sources import CXX_FLAGS, NVCC_FLAGS, PACKAGE, ROOT, module_name, source_files, why_no_cuda

reason = why_no_cuda()
print(f"{PACKAGE}: CPU kernels{' and CUDA kernels' if reason is None else f'; no CUDA kernels: {reason}'}")
files = [path.relative_to(ROOT).as_posix() for path in source_files(with_cuda=reason is None)]
make_extension = CppExtension if reason else CUDAExtension

setup(
    name=PACKAGE.replace("_", "-"),
    version="0.1.0",
    description="Multi-scale deformable attention for CPUs and GPUs",
    packages=[PACKAGE],
    package_dir={PACKAGE: "."},
    package_data={PACKAGE: ["src/*", "src/*/*"]},
    ext_modules=[
        make_extension(
            f"{PACKAGE}.{module_name(with_cuda=reason is None)}",
            files,
            extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
            extra_link_args=["-fopenmp"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
    install_requires=["torch"],
    zip_safe=False,
)
