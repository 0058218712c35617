# Flags that every target of ours shares. Position-independent code everywhere, so that all can reuse one precompiled header.
set(cxx_flags
  -fopenmp  # at::parallel_for is a template: without it, ours would run on one thread
  -fPIC -fvisibility=hidden -fvisibility-inlines-hidden -Wall -Wextra -Wshadow
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>  # GCC 12 sees impossible overlaps in std::string (its bug 105651)
  $<$<BOOL:${CONTRASTIVE_WARNINGS_AS_ERRORS}>:-Werror>
  $<$<BOOL:${CONTRASTIVE_SANITIZE}>:-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer>)
add_library(contrastive_flags INTERFACE)
target_compile_features(contrastive_flags INTERFACE cxx_std_20)
target_compile_options(contrastive_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:${cxx_flags}>" "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fPIC,-fvisibility=hidden>")
target_link_options(contrastive_flags INTERFACE -fopenmp
  $<$<BOOL:${CONTRASTIVE_SANITIZE}>:-fsanitize=address,undefined>)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # ccache handles precompiled headers only with this sloppiness (its manual, "Precompiled headers").
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${CCACHE_PROGRAM})
endif()

# contrastive_add_layer(NAME [SOURCES ...] [TORCH_SOURCES ...] [CUDA_SOURCES ...] [LINKS ...])
#
# One layer of the library as an object library `contrastive_NAME`. TORCH_SOURCES are compiled with LibTorch's
# precompiled header, SOURCES without, CUDA_SOURCES by nvcc (in a build with CUDA only); LINKS are foreign targets.
# tests/lint checks who includes whom.
function(contrastive_add_layer name)
  cmake_parse_arguments(LAYER "" "" "SOURCES;TORCH_SOURCES;CUDA_SOURCES;LINKS" ${ARGN})
  set(target contrastive_${name})
  add_library(${target} OBJECT ${LAYER_SOURCES} ${LAYER_TORCH_SOURCES} ${LAYER_CUDA_SOURCES})
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/include" "${PROJECT_SOURCE_DIR}/src")
  target_link_libraries(${target} PRIVATE contrastive_flags fmt::fmt ${LAYER_LINKS})
  set_source_files_properties(${LAYER_SOURCES} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
  if(LAYER_TORCH_SOURCES)
    contrastive_use_torch(${target})
  endif()
endfunction()

# Compiles a target against LibTorch with the shared precompiled header.
function(contrastive_use_torch target)
  target_link_libraries(${target} PRIVATE LibTorch::cpu)
  target_precompile_headers(${target} REUSE_FROM contrastive_pch)
endfunction()
