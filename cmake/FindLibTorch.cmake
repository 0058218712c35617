# Finds LibTorch without TorchConfig.cmake, which changes global flags and wants a full CUDA set-up.
#
# Looked at, in order: LIBTORCH_ROOT (variable, then environment; a `torch` package folder), then what scripts/setup.sh
# unpacked under ${CONTRASTIVE_CACHE} (default: contrastive/ below the user's cache folder).
#
# Targets: LibTorch::cpu (libtorch_cpu, libc10) and, if asked for by LibTorch_WITH_CUDA, LibTorch::cuda.
# Variables: LibTorch_FOUND, LibTorch_VERSION, LibTorch_ROOT_DIR.

if(DEFINED ENV{CONTRASTIVE_CACHE})
  set(_cache "$ENV{CONTRASTIVE_CACHE}")
elseif(DEFINED ENV{XDG_CACHE_HOME})
  set(_cache "$ENV{XDG_CACHE_HOME}/contrastive")
else()
  set(_cache "$ENV{HOME}/.cache/contrastive")
endif()
set(CONTRASTIVE_CACHE_DIR "${_cache}")

if(LIBTORCH_ROOT)
  set(_roots "${LIBTORCH_ROOT}")
elseif(DEFINED ENV{LIBTORCH_ROOT})
  set(_roots "$ENV{LIBTORCH_ROOT}")
elseif(LibTorch_WITH_CUDA)
  set(_roots "${_cache}/libtorch-${LibTorch_FIND_VERSION}-cuda/torch")
else()
  set(_roots "${_cache}/libtorch-${LibTorch_FIND_VERSION}-cpu/torch" "${_cache}/libtorch-${LibTorch_FIND_VERSION}-cuda/torch")
endif()

# No search beyond these folders: another LibTorch on the machine would have another ABI.
set(LibTorch_ROOT_DIR "LibTorch_ROOT_DIR-NOTFOUND")
foreach(_root IN LISTS _roots)
  if(EXISTS "${_root}/include/torch/csrc/api/include/torch/torch.h" AND EXISTS "${_root}/lib/libtorch_cpu.so"
     AND (NOT LibTorch_WITH_CUDA OR EXISTS "${_root}/lib/libtorch_cuda.so"))
    set(LibTorch_ROOT_DIR "${_root}")
    break()
  endif()
endforeach()

if(LibTorch_ROOT_DIR)
  # Older releases keep the numbers in the api folder, newer ones in headeronly/.
  foreach(_header headeronly/version.h csrc/api/include/torch/version.h)
    if(EXISTS "${LibTorch_ROOT_DIR}/include/torch/${_header}")
      file(STRINGS "${LibTorch_ROOT_DIR}/include/torch/${_header}" _lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) [0-9]+")
      if(_lines)
        string(REGEX REPLACE "[^;]*TORCH_VERSION_[A-Z]+ ([0-9]+)" "\\1" _numbers "${_lines}")
        string(REPLACE ";" "." LibTorch_VERSION "${_numbers}")
        break()
      endif()
    endif()
  endforeach()
endif()

list(JOIN _roots ", " _places)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  LibTorch
  REQUIRED_VARS LibTorch_ROOT_DIR
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "looked at ${_places} - run scripts/setup.sh, or set LIBTORCH_ROOT to a torch ${LibTorch_FIND_VERSION} package folder")

if(LibTorch_FOUND AND NOT TARGET LibTorch::cpu)
  set(_lib "${LibTorch_ROOT_DIR}/lib")
  add_library(LibTorch::headers INTERFACE IMPORTED)
  target_include_directories(LibTorch::headers SYSTEM INTERFACE
    "${LibTorch_ROOT_DIR}/include" "${LibTorch_ROOT_DIR}/include/torch/csrc/api/include")

  # --no-as-needed: kernels register themselves when their library is loaded, which no symbol asks for.
  # --allow-shlib-undefined: the NVIDIA libraries behind LibTorch are resolved at run time.
  add_library(LibTorch::cpu INTERFACE IMPORTED)
  target_link_libraries(LibTorch::cpu INTERFACE LibTorch::headers
    "-Wl,--no-as-needed,${_lib}/libtorch_cpu.so,${_lib}/libc10.so,--as-needed")
  target_link_options(LibTorch::cpu INTERFACE "-Wl,--allow-shlib-undefined" "-Wl,-rpath,${_lib}")

  if(LibTorch_WITH_CUDA)
    add_library(LibTorch::cuda INTERFACE IMPORTED)
    target_link_libraries(LibTorch::cuda INTERFACE LibTorch::cpu
      "-Wl,--no-as-needed,${_lib}/libtorch.so,${_lib}/libtorch_cuda.so,${_lib}/libc10_cuda.so,--as-needed")
  endif()
endif()
