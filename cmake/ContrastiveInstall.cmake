# cmake --install: the library, its headers, the programs and their data files, and a package for find_package(contrastive).
include(CMakePackageConfigHelpers)

install(TARGETS contrastive EXPORT contrastiveTargets LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/contrastive" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/configs" DESTINATION "${CMAKE_INSTALL_DATADIR}/contrastive")
install(DIRECTORY "${CONTRASTIVE_CACHE_DIR}/resources/clip" "${CONTRASTIVE_CACHE_DIR}/resources/imagenet"
  DESTINATION "${CMAKE_INSTALL_DATADIR}/contrastive" OPTIONAL)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/contrastive")
configure_package_config_file(cmake/contrastiveConfig.cmake.in contrastiveConfig.cmake INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file(contrastiveConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(EXPORT contrastiveTargets NAMESPACE contrastive:: DESTINATION "${package_dir}")
install(FILES "${PROJECT_BINARY_DIR}/contrastiveConfig.cmake" "${PROJECT_BINARY_DIR}/contrastiveConfigVersion.cmake"
  cmake/FindLibTorch.cmake DESTINATION "${package_dir}")
