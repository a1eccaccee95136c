#!/bin/sh
# Removes from the environment what training never uses, compiles the rest to bytecode, and divides it into layers.
#
#   slim.sh /opt/venv /layers
#
# leaves /layers/{nvidia,torch,rest}, each a tree from the root: largest and least often changed first, so that an
# update of one small package does not push or pull the CUDA libraries again. One rule decides what may go: every
# library of torch still finds all libraries that it needs (tests/image/test_contents.py runs `ldd`).
set -eu
venv=$1 layers=$2
site=$(echo "$venv"/lib/python3.*/site-packages)

# Triton compiles kernels with a C compiler, which the image does not have; the packages beside it are for CUDA code
# written by hand. Nothing is installed or built in the image, so the installers go too.
uv pip uninstall --quiet --python "$venv" triton cuda-bindings cuda-pathfinder pip setuptools

# Parts of the CUDA libraries for several GPUs in one call, for kernels compiled by hand, and for profilers.
for file in libcusolverMg.so libnvrtc.alt.so libnvrtc-builtins.alt.so libnvblas.so libcufftw.so libnvperf_host.so \
    libnvperf_target.so libcheckpoint.so libpcsamplingutil.so libnvshmem_device libcufile_rdma.so; do
    find "$site/nvidia" -name "$file*" -delete
done
find "$site/nvidia" -path '*/nvshmem/*' \( -name 'nvshmem_*.so*' -o -path '*/bin/*' \) -delete

# Sources, headers and static libraries are for compilers; tests are for those who change these packages.
find "$site" \( -name '*.a' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.c' -o -name '*.cpp' \
    -o -name '*.cu' -o -name '*.h' -o -name '*.hpp' -o -name '*.cuh' \) -type f -delete
find "$site" -type d \( -name tests -o -path '*/joblib/test' \) -prune -exec rm -rf {} +
find "$site/torch/bin" -type f ! -name torch_shm_manager -delete
find "$site" -type d -empty -delete
rm -f "$venv"/bin/activate* "$venv"/bin/*.bat "$venv/.lock"

"$venv/bin/python" -m compileall -q -j 0 "$site"

for part in nvidia torch; do
    mkdir -p "$layers/$part$site"
    mv "$site/$part" "$layers/$part$site/"
done
mkdir -p "$layers/rest$(dirname "$venv")"
mv "$venv" "$layers/rest$venv"
