# LibTorch 2.11.0 from the PyPI wheel (scripts/setup.sh, scripts/deps.lock). libtorch, libtorch_cuda: CUDA build only.
set(LibTorch_WITH_CUDA ${CONTRASTIVE_WITH_CUDA})
find_package(LibTorch 2.11.0 REQUIRED)
