# spdlog 1.10 with fmt 9.1: logging and messages.
find_package(spdlog 1.10 REQUIRED)
find_package(fmt 9.1 REQUIRED)

# LibTorch's include folder carries another fmt; ours must be found first. A folder with nothing but fmt does that
# without putting all of the system's headers in front.
get_target_property(_fmt_dirs fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
find_path(fmt_INCLUDE_DIR fmt/format.h HINTS ${_fmt_dirs} NO_CMAKE_FIND_ROOT_PATH REQUIRED)
file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/fmt_only")
file(CREATE_LINK "${fmt_INCLUDE_DIR}/fmt" "${PROJECT_BINARY_DIR}/fmt_only/fmt" SYMBOLIC)
target_include_directories(contrastive_flags SYSTEM BEFORE INTERFACE "${PROJECT_BINARY_DIR}/fmt_only")
