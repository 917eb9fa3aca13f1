# Installs the headers and a CMake package: find_package(fulmen CONFIG) gives fulmen::fulmen, fulmen::compiled and fulmen::pch.

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_DATADIR}/cmake/fulmen")
target_include_directories(fulmen INTERFACE "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/" TYPE INCLUDE FILES_MATCHING PATTERN "*.hpp")
install(TARGETS fulmen EXPORT fulmenTargets)
install(EXPORT fulmenTargets NAMESPACE fulmen:: DESTINATION "${package_dir}")

configure_package_config_file(cmake/fulmenConfig.cmake.in "${PROJECT_BINARY_DIR}/fulmenConfig.cmake"
  INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/fulmenConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(
  FILES "${PROJECT_BINARY_DIR}/fulmenConfig.cmake" "${PROJECT_BINARY_DIR}/fulmenConfigVersion.cmake"
    cmake/FulmenDependencies.cmake cmake/FulmenPip.cmake cmake/FulmenTorch.cmake cmake/FulmenCompiled.cmake cmake/compiled.cpp
  DESTINATION "${package_dir}")
unset(package_dir)
